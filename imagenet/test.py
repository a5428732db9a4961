"""Score a network of imagenet/train.py on the test pictures, top-1 and top-5, and print that as one JSON object.

python imagenet/test.py runs/imagenet
python imagenet/test.py runs/imagenet/checkpoints/step_01250.ckpt --data /elsewhere/ILSVRC --device cuda
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lib import cli, options
from lib.cli import InputError, blaming
from lib.options import NonNegativeInt, Workers, argument, option
from lib.settings import DEVICE_HELP

PROG = "test.py"


@dataclass
class TestSettings:
    """The settings of a test."""

    checkpoint: str = argument("Run folder of imagenet/train.py, finished or not, or one of its checkpoint files.")
    data: str = option("", "Folder with val/<class>/*, or ILSVRC's folder. By default the folder that the run used.")
    batch_size: NonNegativeInt = option(0, "Images of a pass. 0 takes the number of the training.")
    workers: Workers = option(-1, "Processes that decode images. -1 takes one per core.")
    broken_images: Literal["refuse", "skip"] = option(
        "refuse", "End at an image that cannot be read, or print its name and skip it."
    )
    device: str = option("auto", DEVICE_HELP)


def main() -> None:
    given = options.parse(TestSettings, PROG, __doc__.splitlines()[0])

    from imagenet.checkpoint import load_network
    from imagenet.images import FolderImages, count_workers, read_tree
    from imagenet.layout import find_split
    from lib.callbacks import metrics_of
    from lib.devices import memory_format
    from lib.retraining import Retraining
    from lib.trainer import epochs_done, make_scorer, open_checkpoint

    checkpoint = open_checkpoint(given.checkpoint)
    trainer, device = make_scorer(given.device, checkpoint)
    settings, classes = (checkpoint["hyper_parameters"][name] for name in ("settings", "classes"))
    network = load_network(checkpoint)
    with blaming("--data"):
        test = read_tree(find_split(Path(given.data or settings["data"]), "val"))
    if list(test.classes) != classes:
        other = sorted(set(test.classes) ^ set(classes))
        raise InputError(
            f"--data: {test.root} has {len(test.classes)} classes, expected the {len(classes)} that the network was "
            f"trained on; they differ in {', '.join(other[:5])}"
        )
    skip = given.broken_images == "skip"
    batch_size = given.batch_size or settings["batch_size"]
    workers = count_workers(given.workers, 1)
    images = FolderImages(None, test, batch_size, settings["image_size"], settings["seed"], workers, skip)
    images.check_shared_memory(world=1, num_nodes=1, accumulate=1)
    module = Retraining(network, len(classes), None, memory_format("auto", device), top5=True, ignoring=skip)
    trainer.test(module, images, verbose=False)
    named = {name.removeprefix("test_"): value for name, value in metrics_of(trainer).items()}
    counted = int(named.pop("images", len(test)))  # those that can be read
    print(json.dumps({"images": counted, **named, "epochs": epochs_done(checkpoint)}))


if __name__ == "__main__":
    cli.run(main, PROG)
