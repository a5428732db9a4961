"""Retrain a cell from scratch on ImageNet, or on any pictures in a folder for each class.

    python imagenet/train.py --arch LambdaDARTS_corr_0 --data ILSVRC --devices 8 --save runs/imagenet
    torchrun --nproc_per_node 8 imagenet/train.py --arch runs/search-... --data ILSVRC --save runs/imagenet
    srun python imagenet/train.py --arch DARTS_V2 --data ILSVRC --save runs/imagenet        # in a job of SLURM
    python imagenet/train.py --resume runs/imagenet                                         # with the next batch

--data is ILSVRC's folder (with Data/CLS-LOC/train and val; imagenet/prepare.py sorts a raw val) or one with
train/<class>/* and val/<class>/*. The defaults are the recipe that the papers of this family share (the mobile setting
of DARTS, ICLR 2019, section 3.3, with P-DARTS's and PC-DARTS's batch of 1024). The run folder is that of
train/train.py; imagenet/test.py scores it and imagenet/export.py takes the network out of it.
"""

import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

import cli
from cli import (
    Channels,
    ImageSize,
    InputError,
    Layers,
    NonNegativeFloat,
    PositiveFloat,
    Probability,
    Workers,
    blaming,
    option,
)
from genotypes import load_genotype
from lib import launch
from search.settings import DevicesSettings, RunSettings

PROG = "train.py"


@dataclass
class DataSettings:
    """data"""

    data: str = option("data/ILSVRC", "folder with train/<class>/* and val/<class>/*, or ILSVRC's with Data/CLS-LOC")
    classes: NonNegativeInt = option(0, "how many classes there must be (ImageNet: 1000); 0 for any number")
    image_size: ImageSize = option(224, "height and width of the images in pixels")
    workers: Workers = option(-1, "processes that decode, for each device; -1: the cores shared by the devices")
    broken_images: Literal["refuse", "skip"] = option(
        "refuse", "pictures that cannot be read: end the run, or name them and go on without"
    )


@dataclass
class NetworkSettings:
    """network"""

    arch: str = option("", "the cell: a name in genotypes.py, a genotype file, or the run folder of a search")
    init_channels: Channels = option(48, "channels C of the first cells")
    layers: Layers = option(14, "number of cells")
    auxiliary: bool = option(True, "train with an auxiliary head after the second reduction cell")


@dataclass
class RecipeSettings:
    """recipe"""

    epochs: PositiveInt = option(250, "epochs of training")
    batch_size: PositiveInt = option(1024, "images of a step, on all devices together")
    learning_rate: PositiveFloat = option(0.5, "at the start of the schedule, were there no warm-up")
    schedule: Literal["linear", "cosine"] = option(
        "linear", "to 0: on a line, whose last five epochs fall at a fifth of the slope, or a cosine"
    )
    warm_up: NonNegativeInt = option(5, "epochs in which the learning rate rises")
    momentum: NonNegativeFloat = option(0.9, "of SGD")
    weight_decay: NonNegativeFloat = option(3e-5, "of SGD")
    label_smoothing: Probability = option(0.1, "share of a label that is spread over all classes")
    grad_clip: PositiveFloat = option(5.0, "largest norm of the gradient")
    auxiliary_weight: NonNegativeFloat = option(0.4, "of the auxiliary head's loss")
    drop_path_prob: Probability = option(0.0, "drop path on the operations, ramped linearly from 0")
    ema_decay: Probability = option(
        0.0, "score and save a running mean of the weights with this decay a step; 0 for the weights themselves"
    )


@dataclass
class TrainSettings(DevicesSettings, RunSettings, RecipeSettings, NetworkSettings, DataSettings):
    """All settings of a retraining."""


def train(settings: TrainSettings, run: Path, resumed: bool) -> None:
    """Train the network and leave a run folder, or resume the one that is there."""
    if resumed and cli.finished(run):
        return
    with blaming("--resume" if resumed else "--arch"):
        genotype = load_genotype(str(run) if (run / "genotype.json").exists() and resumed else settings.arch)

    # Imported here: --help, a wrong flag and a wrong genotype are answered before torch is loaded.
    import torch

    from analysis.card import write_card
    from imagenet.images import FolderImages, count_workers, read_splits
    from lib.retraining import Recipe, cosine, linear, warm_up
    from lib.trainer import fit, make_module, make_trainer, open_run, write_result
    from model import NetworkImageNet, size, smallest_image

    smallest = smallest_image(settings.layers, imagenet=True) if settings.auxiliary else 32
    if settings.image_size < smallest:
        raise InputError(
            f"--image_size: {settings.image_size}, expected {smallest} or more"
            + (", which the auxiliary head needs, or --no_auxiliary" if settings.auxiliary else "")
        )
    trainer = make_trainer(settings, run)
    images = FolderImages(
        *read_splits(Path(settings.data), settings.classes),
        settings.batch_size,
        settings.image_size,
        settings.seed,
        count_workers(settings.workers, trainer.world_size // trainer.num_nodes),
        skip_broken=settings.broken_images == "skip",
    )

    def make_network(auxiliary: bool) -> NetworkImageNet:
        return NetworkImageNet(genotype, settings.init_channels, settings.layers, len(images.classes), auxiliary)

    torch.manual_seed(settings.seed)
    schedule = {"linear": linear, "cosine": cosine}[settings.schedule](settings.epochs)
    recipe = Recipe.of(settings, warm_up(schedule, settings.warm_up))
    module = make_module(make_network(settings.auxiliary), recipe, images, trainer, settings, genotype, top5=True)
    images.check_shared_memory(trainer.world_size, trainer.num_nodes, settings.accumulate)
    with open_run(run, resumed, settings, genotype, trainer):
        rows = fit(trainer, module, images, run, "imagenet/train.py")
        if trainer.is_global_zero:
            with torch.device("meta"):  # the papers count the parameters without the auxiliary head
                cost = size(make_network(auxiliary=False), images.in_channels, images.image_size)
            write_result(run, module, images, rows, cost)
            with cli.warning(f"no model card; python analysis/card.py {run} writes it"):
                write_card(run)


def main() -> None:
    arguments = sys.argv[1:]
    settings = cli.parse(TrainSettings, PROG, __doc__.splitlines()[0], arguments)
    name = f"imagenet-{Path(settings.arch).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    train(*launch.resolve(settings, PROG, arguments, name, (*launch.MOVABLE, "workers", "broken_images")))


if __name__ == "__main__":
    cli.run(main, PROG)
