"""The Trainer of a retraining: its run folder, checkpoints, logs and processes.

The networks of this field have a few million parameters, so each device holds a full copy (data parallelism).
"""

import json
import logging
import shlex
import signal
import sys
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from lib import checkpoints, cli, launch, plugins
from lib.callbacks import EpochLog, SaveAndStop, Stopped
from lib.cli import InputError, blaming
from lib.data_modules import RetrainDataModule
from lib.devices import check_device, memory_format, set_up_libraries
from lib.files import write_atomically
from lib.provenance import provenance, write_config
from lib.retraining import Recipe, Retraining


class CheckpointIO(TorchCheckpointIO):
    """Save and load Lightning's checkpoints with lib/checkpoints.py."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        checkpoints.save(Path(path), checkpoint)

    def load_checkpoint(self, path: str | Path, *_: object, **__: object) -> dict[str, Any]:
        return checkpoints.load(Path(path))


def make_trainer(settings: Any, run: Path) -> Trainer:
    """Make a Trainer from the flags of `RetrainSettings` and the recipe.

    Raises:
        InputError: This machine has no such devices, or they do not support the precision.
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
    # A genotype may leave weights unused. A static graph supports that at no cost, but not with accumulation.
    ddp = DDPStrategy(static_graph=not accumulating, find_unused_parameters=accumulating)
    launched, terminal = launch.launched(), sys.stdout.isatty()
    plugins: list[Any] = [CheckpointIO()]
    if launched is None:
        plugins.append(LightningEnvironment())  # not SLURM's, even within an allocation
    elif launched.launcher == "srun":
        plugins.append(SLURMEnvironment(auto_requeue=False))  # launch.requeue does it after `fit`
    decay = getattr(settings, "ema_decay", 0)
    checkpointing = ModelCheckpoint(
        run / "checkpoints",
        "step_{step:05d}",
        monitor="step",
        mode="max",
        save_top_k=2,
        save_on_train_epoch_end=True,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=settings.precision,
        strategy=ddp if several else "auto",
        plugins=plugins,
        sync_batchnorm=several and accelerator == "cuda",  # torch's SyncBatchNorm is for GPUs
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=getattr(settings, "grad_clip", None),
        default_root_dir=run,
        logger=TensorBoardLogger(run, name="tensorboard", version=""),
        callbacks=[
            *([EMAWeightAveraging(decay=decay)] if decay else []),
            EpochLog(run),
            SaveAndStop(run / "checkpoints", settings.checkpoint_steps),
            checkpointing,
            *([RichProgressBar()] if terminal else []),
        ],
        enable_progress_bar=terminal,
        enable_model_summary=False,
        benchmark=not settings.deterministic,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def silence() -> None:
    """Hide Lightning's messages and DDP's warning about the strides of depthwise weights."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=name)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")


def make_module(
    network: nn.Module,
    name: str,
    recipe: Recipe,
    data: RetrainDataModule,
    trainer: Trainer,
    settings: Any,
    cell: Any,
    top5: bool = False,
) -> Retraining:
    """Make the LightningModule for the devices of a Trainer.

    Args:
        name: The network's name in `model.NETWORKS`, for `model.load_network`.
        cell: The cell of the network, with `_asdict` and `to_json`.
        top5: Measure top-5 accuracy too.

    Raises:
        InputError: The batch size does not fit the images or the devices.
    """
    world, accumulate = trainer.world_size, settings.accumulate
    least = 2 * world * accumulate  # batch norm cannot normalize a single image
    if settings.batch_size < least:
        raise InputError(
            f"--batch_size: {settings.batch_size}, expected {least} or more: two images for each of {world} device(s) "
            f"in each of --accumulate {accumulate} passes"
        )
    if settings.batch_size > data.count:
        raise InputError(
            f"--batch_size: {settings.batch_size}, expected at most {data.count}, the number of training images"
        )
    if settings.precision == "64-true":
        network.double()  # before Lightning loads a checkpoint into it
    about = {"network": name, "settings": asdict(settings), "genotype": cell._asdict()}
    about |= {"classes": list(data.classes), "preprocessing": data.preprocessing._asdict()}
    about |= {"plugins": plugins.record()} if plugins.LOADED else {}
    layout = memory_format(settings.memory_format, trainer.strategy.root_device)
    return Retraining(network, len(data.classes), recipe, layout, about, settings.compile, top5)


def retrain(
    trainer: Trainer,
    module: Retraining,
    data: RetrainDataModule,
    cell: Any,
    cost: dict[str, int],
    run: Path,
    resumed: bool,
    script: str,
) -> None:
    """Train in a new run folder, or resume the run, and write its result. Only the first process writes.

    Args:
        cost: The size of the network, for the result.
        script: Path of the script, for the message after an interruption.

    Raises:
        InputError: The folder is not new, is in use, or cannot be written.
        FloatingPointError, KeyboardInterrupt: See `fit`.
    """
    flag = "--resume" if resumed else "--save"
    with cli.open_folder(run, flag, new=not resumed) if trainer.is_global_zero else nullcontext():
        if trainer.is_global_zero:
            with blaming(flag):
                if not resumed:
                    device = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
                    write_config(run, module.hparams["settings"], provenance(cli.command_line(), device))
                write_atomically(run / "genotype.json", cell.to_json())
                checkpoints.prune(run / "checkpoints")
        rows = fit(trainer, module, data, run, script)
        if trainer.is_global_zero:
            write_result(run, module, data, rows, cost)


def fit(trainer: Trainer, module: Retraining, data: RetrainDataModule, run: Path, script: str) -> list[dict[str, Any]]:
    """Train, starting from the last intact checkpoint of the run if there is one.

    Args:
        script: Path of the script, for the message after an interruption.

    Returns:
        The rows of metrics.csv.

    Raises:
        FloatingPointError: The loss or a gradient is not finite.
        InputError: The run folder cannot be written, all checkpoints are corrupt, or the images have changed.
        KeyboardInterrupt: A signal has stopped the run. The message says how to resume it.
    """
    command = f"python {script} --resume {shlex.quote(str(run))}{plugins.flags()}"
    history = next(callback for callback in trainer.callbacks if isinstance(callback, EpochLog))  # type: ignore[attr-defined]  # of Trainer
    with blaming("--resume"):
        last = checkpoints.load_last(run / "checkpoints", tell=trainer.is_global_zero)
    try:
        with cli.saving(run, f"resume with: {command}"):
            trainer.fit(module, datamodule=data, ckpt_path=last and last[0])
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch raises no more specific type
            raise
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise again at exit
        raise cli.Failure(
            f"a process that loads images was killed, perhaps because memory ran out; resume with: {command}"
        ) from error
    except (Stopped, SystemExit, KeyboardInterrupt):  # Lightning turns most KeyboardInterrupts into SystemExit
        cli.ignore_signals()
        launch.requeue()
        if not trainer.is_global_zero:
            sys.exit(130)
        done = f"after {len(history.rows)} of {trainer.max_epochs} epochs"
        raise KeyboardInterrupt(f"{done}; resume with: {command}") from None
    return history.rows


def write_result(run: Path, module: Retraining, data: RetrainDataModule, rows: list[dict[str, Any]], cost: Any) -> None:
    """Write result.json: the scores of the last epoch, the network's cost, and how the run was made."""
    scores = {name: rows[-1][f"test_{name}"] for name in ("accuracy", "top5") if f"test_{name}" in rows[-1]}
    about = dict(module.hparams)
    summary = {**scores, "test_images": data.test_count, **cost, "seed": about["settings"]["seed"], **about}
    summary |= {"images": data.count, "images_sha256": data.sha256}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in summary.items())
    with cli.saving(run, "resume the run to write its result"):
        write_atomically(run / "result.json", f"{{\n{lines}\n}}\n")
    print(
        f"test accuracy {100 * summary['accuracy']:.2f} %, {cost['params'] / 1e6:.3f} M parameters, "
        f"{cost['multiply_adds'] / 1e6:.1f} M multiply-adds\nrun folder {run}",
        flush=True,
    )
