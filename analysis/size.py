"""Parameters and multiply-adds of the network of a genotype, as one JSON object.

python analysis/size.py DARTS_V2 --init_channels 36 --layers 20
python analysis/size.py LambdaDARTS_corr_0 --dataset imagenet
python analysis/size.py "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
"""

import json
from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import NonNegativeInt

import cli
from cli import ImageSizeOrOwn, InputError, option
from nasbench201.cells import Cell201, load_any

PROG = "size.py"


@dataclass
class SizeSettings:
    """network"""

    dataset: Literal["cifar10", "cifar100", "svhn", "digits", "imagenet"] = option(
        "cifar10", "gives the stem, the image size and the classes"
    )
    init_channels: NonNegativeInt = option(
        0, "channels C of the first cells; 0 for the papers': 36, on ImageNet 48, in NAS-Bench-201 16"
    )
    layers: NonNegativeInt = option(
        0, "number of cells, in NAS-Bench-201 of a stage; 0 for the papers': 20, on ImageNet 14, in NAS-Bench-201 5"
    )
    auxiliary: bool = option(False, "count the auxiliary head's parameters")
    image_size: ImageSizeOrOwn = option(0, "height and width in pixels; 0 for the data set's")


def main() -> None:
    parser = cli.parser_for(SizeSettings, PROG, __doc__.splitlines()[0])
    parser.add_argument("genotype", help="a published cell, a string of NAS-Bench-201, a genotype file or a run folder")
    settings = parser.parse_args()
    with cli.blaming("genotype"):
        genotype = load_any(settings.genotype)
    of_201 = isinstance(genotype, Cell201)
    if of_201 and settings.auxiliary:
        raise InputError("--auxiliary: the network of NAS-Bench-201 has no auxiliary head")
    if settings.init_channels and not 2 <= settings.init_channels <= 4096:
        raise InputError(f"--init_channels: {settings.init_channels}, expected 2 to 4096")
    if settings.layers > 1000:
        raise InputError(f"--layers: {settings.layers}, expected 1000 at most")

    # Imported here: --help and wrong input are answered before torch is loaded.
    import torch

    from model import NetworkCIFAR, NetworkImageNet, size
    from nasbench201.networks import Network as Network201

    channels, pixels, classes = {"digits": (1, 8, 10), "cifar100": (3, 32, 100), "imagenet": (3, 224, 1000)}.get(
        settings.dataset, (3, 32, 10)
    )
    if of_201:
        network, c, layers = Network201, 16, 5
    else:
        network, c, layers = (NetworkImageNet, 48, 14) if settings.dataset == "imagenet" else (NetworkCIFAR, 36, 20)
    with torch.device("meta"):
        built = network(
            genotype,
            settings.init_channels or c,
            settings.layers or layers,
            classes,
            in_channels=channels,
            **({} if of_201 else {"auxiliary": settings.auxiliary}),
        )
    print(json.dumps(size(built, channels, settings.image_size or pixels)))


if __name__ == "__main__":
    cli.run(main, PROG)
