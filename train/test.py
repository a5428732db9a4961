"""Score a retrained network on the test images of its data set, and print that as one JSON object.

python train/test.py runs/retrain-...     # of train/train.py or nasbench201/train.py
python train/test.py runs/retrain-.../checkpoints/step_09000.ckpt --data /elsewhere/data --device cuda
"""

from dataclasses import dataclass
from typing import Any

from lib import cli, options
from lib.cli import InputError, blaming
from lib.options import argument, option
from lib.settings import DEVICE_HELP

PROG = "test.py"


@dataclass
class TestSettings:
    """The settings of train/test.py."""

    checkpoint: str = argument("Run folder of a retraining, finished or not, or one of its checkpoint files.")
    data: str = option("", "Folder of the data set's files. By default the folder that the run used.")
    device: str = option("auto", DEVICE_HELP)


def main() -> None:
    given = options.parse(TestSettings, PROG, __doc__.splitlines()[0])

    import torch

    from genotypes import Genotype, make_genotype
    from lib import datasets
    from lib.batches import Augmentation
    from lib.data_modules import TensorDataModule
    from lib.trainer import network_state, open_checkpoint, score
    from model import NetworkCIFAR
    from nasbench201.cells import Cell201, parse_cell
    from nasbench201.networks import Network as Network201

    checkpoint = open_checkpoint(given.checkpoint)
    about = checkpoint["hyper_parameters"]
    settings = about["settings"]
    if "dataset" not in settings:
        raise InputError("checkpoint: it is one of imagenet/train.py; expected imagenet/test.py for it")
    with blaming(f"--data: {settings['dataset']}"):
        where = given.data or settings["data"]
        dataset = datasets.load(settings["dataset"], where, settings["image_size"], images=settings["images"])
    with blaming("checkpoint"):
        cell: Genotype | Cell201
        auxiliary: tuple[bool, ...]
        if "cells_per_stage" in settings:
            cell, depth, auxiliary = parse_cell(str(about["genotype"].get("arch"))), "cells_per_stage", ()
        else:
            cell, depth, auxiliary = make_genotype(about["genotype"]), "layers", (settings["auxiliary"],)
    kind: Any = Network201 if isinstance(cell, Cell201) else NetworkCIFAR
    shape = (settings["init_channels"], settings[depth], len(dataset.classes), *auxiliary)
    with torch.device("meta"):
        network = kind(cell, *shape, in_channels=dataset.in_channels)
    try:
        network.load_state_dict(network_state(checkpoint), assign=True)
    except RuntimeError as error:
        raise InputError(
            f"--data: {len(dataset.classes)} classes of images with {dataset.in_channels} channels, "
            "expected the data set that the network was trained on"
        ) from error
    data = TensorDataModule(dataset, settings["batch_size"], Augmentation.none(dataset), settings["seed"])
    print(score(network, data, checkpoint, given.device))


if __name__ == "__main__":
    cli.run(main, PROG)
