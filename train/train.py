"""Retrain a cell from scratch: the network of a genotype on CIFAR-10, CIFAR-100, SVHN, digits or a folder of images.

    python train/train.py --arch LambdaDARTS_cifar10_s2 --init_channels 16 --auxiliary --cutout --download
    python train/train.py --arch runs/search-... --dataset digits --init_channels 8 --layers 5 --epochs 10
    python train/train.py --arch DARTS_V2 --auxiliary --cutout --devices 2     # a process for each of two GPUs
    torchrun --nproc_per_node 2 train/train.py --arch DARTS_V2 --save runs/two # the same
    python train/train.py --resume runs/retrain-...                            # resume an interrupted run

A run folder holds config.yaml, genotype.json, metrics.csv (a row per epoch, accuracies in [0, 1]), tensorboard/,
checkpoints/ (the last two) and, once the run is finished, result.json and model_card.md with its pictures. The network
is scored on the test images after each epoch, but no choice depends on these scores: the result is the score of the
last epoch. The LightningModule is in lib/retraining.py, the LightningDataModule in lib/data_modules.py, the Trainer in
lib/trainer.py.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from genotypes import Genotype, load_genotype, short_name
from lib import cli, launch, options
from lib.cli import InputError, blaming
from lib.options import AtLeastTwo, Channels, Layers, Need, NonNegativeFloat, PositiveFloat, PositiveInt, Probability
from lib.settings import ImageSettings, RetrainSettings

PROG = "train.py"


of_network, of_recipe = partial(options.option, group="network"), partial(options.option, group="recipe")


@dataclass
class TrainSettings(RetrainSettings, ImageSettings):
    """The settings of train/train.py. The defaults are those of DARTS on CIFAR-10 (ICLR 2019, section 3.2)."""

    arch: str = of_network(
        "", "The cell: a name in genotypes.py, a genotype, a file with one, or the run folder of a search."
    )
    init_channels: Channels = of_network(36, "Number of channels C of the first cells.")
    layers: Layers = of_network(20, "Number of cells in the network.")
    auxiliary: bool = of_network(False, "Train with an auxiliary head after the second reduction cell.")

    epochs: PositiveInt = of_recipe(600, "Number of training epochs.")
    batch_size: AtLeastTwo = of_recipe(96, "Images per step, on all devices together.")
    learning_rate: PositiveFloat = of_recipe(0.025, "Initial learning rate, which a cosine schedule decreases to 0.")
    momentum: NonNegativeFloat = of_recipe(0.9, "Momentum of the SGD optimizer.")
    weight_decay: NonNegativeFloat = of_recipe(3e-4, "Weight decay of the SGD optimizer.")
    grad_clip: PositiveFloat = of_recipe(5.0, "Norm to which larger gradients are clipped.")
    auxiliary_weight: NonNegativeFloat = of_recipe(
        0.4, "Weight of the auxiliary head's loss.", need=Need("--auxiliary", lambda s: s.auxiliary)
    )
    drop_path_prob: Probability = of_recipe(
        0.2, "Probability of drop path on the operations, increased linearly from 0."
    )


def parse(arguments: list[str] | None = None) -> options.Parsed:
    """Parse a command line."""
    return options.parse_given(TrainSettings, PROG, __doc__.splitlines()[0], arguments)


def train(settings: TrainSettings, run: Path, resumed: bool) -> None:
    """Train the network in a run folder, or resume the run."""
    if not (resumed and launch.finished(run)):
        with blaming("--resume" if resumed else "--arch"):
            genotype = load_genotype(str(run) if resumed and (run / "genotype.json").exists() else settings.arch)
        train_genotype(genotype, settings, run, resumed)
    if launch.is_first():
        from analysis.card import add_card

        add_card(run)


def train_genotype(genotype: Genotype, settings: TrainSettings, run: Path, resumed: bool) -> None:
    """Train the network of a genotype. (Only this function needs torch.)"""
    import torch

    from lib.data_modules import make_data_module
    from lib.retraining import Recipe
    from lib.schedules import cosine_schedule
    from lib.trainer import make_module, make_trainer, retrain
    from model import NetworkCIFAR, size, smallest_image

    images = make_data_module(settings)
    smallest = smallest_image(settings.layers)
    if settings.auxiliary and images.image_size < smallest:
        raise InputError(
            f"--auxiliary: the head needs images of {smallest} pixels or more, but these have {images.image_size}; "
            f"expected --no_auxiliary or --image_size {smallest}"
        )

    def make_network(auxiliary: bool) -> NetworkCIFAR:
        shape = (settings.init_channels, settings.layers, len(images.classes))
        return NetworkCIFAR(genotype, *shape, auxiliary=auxiliary, in_channels=images.in_channels)

    trainer = make_trainer(settings, run)
    torch.manual_seed(settings.seed)
    recipe = Recipe.of(settings, cosine_schedule(settings.epochs))
    module = make_module(make_network(settings.auxiliary), "cifar", recipe, images, trainer, settings, genotype)
    with torch.device("meta"):  # the papers count the parameters without the auxiliary head
        cost = size(make_network(auxiliary=False), images.in_channels, images.image_size)
    retrain(trainer, module, images, genotype, cost, run, resumed, "train/train.py")


def main() -> None:
    given = parse()
    settings = given.settings
    name = f"retrain-{settings.dataset}-{short_name(settings.arch)}-{datetime.now():%Y%m%d-%H%M%S}"
    train(*launch.resolve_run(given, PROG, name))


if __name__ == "__main__":
    cli.run(main, PROG)
