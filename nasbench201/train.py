"""Train the network of one cell of NAS-Bench-201 from scratch, as the benchmark did for its table.

    python nasbench201/train.py --arch "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|"
    python nasbench201/train.py --arch runs/search-... --dataset cifar100 --download
    python nasbench201/train.py --arch 1462                   # a cell by its index in NAS-Bench-201
    python nasbench201/train.py --resume runs/retrain-...                      # resume an interrupted run

The defaults are the benchmark's 200-epoch recipe (Dong and Yang, ICLR 2020, section 2.3 and table 2). As in its code,
the cosine changes the learning rate once per epoch. The script trains on all training images, as the benchmark did for
CIFAR-10's test accuracy. The run folder has the same files as that of train/train.py. test.py scores the network.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from lib import cli, launch, options
from lib.cli import InputError, blaming
from lib.options import AtLeastTwo, Channels, Layers, NonNegativeFloat, PositiveFloat, PositiveInt
from lib.settings import ImageSettings, RetrainSettings
from nasbench201.cells import Cell201, load_cell

PROG = "train.py"


of_network, of_recipe = partial(options.option, group="network"), partial(options.option, group="recipe")


@dataclass
class NasBench201TrainSettings(RetrainSettings, ImageSettings):
    """The settings of nasbench201/train.py. The defaults are the benchmark's."""

    arch: str = of_network(
        "", "The cell: its string, a file with that string, the run folder of a search, or its index in NAS-Bench-201."
    )
    table: str = of_network(
        "", "Table in which an index in --arch is looked up. By default, the table that comes with the project."
    )
    init_channels: Channels = of_network(16, "Number of channels C of the first stage.")
    cells_per_stage: Layers = of_network(5, "Number of cells N in each of the three stages.")

    epochs: PositiveInt = of_recipe(200, "Number of epochs of training.")
    batch_size: AtLeastTwo = of_recipe(256, "Number of images in each step, on all devices together.")
    learning_rate: PositiveFloat = of_recipe(0.1, "Initial learning rate, which decays to 0 by a cosine.")
    momentum: PositiveFloat = of_recipe(0.9, "Nesterov momentum of SGD.")
    weight_decay: NonNegativeFloat = of_recipe(5e-4, "Weight decay of SGD.")


def parse(arguments: list[str] | None = None) -> options.Parsed:
    """Parse a command line."""
    return options.parse_given(NasBench201TrainSettings, PROG, __doc__.splitlines()[0], arguments)


def find_cell(settings: NasBench201TrainSettings) -> Cell201:
    """The cell that --arch names.

    Raises:
        InputError: There is no such cell.
    """
    if not settings.arch.isdecimal():
        if settings.table:
            raise InputError(f"--table: this flag needs the index of a cell as --arch, not {settings.arch!r}")
        with blaming("--arch"):
            return load_cell(settings.arch)
    from nasbench201.accuracies import SHIPPED, open_table

    with blaming("--table"):
        table = open_table(settings.table or SHIPPED)
    with blaming("--arch"):
        return table.cell(int(settings.arch))


def train(settings: NasBench201TrainSettings, run: Path, resumed: bool) -> None:
    """Train the network in a run folder, or resume the run."""
    if not (resumed and launch.finished(run)):
        if resumed and (run / "genotype.json").exists():
            with blaming("--resume"):
                cell = load_cell(str(run))
        else:
            cell = find_cell(settings)
        train_cell(cell, settings, run, resumed)
    if launch.is_first():
        from analysis.card import add_card

        add_card(run)


def train_cell(cell: Cell201, settings: NasBench201TrainSettings, run: Path, resumed: bool) -> None:
    """Train the network of a cell. (Only this function needs torch.)"""
    import torch

    from lib.data_modules import make_data_module
    from lib.retraining import Recipe
    from lib.schedules import cosine_schedule
    from lib.trainer import make_module, make_trainer, retrain
    from model import size
    from nasbench201.networks import Network201

    images = make_data_module(settings)
    shape = (settings.init_channels, settings.cells_per_stage, len(images.classes), images.in_channels)
    trainer = make_trainer(settings, run)
    torch.manual_seed(settings.seed)
    recipe = Recipe.of(settings, cosine_schedule(settings.epochs), nesterov=True)
    module = make_module(Network201(cell, *shape), "nasbench201", recipe, images, trainer, settings, cell)
    with torch.device("meta"):
        cost = size(Network201(cell, *shape), images.in_channels, images.image_size)
    retrain(trainer, module, images, cell, cost, run, resumed, "nasbench201/train.py")


def main() -> None:
    given = parse()
    name = f"retrain-{given.settings.dataset}-nasbench201-{datetime.now():%Y%m%d-%H%M%S}"
    train(*launch.resolve_run(given, PROG, name))


if __name__ == "__main__":
    cli.run(main, PROG)
