"""Train the network of one cell of NAS-Bench-201 from scratch, as the benchmark did for its table.

    python nasbench201/train.py --arch "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|"
    python nasbench201/train.py --arch runs/search-... --dataset cifar100 --download
    python nasbench201/train.py --arch 1462 --table table.safetensors          # a cell by its index in the table
    python nasbench201/train.py --resume runs/retrain-...                      # go on with an interrupted run

The defaults are the benchmark's 200-epoch recipe (Dong and Yang, ICLR 2020, section 2.3 and table 2), but for the
cosine, which falls from epoch to epoch here and from step to step there. It trains on all training images, as for the
table's CIFAR-10 test accuracy. The run folder is that of train/train.py, and train/test.py scores it.
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
class TrainSettings(RetrainSettings, ImageSettings):
    """The settings of the training of one cell. The defaults are the benchmark's."""

    arch: str = of_network(
        "", "The cell: its string, a file with that string, the run folder of a search, or its index in --table."
    )
    table: str = of_network("", "Accuracy table, for a cell given by its index.")
    init_channels: Channels = of_network(16, "Channels C of the first stage.")
    cells_per_stage: Layers = of_network(5, "Cells N of each of the three stages.")

    epochs: PositiveInt = of_recipe(200, "Epochs of training.")
    batch_size: AtLeastTwo = of_recipe(256, "Images per step, on all devices together.")
    learning_rate: PositiveFloat = of_recipe(0.1, "Learning rate at the start of the cosine, which ends at 0.")
    momentum: PositiveFloat = of_recipe(0.9, "Momentum of SGD, in Nesterov's form.")
    weight_decay: NonNegativeFloat = of_recipe(5e-4, "Weight decay of SGD.")


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
    from analysis.card import add_card

    if resumed and launch.finished(run):
        if launch.is_first():
            add_card(run)  # a run may have been killed after its result
        return
    if resumed and (run / "genotype.json").exists():
        with blaming("--resume"):
            cell = load_cell(str(run))
    else:
        cell = find_cell(settings)

    # Imported here: --help, a wrong flag and a wrong cell are answered before torch is loaded.
    import torch

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
            add_card(run)


def main() -> None:
    given = options.parse_given(TrainSettings, PROG, __doc__.splitlines()[0])
    name = f"retrain-{given.settings.dataset}-nasbench201-{datetime.now():%Y%m%d-%H%M%S}"
    train(*launch.resolve(given, PROG, name))


if __name__ == "__main__":
    cli.run(main, PROG)
