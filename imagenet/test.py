"""Score a network of imagenet/train.py on the test pictures, top-1 and top-5, and print that as one JSON object.

python imagenet/test.py runs/imagenet
python imagenet/test.py runs/imagenet/checkpoints/step_01250.safetensors --data /elsewhere/ILSVRC --device cuda
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt

import cli
from cli import InputError, Workers, blaming, option

PROG = "test.py"


@dataclass
class TestSettings:
    """test"""

    data: str = option("", "folder with val/<class>/*, or ILSVRC's; by default where the run had it")
    batch_size: NonNegativeInt = option(0, "images of a pass; 0 for the training's")
    workers: Workers = option(-1, "processes that decode; -1: as many as cores")
    broken_images: Literal["refuse", "skip"] = option(
        "refuse", "pictures that cannot be read: end, or name them and go on without"
    )
    device: str = option("auto", "auto, cpu, cuda, mps; cuda:1 for the second GPU")


def main() -> None:
    parser = cli.parser_for(TestSettings, PROG, __doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a run folder of imagenet/train.py, finished or not, or a checkpoint file")
    given = parser.parse_args()

    import torch

    from imagenet.checkpoint import load_network
    from imagenet.images import FolderImages, count_workers, read_tree
    from imagenet.layout import find_split
    from modules import Evaluation
    from trainer import make_trainer, open_checkpoint, scoring_precision
    from utils import check_device, memory_format

    accelerator, devices = check_device(given.device)
    checkpoint = open_checkpoint(given.checkpoint)
    settings, classes = checkpoint["settings"], tuple(checkpoint["classes"])
    network = load_network(checkpoint)
    with blaming("--data"):
        test = read_tree(find_split(Path(given.data or settings["data"]), "val"))
    if test.classes != classes:
        other = sorted(set(test.classes) ^ set(classes))
        raise InputError(
            f"--data: {test.root} has {len(test.classes)} classes, expected the {len(classes)} that the network was "
            f"trained on; they differ in {', '.join(other[:5])}"
        )
    skip = given.broken_images == "skip"
    batch_size = given.batch_size or settings["batch_size"]
    workers = count_workers(given.workers, 1)
    images = FolderImages(None, test, batch_size, settings["image_size"], settings["seed"], workers, skip)
    layout = memory_format("auto", torch.device(accelerator))
    module = Evaluation(network, len(classes), layout, top5=True, ignoring=skip)
    make_trainer(accelerator, devices, scoring_precision(checkpoint, accelerator)).test(module, images, verbose=False)
    scores = {"images": len(test), **module.test_scores.take(), "epochs": len(checkpoint["rows"])}
    print(json.dumps(scores))


if __name__ == "__main__":
    cli.run(main, PROG)
