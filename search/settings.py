"""The settings of a search, its command line, and those of an existing run. Light: nothing here imports torch."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, OpenUnitInterval, PositiveInt

import cli
from cli import NonNegativeFloat, PositiveFloat, Probability, Seed, option

PROG = "train_search.py"
DESCRIPTION = (
    "Search a cell with Λ-DARTS or DARTS. The defaults are the Λ-DARTS paper's for the DARTS space on CIFAR-10."
)


@dataclass
class DataSettings:
    """data"""

    data: str = option("data", "folder of the data set's files")
    dataset: Literal["cifar10", "cifar100", "svhn", "digits", "folder"] = option(
        "cifar10", "data set; 'folder' takes DATA/train/<class>/* and DATA/test/<class>/*, 'digits' needs no files"
    )
    download: bool = option(False, "fetch the files of cifar10, cifar100 or svhn where they are missing")
    image_size: NonNegativeInt = option(0, "height and width of the images in pixels; 0 keeps their own")
    cutout: bool = option(False, "augment with cutout")
    cutout_length: PositiveInt = option(16, "side of the cutout in pixels, rounded down to even")


@dataclass
class SplitSettings:
    """split"""

    train_portion: OpenUnitInterval = option(0.5, "share of the training images for the weights; the rest is for alpha")


@dataclass
class SupernetSettings:
    """supernet"""

    space: Literal["s1", "s2", "s3", "s4", "s5"] = option(
        "s5", "search space: s1 to s4 of RobustDARTS, s5 is DARTS's without `none`"
    )
    init_channels: PositiveInt = option(16, "channels C of the first cells")
    layers: PositiveInt = option(8, "number of cells")
    drop_path_prob: Probability = option(0.0, "drop path on the operations, ramped linearly from 0 (RobustDARTS)")


@dataclass
class WeightSettings:
    """weights"""

    epochs: PositiveInt = option(50, "epochs of the search")
    batch_size: PositiveInt = option(64, "images of a step")
    learning_rate: PositiveFloat = option(0.025, "of the weights, at the start")
    learning_rate_min: NonNegativeFloat = option(0.001, "of the weights, at the end of the cosine")
    momentum: NonNegativeFloat = option(0.9, "of the weights' SGD")
    weight_decay: NonNegativeFloat = option(3e-4, "of the weights")
    grad_clip: PositiveFloat = option(5.0, "largest norm of the weights' gradient")


@dataclass
class ArchitectureSettings:
    """architecture"""

    arch_learning_rate: PositiveFloat = option(3e-4, "of alpha's Adam")
    arch_weight_decay: NonNegativeFloat = option(1e-3, "of alpha")
    unrolled: bool = option(False, "second-order DARTS: alpha's gradient one weight step ahead")
    derivatives: Literal["difference", "exact"] = option(
        "difference", "second derivatives by central differences, as the papers ran them, or by a second backward pass"
    )


@dataclass
class RegularizerSettings:
    """regularizer"""

    reg: str = option(
        "corr",
        "layer alignment by cosine (corr) or by sign (signcorr), another entry of REGULARIZERS in regularizers.py, "
        "none, or noise (the control: a random vector of the norm of corr's gradient)",
    )
    lambda_: NonNegativeFloat = option(0.125, "strength, reached linearly in the last epoch")
    epsilon_0: PositiveFloat = option(1e-4, "radius of the regularizer's differences")
    compare_derivatives: bool = option(
        False, "log the cosine between the regularizer's difference and exact gradient, once an epoch"
    )


@dataclass
class RunSettings:
    """run"""

    seed: Seed = option(0, "of everything random")
    save: str = option("", "run folder to make; by default one in runs/ named after the settings and the time")
    resume: str = option("", "run folder to go on with, under its own settings; takes no other flag but --device")
    device: str = option("auto", "auto, cpu, cuda, mps; cuda:1 for the second GPU")


@dataclass
class ExecutionSettings:
    """execution"""

    precision: Literal["32-true", "bf16-mixed", "64-true"] = option("32-true", "of the supernet's passes")
    keep_checkpoints: PositiveInt = option(2, "how many checkpoints to keep")


@dataclass
class SearchSettings(
    ExecutionSettings,
    RunSettings,
    RegularizerSettings,
    ArchitectureSettings,
    WeightSettings,
    SupernetSettings,
    SplitSettings,
    DataSettings,
):
    """All settings of a search. The defaults are the Λ-DARTS paper's for the DARTS space (ICLR 2023, section 5)."""


def load_settings(run: Path, flag: str = "--resume") -> SearchSettings:
    """The settings of an existing search, which `flag` names.

    Raises:
        InputError: it is no run of a search, or its config.yaml is not as this project writes it.
    """
    return cli.load_settings(SearchSettings, PROG, run, flag)


def resolve(arguments: list[str]) -> tuple[SearchSettings, Path, bool]:
    """The settings that a command line means, the run folder, and whether the run is resumed."""
    settings = cli.parse(SearchSettings, PROG, DESCRIPTION, arguments)
    if settings.resume:
        return cli.resume(settings, PROG, arguments), Path(settings.resume), True
    name = f"search-{settings.dataset}-{settings.space}-{settings.reg}-{datetime.now():%Y%m%d-%H%M%S}"
    run = Path(settings.save or f"runs/{name}")
    cli.check_new_folder(run, "--save")
    return settings, run, False
