"""Retrain a cell from scratch: the network of a genotype on CIFAR-10, CIFAR-100, SVHN, digits or a folder of images.

    python train/train.py --arch LambdaDARTS_cifar10_s2 --init_channels 16 --auxiliary --cutout --download
    python train/train.py --arch runs/search-... --dataset digits --init_channels 8 --layers 5 --epochs 10
    python train/train.py --arch DARTS_V2 --auxiliary --cutout --devices 2     # a process for each of two GPUs
    torchrun --nproc_per_node 2 train/train.py --arch DARTS_V2 --save runs/two # the same
    python train/train.py --resume runs/retrain-...                            # go on with an interrupted run

A run folder holds config.yaml, genotype.json, metrics.csv (a row an epoch, accuracies in [0, 1]), tensorboard/,
checkpoints/ (the last two) and, once it is finished, result.json and model_card.md with its pictures. The test images
are scored in each epoch for the record; nothing is chosen by them, and the result is the last epoch's. The
LightningModule is in lib/retraining.py, the LightningDataModule in lib/images.py, the Trainer in lib/trainer.py.
"""

import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jsonargparse.typing import PositiveInt

import cli
from cli import Channels, InputError, Layers, NonNegativeFloat, PositiveFloat, Probability, blaming, option
from genotypes import load_genotype
from lib import launch
from search.settings import DataSettings, DevicesSettings, RunSettings

PROG = "train.py"


@dataclass
class NetworkSettings:
    """network"""

    arch: str = option("", "the cell: a name in genotypes.py, a genotype file, or the run folder of a search")
    init_channels: Channels = option(36, "channels C of the first cells")
    layers: Layers = option(20, "number of cells")
    auxiliary: bool = option(False, "train with an auxiliary head after the second reduction cell")


@dataclass
class RecipeSettings:
    """recipe"""

    epochs: PositiveInt = option(600, "epochs of training")
    batch_size: PositiveInt = option(96, "images of a step, on all devices together")
    learning_rate: PositiveFloat = option(0.025, "at the start of the cosine, which ends at 0")
    momentum: NonNegativeFloat = option(0.9, "of SGD")
    weight_decay: NonNegativeFloat = option(3e-4, "of SGD")
    grad_clip: PositiveFloat = option(5.0, "largest norm of the gradient")
    auxiliary_weight: NonNegativeFloat = option(0.4, "of the auxiliary head's loss")
    drop_path_prob: Probability = option(0.2, "drop path on the operations, ramped linearly from 0")


@dataclass
class TrainSettings(DevicesSettings, RunSettings, RecipeSettings, NetworkSettings, DataSettings):
    """All settings of a retraining. The defaults are those of DARTS on CIFAR-10 (ICLR 2019, section 3.2)."""


def resolve(arguments: list[str]) -> tuple[TrainSettings, Path, bool]:
    """The settings that a command line means, the run folder, and whether the run is resumed."""
    settings = cli.parse(TrainSettings, PROG, __doc__.splitlines()[0], arguments)
    name = f"retrain-{settings.dataset}-{Path(settings.arch).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    return launch.resolve(settings, PROG, arguments, name)


def train(settings: TrainSettings, run: Path, resumed: bool) -> None:
    """Train the network and leave a run folder, or resume the one that is there."""
    if resumed and cli.finished(run):
        return
    with blaming("--resume" if resumed else "--arch"):
        genotype = load_genotype(str(run) if (run / "genotype.json").exists() and resumed else settings.arch)

    # Imported here: --help, a wrong flag and a wrong genotype are answered before torch is loaded.
    import torch

    from analysis.card import write_card
    from lib.images import tensor_images
    from lib.retraining import Recipe, cosine
    from lib.trainer import fit, make_module, make_trainer, open_run, write_result
    from model import NetworkCIFAR, size, smallest_image

    images = tensor_images(settings)
    smallest = smallest_image(settings.layers)
    if settings.auxiliary and images.image_size < smallest:
        raise InputError(
            f"--auxiliary: its head needs images of {smallest} pixels or more and these have {images.image_size}; "
            f"expected --no_auxiliary or --image_size {smallest}"
        )

    def make_network(auxiliary: bool) -> NetworkCIFAR:
        shape = (settings.init_channels, settings.layers, len(images.classes))
        return NetworkCIFAR(genotype, *shape, auxiliary=auxiliary, in_channels=images.in_channels)

    trainer = make_trainer(settings, run)
    torch.manual_seed(settings.seed)
    recipe = Recipe.of(settings, cosine(settings.epochs))
    module = make_module(make_network(settings.auxiliary), recipe, images, trainer, settings, genotype)
    with open_run(run, resumed, settings, genotype, trainer):
        rows = fit(trainer, module, images, run, "train/train.py")
        if trainer.is_global_zero:
            with torch.device("meta"):  # the papers count the parameters without the auxiliary head
                cost = size(make_network(auxiliary=False), images.in_channels, images.image_size)
            write_result(run, module, images, rows, cost)
            with cli.warning(f"no model card; python analysis/card.py {run} writes it"):
                write_card(run)


def main() -> None:
    train(*resolve(sys.argv[1:]))


if __name__ == "__main__":
    cli.run(main, PROG)
