"""Train the network of one cell of NAS-Bench-201 from scratch, as the benchmark did for its table.

    python nasbench201/train.py --arch "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|"
    python nasbench201/train.py --arch runs/search-... --dataset cifar100 --download
    python nasbench201/train.py --arch 1462 --table table.safetensors          # a cell by its index in the table
    python nasbench201/train.py --resume runs/retrain-...                      # go on with an interrupted run

The defaults are the benchmark's 200-epoch recipe (Dong and Yang, ICLR 2020, section 2.3 and table 2), but for the
cosine, which falls from epoch to epoch here and from step to step there. It trains on all training images, as for the
table's CIFAR-10 test accuracy. The run folder is that of train/train.py, and train/test.py scores it.
"""

import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jsonargparse.typing import PositiveInt

import cli
from cli import Channels, InputError, Layers, NonNegativeFloat, PositiveFloat, blaming, option
from lib import launch
from nasbench201.cells import Cell201, load_cell
from search.settings import DataSettings, DevicesSettings, RunSettings

PROG = "train.py"


@dataclass
class NetworkSettings:
    """network"""

    arch: str = option("", "the cell: its string, a file with that, a search's run folder, or its index in --table")
    table: str = option("", "accuracy table, for a cell by its index")
    init_channels: Channels = option(16, "channels C of the first stage")
    cells_per_stage: Layers = option(5, "cells N of each of the three stages")


@dataclass
class RecipeSettings:
    """recipe"""

    epochs: PositiveInt = option(200, "epochs of training")
    batch_size: PositiveInt = option(256, "images of a step, on all devices together")
    learning_rate: PositiveFloat = option(0.1, "at the start of the cosine, which ends at 0")
    momentum: PositiveFloat = option(0.9, "of SGD, Nesterov's")
    weight_decay: NonNegativeFloat = option(5e-4, "of SGD")


@dataclass
class TrainSettings(DevicesSettings, RunSettings, RecipeSettings, NetworkSettings, DataSettings):
    """All settings of a training of one cell."""


def find_cell(settings: TrainSettings) -> Cell201:
    """The cell that --arch names.

    Raises:
        InputError: it names none.
    """
    if settings.table and not settings.arch.isdecimal():
        raise InputError(f"--table: it is for a cell by its index, and --arch is {settings.arch!r}")
    if settings.arch.isdecimal():
        if not settings.table:
            raise InputError(f"--arch: {settings.arch} is an index; expected --table beside it, which has the order")
        from nasbench201.table import open_table

        with blaming("--table"):
            table = open_table(Path(settings.table))
        with blaming("--arch"):
            return table.cell(int(settings.arch))
    with blaming("--arch"):
        return load_cell(settings.arch)


def train(settings: TrainSettings, run: Path, resumed: bool) -> None:
    """Train the network and leave a run folder, or resume the one that is there."""
    if resumed and cli.finished(run):
        return
    if resumed and (run / "genotype.json").exists():
        with blaming("--resume"):
            cell = load_cell(str(run))
    else:
        cell = find_cell(settings)

    # Imported here: --help, a wrong flag and a wrong cell are answered before torch is loaded.
    import torch

    from analysis.card import write_card
    from lib.images import tensor_images
    from lib.retraining import Recipe, cosine
    from lib.trainer import fit, make_module, make_trainer, open_run, write_result
    from model import size
    from nasbench201.networks import Network

    images = tensor_images(settings)
    shape = (settings.init_channels, settings.cells_per_stage, len(images.classes), images.in_channels)
    trainer = make_trainer(settings, run)
    torch.manual_seed(settings.seed)
    recipe = Recipe.of(settings, cosine(settings.epochs), nesterov=True)
    module = make_module(Network(cell, *shape), recipe, images, trainer, settings, cell)
    with open_run(run, resumed, settings, cell, trainer):
        rows = fit(trainer, module, images, run, "nasbench201/train.py")
        if trainer.is_global_zero:
            with torch.device("meta"):
                cost = size(Network(cell, *shape), images.in_channels, images.image_size)
            write_result(run, module, images, rows, cost)
            with cli.warning(f"no model card; python analysis/card.py {run} writes it"):
                write_card(run)


def main() -> None:
    arguments = sys.argv[1:]
    settings = cli.parse(TrainSettings, PROG, __doc__.splitlines()[0], arguments)
    name = f"retrain-{settings.dataset}-nasbench201-{datetime.now():%Y%m%d-%H%M%S}"
    train(*launch.resolve(settings, PROG, arguments, name))


if __name__ == "__main__":
    cli.run(main, PROG)
