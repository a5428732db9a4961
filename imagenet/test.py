"""Score a network of imagenet/train.py on the test pictures, and print its top-1 and top-5 scores as one JSON object.

python imagenet/test.py runs/imagenet
python imagenet/test.py runs/imagenet/checkpoints/step_01250.ckpt --data /elsewhere/ILSVRC --device cuda
"""

from dataclasses import dataclass
from pathlib import Path

from lib import cli, options
from lib.cli import InputError, blaming
from lib.options import NonNegativeInt, Workers, argument, option
from lib.settings import DEVICE_HELP

PROG = "test.py"


@dataclass
class ImageNetTestSettings:
    """The settings of imagenet/test.py."""

    checkpoint: str = argument("Run folder of imagenet/train.py, finished or not, or one of its checkpoint files.")
    data: str = option("", "Folder with val/<class>/*, or ILSVRC's folder. By default, the folder that the run used.")
    batch_size: NonNegativeInt = option(0, "Number of images per pass. 0 uses the batch size of the training.")
    workers: Workers = option(-1, "Number of processes that decode images. -1 starts one per core.")
    device: str = option("auto", DEVICE_HELP)


def main() -> None:
    given = options.parse(ImageNetTestSettings, PROG, __doc__.splitlines()[0])

    from imagenet.images import FolderDataModule, count_workers
    from lib.files import find_split
    from lib.pictures import read_tree
    from lib.preprocessing import Preprocessing
    from lib.scoring import check_classes, score
    from model import restore_network

    with blaming("checkpoint"):
        network, checkpoint = restore_network(given.checkpoint)
    about = checkpoint["hyper_parameters"]
    settings, preprocessing = about["settings"], Preprocessing(**about["preprocessing"])
    if about["network"] != "imagenet":
        raise InputError("checkpoint: the network is not for ImageNet; score it with train/test.py")
    with blaming("--data"):
        test = read_tree(find_split(Path(given.data or settings["data"]), "val"))
    check_classes(test.classes, about["classes"])
    batch_size, workers = given.batch_size or settings["batch_size"], count_workers(given.workers, 1)
    data = FolderDataModule(None, test, batch_size, preprocessing, settings["seed"], workers)
    print(score(network, data, checkpoint, given.device, top5=True))


if __name__ == "__main__":
    cli.run(main, PROG)
