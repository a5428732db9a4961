"""Print the parameters and multiply-adds of the network of a genotype as a JSON object.

python analysis/size.py DARTS_V2 --init_channels 36 --layers 20
python analysis/size.py LambdaDARTS_corr_0 --dataset imagenet
python analysis/size.py runs/retrain-...                 # network of the run; flags override its sizes
python analysis/size.py "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from genotypes import load_genotype
from lib import cli
from lib.cli import InputError
from lib.options import Channels, ImageSizeOrOwn, Layers, argument, option, parse
from nasbench201.cells import Cell201, load_any

PROG = "size.py"


@dataclass
class SizeSettings:
    """The network whose size is computed."""

    genotype: str = argument("Name of a cell, a genotype, its file, a NAS-Bench-201 string, or a run folder.")
    dataset: Literal["cifar10", "cifar100", "svhn", "digits", "imagenet"] | None = option(
        None,
        "Data set, which determines the stem, the image size and the number of classes. By default cifar10, or the "
        "data set of the given retraining.",
    )
    init_channels: Channels | None = option(
        None,
        "Channels C of the first cells. By default 36 (48 on ImageNet, 16 in NAS-Bench-201), or the value of the given "
        "retraining.",
    )
    layers: Layers | None = option(
        None,
        "Number of cells, or of cells per stage in NAS-Bench-201. By default 20 (14 on ImageNet, 5 in NAS-Bench-201), "
        "or the value of the given retraining.",
    )
    auxiliary: bool = option(False, "Count the parameters of the auxiliary head.")
    image_size: ImageSizeOrOwn = option(0, "Height and width of the images in pixels. 0 takes the data set's size.")


class RunSizes(NamedTuple):
    """The sizes that define the network of a retraining."""

    imagenet: bool
    init_channels: int
    layers: int  # in NAS-Bench-201, cells per stage
    classes: int
    channels: int
    image_size: int


def sizes_of_run(run: Path) -> RunSizes | None:
    """Read the sizes of the network of a retraining. Returns None if `run` is not the run folder of a retraining."""
    from lib.checkpoints import open_retraining, paths

    if not os.path.isdir(run):  # unlike Path.is_dir, this accepts genotypes that are too long for a path
        return None
    if (run / "alphas.npz").exists() or not paths(run / "checkpoints"):  # a search
        return None
    with cli.blaming("genotype"):
        about = open_retraining(run)["hyper_parameters"]
    stored, preprocessing = about["settings"], about["preprocessing"]
    layers = stored["cells_per_stage"] if about["network"] == "nasbench201" else stored["layers"]
    sizes = about["network"] == "imagenet", stored["init_channels"], layers, len(about["classes"])
    return RunSizes(*sizes, preprocessing["channels"], preprocessing["image_size"])


def main() -> None:
    settings = parse(SizeSettings, PROG, __doc__.splitlines()[0])
    with cli.blaming("genotype"):
        genotype = load_any(settings.genotype, load_genotype)
    if isinstance(genotype, Cell201) and settings.auxiliary:
        raise InputError("--auxiliary: the network of NAS-Bench-201 has no auxiliary head")

    # imported here, so that --help and errors in the input need not load torch
    import torch

    from model import NetworkCIFAR, NetworkImageNet, size
    from nasbench201.networks import Network201

    run = sizes_of_run(Path(settings.genotype))
    channels, pixels, classes = {"digits": (1, 8, 10), "cifar100": (3, 32, 100), "imagenet": (3, 224, 1000)}.get(
        settings.dataset or "cifar10", (3, 32, 10)
    )
    if run and not settings.dataset:
        channels, pixels, classes = run.channels, run.image_size, run.classes
    c, layers = settings.init_channels, settings.layers
    if run:
        c, layers = c or run.init_channels, layers or run.layers
    imagenet = settings.dataset == "imagenet" if settings.dataset else run is not None and run.imagenet
    network: torch.nn.Module
    with torch.device("meta"):
        if isinstance(genotype, Cell201):
            network = Network201(genotype, c or 16, layers or 5, classes, channels)
        elif imagenet:
            network = NetworkImageNet(genotype, c or 48, layers or 14, classes, settings.auxiliary, channels)
        else:
            network = NetworkCIFAR(genotype, c or 36, layers or 20, classes, settings.auxiliary, channels)
    print(json.dumps(size(network, channels, settings.image_size or pixels)))


if __name__ == "__main__":
    cli.run(main, PROG)
