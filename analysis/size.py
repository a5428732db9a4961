"""Parameters and multiply-adds of the network of a genotype, as one JSON object.

python analysis/size.py DARTS_V2 --init_channels 36 --layers 20
python analysis/size.py LambdaDARTS_corr_0 --dataset imagenet
"""

import json
from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import NonNegativeInt

import cli
from cli import InputError, option
from genotypes import load_genotype

PROG = "size.py"


@dataclass
class SizeSettings:
    """network"""

    dataset: Literal["cifar10", "cifar100", "svhn", "digits", "imagenet"] = option(
        "cifar10", "gives the stem, the image size and the classes"
    )
    init_channels: NonNegativeInt = option(0, "channels C of the first cells; 0 for the papers': 36, on ImageNet 48")
    layers: NonNegativeInt = option(0, "number of cells; 0 for the papers': 20, on ImageNet 14")
    auxiliary: bool = option(False, "count the auxiliary head's parameters")
    image_size: NonNegativeInt = option(0, "height and width in pixels; 0 for the data set's")


def main() -> None:
    parser = cli.parser_for(SizeSettings, PROG, __doc__.splitlines()[0])
    parser.add_argument("genotype", help="a published cell, a genotype file or a run folder")
    settings = parser.parse_args()
    with cli.blaming("genotype"):
        genotype = load_genotype(settings.genotype)
    import torch

    from model import NetworkCIFAR, NetworkImageNet, size

    channels, pixels, classes = {"digits": (1, 8, 10), "cifar100": (3, 32, 100), "imagenet": (3, 224, 1000)}.get(
        settings.dataset, (3, 32, 10)
    )
    network, c, layers = (NetworkImageNet, 48, 14) if settings.dataset == "imagenet" else (NetworkCIFAR, 36, 20)
    c = settings.init_channels or c
    if not 2 <= c <= 4096:
        raise InputError(f"--init_channels: {c}, expected 2 to 4096")
    with torch.device("meta"):
        built = network(
            genotype,
            c,
            settings.layers or layers,
            classes,
            auxiliary=settings.auxiliary,
            in_channels=channels,
        )
    print(json.dumps(size(built, channels, settings.image_size or pixels)))


if __name__ == "__main__":
    cli.run(main, PROG)
