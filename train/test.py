"""Score a retrained network on the test images of its data set, and print the scores as one JSON object.

python train/test.py runs/retrain-...
python train/test.py runs/retrain-.../checkpoints/step_09000.ckpt --data /elsewhere/data --device cuda
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
    from genotypes import make_genotype
    from model import NetworkCIFAR

    with blaming("checkpoint"):
        cell = make_genotype(genotype)
    sizes = (settings["init_channels"], settings["layers"], len(dataset.classes), settings["auxiliary"])
    return NetworkCIFAR(cell, *sizes, dataset.in_channels)


def main() -> None:
    given = options.parse(TestSettings, PROG, __doc__.splitlines()[0])

    from lib.scoring import open_checkpoint, score_on_dataset

    checkpoint = open_checkpoint(given.checkpoint)
    if not {"dataset", "auxiliary"} <= checkpoint["hyper_parameters"]["settings"].keys():
        raise InputError(
            "checkpoint: it is not one of train/train.py; expected nasbench201/test.py or imagenet/test.py"
        )
    print(score_on_dataset(checkpoint, make_network, given.data, given.device))


if __name__ == "__main__":
    cli.run(main, PROG)
