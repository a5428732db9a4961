"""Retrain a cell from scratch on ImageNet, or on any pictures in a folder for each class.

    python imagenet/train.py --arch LambdaDARTS_corr_0 --data ILSVRC --devices 8 --save runs/imagenet
    torchrun --nproc_per_node 8 imagenet/train.py --arch runs/search-... --data ILSVRC --save runs/imagenet
    srun python imagenet/train.py --arch DARTS_V2 --data ILSVRC --save runs/imagenet        # in a job of SLURM
    python imagenet/train.py --resume runs/imagenet                                         # resume at the next batch

--data is ILSVRC's folder (with Data/CLS-LOC/train and val; imagenet/prepare.py sorts a raw val) or a folder with
train/<class>/* and val/<class>/*. The defaults are the recipe that the papers of this family share (the mobile setting
of DARTS, ICLR 2019, section 3.3, with P-DARTS's and PC-DARTS's batch of 1024). The run folder is like that of
train/train.py. imagenet/test.py scores it, and train/export.py exports the network.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

from genotypes import Genotype, load_genotype, short_name
from lib import cli, launch, options
from lib.cli import InputError, blaming
from lib.options import (
    AtLeastTwo,
    Channels,
    ImageSize,
    Layers,
    Need,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Workers,
)
from lib.settings import RetrainSettings

PROG = "train.py"


of_data, of_network, of_recipe = (partial(options.option, group=name) for name in ("data", "network", "recipe"))


@dataclass
class ImageNetTrainSettings(RetrainSettings):
    """The settings of imagenet/train.py. The defaults are the recipe that the papers of this family share."""

    data: str = of_data(
        "data/ILSVRC", "Folder with train/<class>/* and val/<class>/*, or ILSVRC's folder with Data/CLS-LOC."
    )
    classes: NonNegativeInt = of_data(0, "Expected number of classes (ImageNet: 1000). 0 allows any number.")
    image_size: ImageSize = of_data(224, "Height and width of the images in pixels.")
    workers: Workers = of_data(
        -1, "Number of processes that decode images for each device. -1 divides the cores among the devices."
    )

    arch: str = of_network(
        "", "The cell: a name in genotypes.py, a genotype, a file with one, or the run folder of a search."
    )
    init_channels: Channels = of_network(48, "Number of channels C of the first cells.")
    layers: Layers = of_network(14, "Number of cells in the network.")
    auxiliary: bool = of_network(True, "Train with an auxiliary head after the second reduction cell.")

    epochs: PositiveInt = of_recipe(250, "Number of training epochs.")
    batch_size: AtLeastTwo = of_recipe(1024, "Images per step, on all devices together.")
    learning_rate: PositiveFloat = of_recipe(
        0.5, "Initial learning rate of the schedule. The warm-up scales it down in its epochs."
    )
    schedule: Literal["linear", "cosine"] = of_recipe(
        "linear",
        "Schedule that decreases the learning rate to 0: linear (five times slower in the last five epochs) or cosine.",
    )
    warm_up: NonNegativeInt = of_recipe(5, "Number of warm-up epochs, in which the learning rate increases.")
    momentum: NonNegativeFloat = of_recipe(0.9, "Momentum of the SGD optimizer.")
    weight_decay: NonNegativeFloat = of_recipe(3e-5, "Weight decay of the SGD optimizer.")
    label_smoothing: Probability = of_recipe(0.1, "Share of each label that is spread over all classes.")
    grad_clip: PositiveFloat = of_recipe(5.0, "Norm to which larger gradients are clipped.")
    auxiliary_weight: NonNegativeFloat = of_recipe(
        0.4, "Weight of the auxiliary head's loss.", need=Need("--auxiliary", lambda s: s.auxiliary)
    )
    drop_path_prob: Probability = of_recipe(
        0.0, "Probability of drop path on the operations, increased linearly from 0."
    )
    ema_decay: Probability = of_recipe(
        0.0, "Score and save a moving average of the weights with this decay per step. 0 uses the weights themselves."
    )


def parse(arguments: list[str] | None = None) -> options.Parsed:
    """Parse a command line."""
    return options.parse_given(ImageNetTrainSettings, PROG, __doc__.splitlines()[0], arguments)


def train(settings: ImageNetTrainSettings, run: Path, resumed: bool) -> None:
    """Train the network in a run folder, or resume the run."""
    if not (resumed and launch.finished(run)):
        with blaming("--resume" if resumed else "--arch"):
            genotype = load_genotype(str(run) if resumed and (run / "genotype.json").exists() else settings.arch)
        train_genotype(genotype, settings, run, resumed)
    if launch.is_first():
        from analysis.card import add_card

        add_card(run)


def train_genotype(genotype: Genotype, settings: ImageNetTrainSettings, run: Path, resumed: bool) -> None:
    """Train the network of a genotype. (Only this function needs torch.)"""
    import torch

    from imagenet.images import FolderDataModule, count_workers, read_splits
    from lib.preprocessing import papers_preprocessing
    from lib.retraining import Recipe
    from lib.schedules import cosine_schedule, linear_schedule, warm_up
    from lib.trainer import make_module, make_trainer, retrain
    from model import NetworkImageNet, size, smallest_image

    smallest = smallest_image(settings.layers, imagenet=True) if settings.auxiliary else 32
    if settings.image_size < smallest:
        raise InputError(
            f"--image_size: {settings.image_size}, expected {smallest} or more"
            + (", which the auxiliary head needs, or --no_auxiliary" if settings.auxiliary else "")
        )
    trainer = make_trainer(settings, run)
    images = FolderDataModule(
        *read_splits(Path(settings.data), settings.classes),
        settings.batch_size,
        papers_preprocessing(settings.image_size),
        settings.seed,
        count_workers(settings.workers, trainer.world_size // trainer.num_nodes),
    )

    def make_network(auxiliary: bool) -> NetworkImageNet:
        return NetworkImageNet(genotype, settings.init_channels, settings.layers, len(images.classes), auxiliary)

    torch.manual_seed(settings.seed)
    schedules = {"linear": linear_schedule, "cosine": cosine_schedule}
    recipe = Recipe.of(settings, warm_up(schedules[settings.schedule](settings.epochs), settings.warm_up))
    network = make_network(settings.auxiliary)
    module = make_module(network, "imagenet", recipe, images, trainer, settings, genotype, top5=True)
    with torch.device("meta"):  # the papers count the parameters without the auxiliary head
        cost = size(make_network(auxiliary=False), images.in_channels, images.image_size)
    retrain(trainer, module, images, genotype, cost, run, resumed, "imagenet/train.py")


def main() -> None:
    given = parse()
    name = f"imagenet-{short_name(given.settings.arch)}-{datetime.now():%Y%m%d-%H%M%S}"
    train(*launch.resolve_run(given, PROG, name, (*launch.MOVABLE, "workers")))


if __name__ == "__main__":
    cli.run(main, PROG)
