"""Score the retrained network of a NAS-Bench-201 cell on the test images, and print the scores as one JSON object.

python nasbench201/test.py runs/retrain-...
"""

from typing import TYPE_CHECKING, Any

from lib import cli, options
from lib.cli import InputError, blaming
from lib.settings import TestSettings

if TYPE_CHECKING:
    from torch import nn

    from lib.datasets import DataSet

PROG = "test.py"


def make_network(settings: dict[str, Any], genotype: dict[str, Any], dataset: "DataSet") -> "nn.Module":
    """The network of a checkpoint."""
    from nasbench201.cells import parse_cell
    from nasbench201.networks import Network201

    with blaming("checkpoint"):
        cell = parse_cell(str(genotype.get("arch")))
    sizes = (settings["init_channels"], settings["cells_per_stage"], len(dataset.classes), dataset.in_channels)
    return Network201(cell, *sizes)


def main() -> None:
    given = options.parse(TestSettings, PROG, __doc__.splitlines()[0])

    from lib.scoring import open_checkpoint, score_on_dataset

    checkpoint = open_checkpoint(given.checkpoint)
    if "cells_per_stage" not in checkpoint["hyper_parameters"]["settings"]:
        raise InputError(
            "checkpoint: it is not one of nasbench201/train.py; expected train/test.py or imagenet/test.py"
        )
    print(score_on_dataset(checkpoint, make_network, given.data, given.device))


if __name__ == "__main__":
    cli.run(main, PROG)
