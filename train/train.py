"""Retrain a cell from scratch: the network of a genotype on CIFAR-10, CIFAR-100, SVHN, digits or a folder of images.

    python train/train.py --arch LambdaDARTS_cifar10_s2 --init_channels 16 --auxiliary --cutout --download
    python train/train.py --arch runs/search-... --dataset digits --init_channels 8 --layers 5 --epochs 10
    python train/train.py --arch DARTS_V2 --auxiliary --cutout --devices 2     # a process for each of two GPUs
    python train/train.py --resume runs/retrain-...                            # go on with an interrupted run

A run folder holds config.yaml, genotype.json, metrics.csv (a row an epoch, accuracies in [0, 1]), tensorboard/,
checkpoints/last.ckpt and, once it is finished, result.json. The test images are scored each epoch for the record;
nothing is chosen by them: the result is the last epoch's. The training itself is in retraining.py.
"""

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

import cli
from cli import InputError, NonNegativeFloat, PositiveFloat, Probability, blaming, option
from genotypes import load_genotype
from search.settings import DataSettings, RunSettings

PROG = "train.py"


@dataclass
class NetworkSettings:
    """network"""

    arch: str = option("", "the cell: a name in genotypes.py, a genotype file, or the run folder of a search")
    init_channels: PositiveInt = option(36, "channels C of the first cells")
    layers: PositiveInt = option(20, "number of cells")
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
class ExecutionSettings:
    """execution"""

    devices: PositiveInt = option(1, "number of devices, each with a process and a share of every batch")
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = option("32-true", "of the network's passes")


@dataclass
class TrainSettings(ExecutionSettings, RunSettings, RecipeSettings, NetworkSettings, DataSettings):
    """All settings of a retraining. The defaults are those of DARTS on CIFAR-10 (ICLR 2019, section 3.2)."""


def resolve(arguments: list[str]) -> tuple[TrainSettings, Path, bool]:
    """The settings that a command line means, the run folder, and whether the run is resumed."""
    settings = cli.parse(TrainSettings, PROG, __doc__.splitlines()[0], arguments)
    if settings.resume:
        return cli.resume(settings, PROG, arguments), Path(settings.resume), True
    if not settings.arch:
        raise InputError("--arch: expected a cell of genotypes.py, a genotype file or a run folder, none is given")
    name = f"retrain-{settings.dataset}-{Path(settings.arch).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    return settings, Path(settings.save or f"runs/{name}"), False


def check(settings: TrainSettings, count: int, image_size: int) -> None:
    """Refuse settings that `count` training images of `image_size` pixels do not allow."""
    from model import AuxiliaryHead
    from model_search import cell_kinds

    if settings.batch_size > count:
        raise InputError(f"--batch_size: {settings.batch_size}, but there are {count} images; expected at most {count}")
    reductions = cell_kinds(settings.layers)[: 2 * settings.layers // 3 + 1].count("reduce")
    smallest = (AuxiliaryHead.SMALLEST - 1) * 2**reductions + 1
    if settings.auxiliary and image_size < smallest:
        raise InputError(
            f"--auxiliary: its head needs images of {smallest} pixels or more and these have {image_size}; "
            f"expected --no_auxiliary or --image_size {smallest}"
        )


def train(settings: TrainSettings, run: Path, resumed: bool) -> None:
    """Train the network and leave a run folder; `resumed` goes on with the one that is there."""
    result = run / "result.json"
    if resumed and result.exists():
        with blaming("--resume"):
            accuracy = json.loads(result.read_text(encoding="utf-8"))["accuracy"]
        print(f"run {run} is finished: test accuracy {100 * accuracy:.2f} %")
        return
    with blaming("--resume" if resumed else "--arch"):
        genotype = load_genotype(str(run) if resumed else settings.arch)

    # Imported here: --help, a wrong flag and a wrong genotype are answered before torch is loaded.
    import torch
    from pytorch_lightning.utilities import rank_zero_only

    import data
    from model import NetworkCIFAR, size
    from retraining import Recipe, Retraining, TensorImages, cosine, fit, last_checkpoint, load_checkpoint
    from utils import check_device, provenance, write_atomically, write_config

    accelerator, devices = check_device(settings.device, settings.devices)
    if settings.precision == "16-mixed" and accelerator != "cuda":
        raise InputError(
            f"--precision: 16-mixed needs a cuda device, not {accelerator}; expected bf16-mixed or 32-true"
        )
    share, rest = divmod(settings.batch_size, settings.devices)
    if rest or share < 2:  # batch norm cannot normalize a single image
        raise InputError(
            f"--batch_size: {settings.batch_size}, expected a multiple of --devices {settings.devices}, "
            "two images or more for each"
        )
    # Each further device has a process that runs this script, when the first one's has made the folder.
    first = rank_zero_only.rank == 0
    if first and not resumed:
        cli.check_new_folder(run, "--save")
    if resumed and last_checkpoint(run).exists():
        with blaming("--resume"):
            load_checkpoint(last_checkpoint(run))
    with blaming(f"--data: {settings.dataset}"):
        dataset = data.load(settings.dataset, settings.data, settings.image_size, settings.download)
    check(settings, len(dataset.train), dataset.image_size)

    classes = len(dataset.classes)
    shape = (genotype, settings.init_channels, settings.layers, classes)
    torch.manual_seed(settings.seed)
    network = NetworkCIFAR(*shape, settings.auxiliary, dataset.in_channels)
    recipe = Recipe(
        epochs=settings.epochs,
        learning_rate=cosine(settings.learning_rate, settings.epochs),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        grad_clip=settings.grad_clip,
        auxiliary_weight=settings.auxiliary_weight,
        drop_path_prob=settings.drop_path_prob,
    )
    with blaming("--cutout_length"):
        augmentation = data.Augmentation.training(dataset, settings.cutout_length if settings.cutout else 0)
    images = TensorImages(dataset, settings.batch_size, augmentation, settings.seed)
    about = {"settings": {**asdict(settings), "save": str(run)}, "genotype": genotype._asdict()}
    if first and not resumed:
        cli.new_folder(run, "--save")
        write_atomically(run / "genotype.json", genotype.to_json())
        write_config(run, about["settings"], provenance(cli.command_line(), f"{settings.devices} x {accelerator}"))
    rows = fit(
        Retraining(network, classes, recipe),
        images,
        run,
        about,
        resume=f"python train/train.py --resume {shlex.quote(str(run))}",
        accelerator=accelerator,
        devices=devices,
        precision=settings.precision,
    )
    if not first:
        return
    # The papers count the parameters without the auxiliary head.
    with torch.device("meta"):
        counted = size(NetworkCIFAR(*shape, in_channels=dataset.in_channels), dataset.in_channels, dataset.image_size)
    summary = {"accuracy": rows[-1]["test_accuracy"], **counted, "seed": settings.seed, **about}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in summary.items())
    write_atomically(result, f"{{\n{lines}\n}}\n")
    print(
        f"test accuracy {100 * summary['accuracy']:.2f} %, {counted['params'] / 1e6:.3f} M parameters, "
        f"{counted['multiply_adds'] / 1e6:.1f} M multiply-adds\nrun folder {run}",
        flush=True,
    )


def main() -> None:
    train(*resolve(sys.argv[1:]))


if __name__ == "__main__":
    cli.run(main, PROG)
