"""The Trainer of a retraining: its run folder, checkpoints, logs and processes.

The networks of this field have a few million parameters, so each device holds all of them (data parallelism).
"""

import json
import logging
import math
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from lib import checkpoints, cli, launch
from lib.callbacks import History, SaveAndStop, Stopped
from lib.cli import InputError, blaming
from lib.devices import check_device, memory_format, set_up_libraries
from lib.files import write_atomically
from lib.images import Images
from lib.provenance import provenance, write_config
from lib.retraining import Recipe, Retraining


class CheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints as the files of lib/checkpoints.py."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        checkpoints.save(Path(path), checkpoint)

    def load_checkpoint(self, path: str | Path, *_: object, **__: object) -> dict[str, Any]:
        return checkpoints.load(Path(path))


def make_trainer(settings: Any, run: Path) -> Trainer:
    """The Trainer that the flags of `RetrainSettings` and of the recipe describe.

    Raises:
        InputError: this machine has no such devices, or the precision is not for them.
    """
    devices_here, num_nodes = launch.devices_and_nodes(settings.devices, settings.num_nodes)
    accelerator, devices = check_device(settings.device, devices_here)
    if settings.precision == "16-mixed" and accelerator != "cuda":
        raise InputError(
            f"--precision: 16-mixed needs a cuda device, not {accelerator}; expected bf16-mixed or 32-true"
        )
    set_up_libraries(settings.tf32, settings.deterministic)
    silence()
    several, accumulating = devices_here * num_nodes > 1, settings.accumulate > 1
    strategy: str | DDPStrategy = "auto"
    if several:
        # A genotype may leave weights unused. A static graph allows for that at no cost, but not with accumulation.
        strategy = DDPStrategy(static_graph=not accumulating, find_unused_parameters=accumulating)
    launched = launch.launched()
    plugins: list[Any] = [CheckpointIO()]
    if launched is None:
        plugins.append(LightningEnvironment())  # not SLURM's, although there may be an allocation
    elif launched.launcher == "srun":
        plugins.append(SLURMEnvironment(auto_requeue=False))  # launch.requeue does it after `fit`
    terminal = sys.stdout.isatty()
    folder, decay = run / "checkpoints", getattr(settings, "ema_decay", 0)
    last_two: dict[str, Any] = {"monitor": "step", "mode": "max", "save_top_k": 2, "save_on_train_epoch_end": True}
    names: dict[str, Any] = {"filename": "step_{step:05d}", "auto_insert_metric_name": False}
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=settings.precision,
        strategy=strategy,
        plugins=plugins,
        sync_batchnorm=several and accelerator == "cuda",  # torch's layer is for GPUs
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=getattr(settings, "grad_clip", None),
        default_root_dir=run,
        logger=TensorBoardLogger(run, name="tensorboard", version=""),
        callbacks=[
            *([EMAWeightAveraging(decay=decay)] if decay else []),
            History(run),
            SaveAndStop(folder, settings.checkpoint_steps),
            ModelCheckpoint(folder, **last_two, **names, enable_version_counter=False),
            *([RichProgressBar()] if terminal else []),
        ],
        enable_progress_bar=terminal,
        enable_model_summary=False,
        benchmark=not settings.deterministic,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def silence() -> None:
    """Hide Lightning's advice, and DDP's about the strides of depthwise weights, which it copies."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=name)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")


def make_scorer(device: str, checkpoint: dict[str, Any]) -> tuple[Trainer, torch.device]:
    """A Trainer that scores a network, in the precision of its training; half precision is for cuda devices only.

    Raises:
        InputError: this machine has no such device.
    """
    accelerator, devices = check_device(device)
    precision = checkpoint["hyper_parameters"]["settings"]["precision"]
    set_up_libraries(tf32=False)
    silence()
    if precision == "16-mixed" and accelerator != "cuda":
        precision = "32-true"
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options: dict[str, Any] = {"accelerator": accelerator, "devices": devices, "precision": precision, **off}
    return Trainer(plugins=[LightningEnvironment()], **options), torch.device(accelerator)


def make_module(
    network: nn.Module, recipe: Recipe, images: Images, trainer: Trainer, settings: Any, cell: Any, top5: bool = False
) -> Retraining:
    """The network with its recipe, for the devices of a Trainer.

    Args:
        cell: of the network, with `_asdict`.
        top5: measure top-5 accuracy, too.

    Raises:
        InputError: the batch size does not fit the images or the devices.
    """
    world, accumulate = trainer.world_size, settings.accumulate
    least = 2 * world * accumulate  # batch norm cannot normalize a single image
    if settings.batch_size < least:
        raise InputError(
            f"--batch_size: {settings.batch_size}, expected {least} or more: each of --accumulate {accumulate} passes "
            f"needs two images for each of {world} device(s)"
        )
    if settings.batch_size > images.count:
        raise InputError(f"--batch_size: {settings.batch_size}, but there are {images.count} training images")
    if images.test_count < world:
        raise InputError(f"--data: {images.test_count} test images; expected one or more for each of {world} device(s)")
    if settings.precision == "64-true":
        network.double()  # before Lightning loads a checkpoint into it
    largest = math.ceil(settings.batch_size / (world * accumulate))
    return Retraining(
        network,
        len(images.classes),
        recipe,
        memory_format(settings.memory_format, trainer.strategy.root_device),
        {"settings": asdict(settings), "genotype": cell._asdict(), "classes": list(images.classes)},
        (largest, images.in_channels, images.image_size, images.image_size) if settings.compile else (),
        top5,
        ignoring=getattr(settings, "broken_images", "refuse") == "skip",
    )


@contextmanager
def open_run(run: Path, resumed: bool, settings: Any, cell: Any, trainer: Trainer) -> Iterator[None]:
    """Make a run folder or take an existing one. The first process is the only one that writes to it.

    Raises:
        InputError: the folder is not new, in use, or cannot be written.
    """
    if not trainer.is_global_zero:
        yield
        return
    flag = "--resume" if resumed else "--save"
    if trainer.num_nodes > 1:
        print(f"waiting for the processes of {trainer.num_nodes} nodes", flush=True)
    with cli.open_folder(run, flag, new=not resumed):
        with blaming(flag):
            if not resumed:
                device = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
                write_config(run, asdict(settings), provenance(cli.command_line(), device))
            write_atomically(run / "genotype.json", cell.to_json())
            checkpoints.prune(run / "checkpoints")
        yield


def fit(trainer: Trainer, module: Retraining, images: Images, run: Path, script: str) -> list[dict[str, Any]]:
    """Train from the run's last intact checkpoint, if there is one.

    Args:
        script: path of the script, for the message after an interruption.

    Returns:
        The rows of metrics.csv.

    Raises:
        FloatingPointError: the loss or a gradient is not finite.
        InputError: the run folder cannot be written, all checkpoints are corrupt, or the images are others.
        KeyboardInterrupt: a signal has stopped the run; the message says how to resume it.
    """
    command = f"python {script} --resume {shlex.quote(str(run))}"
    history = next(callback for callback in trainer.callbacks if isinstance(callback, History))  # type: ignore[attr-defined]  # of Trainer
    with blaming("--resume"):
        last = checkpoints.load_last(run / "checkpoints", tell=trainer.is_global_zero)
    try:
        with cli.saving(run, f"go on with: {command}"):
            trainer.fit(module, datamodule=images, ckpt_path=last and last[0])
    except (Stopped, SystemExit):  # Lightning turns a KeyboardInterrupt into SystemExit
        launch.requeue()
        if not trainer.is_global_zero:
            sys.exit(130)
        done = f"after {len(history.rows)} of {trainer.max_epochs} epochs"
        raise KeyboardInterrupt(f"{done}; go on with: {command}") from None
    return history.rows


def write_result(run: Path, module: Retraining, images: Images, rows: list[dict[str, Any]], cost: Any) -> None:
    """Write result.json: the scores of the last epoch, the network's cost, and how the run was made."""
    last = rows[-1]
    scores = {name: last[f"test_{name}"] for name in ("accuracy", "top5") if f"test_{name}" in last}
    about = dict(module.hparams)
    summary = {**scores, "test_images": int(last.get("test_images", images.test_count)), **cost}
    summary |= {"seed": about["settings"]["seed"], **about, "images": images.count, "images_sha256": images.sha256}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in summary.items())
    with cli.saving(run, "resume it to write its result"):
        write_atomically(run / "result.json", f"{{\n{lines}\n}}\n")
    print(
        f"test accuracy {100 * summary['accuracy']:.2f} %, {cost['params'] / 1e6:.3f} M parameters, "
        f"{cost['multiply_adds'] / 1e6:.1f} M multiply-adds\nrun folder {run}",
        flush=True,
    )


def open_checkpoint(given: str) -> dict[str, Any]:
    """The checkpoint of a retraining that a command line names: a file, or the last one of a run folder.

    Raises:
        InputError: there is none, or it is corrupt.
    """
    path = Path(given)
    with blaming("checkpoint"):
        found = checkpoints.load_last(path / "checkpoints") if path.is_dir() else (path, checkpoints.load(path))
    if found is None:
        raise InputError(f"checkpoint: {path} has none; expected a checkpoint, or a run folder that has one")
    path, checkpoint = found
    if "hyper_parameters" not in checkpoint:
        raise InputError(f"checkpoint: {path} is not one of a retraining")
    return checkpoint


def network_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The network's weights in a checkpoint, or their running mean if the recipe has one."""
    prefix = "network."
    return {n.removeprefix(prefix): w for n, w in checkpoint["state_dict"].items() if n.startswith(prefix)}


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Number of epochs that were complete when a checkpoint was saved."""
    return len(checkpoint["callbacks"]["History"]["rows"])
