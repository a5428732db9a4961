"""The Trainer of a retraining: its run folder, checkpoints, logs, signals and processes.

The networks of this field have a few million parameters, so each device holds all of them (data parallelism).
"""

import json
import logging
import math
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

import cli
from cli import InputError, blaming
from files import write_atomically, write_csv
from lib import checkpoints, launch
from lib.images import Images
from lib.retraining import Recipe, Retraining
from utils import check_device, memory_format, provenance, set_up_libraries, write_config

#: steps between two agreements of several processes on a stop, which wait for the GPU
AGREE_EVERY = 10


class CheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints as the files of lib/checkpoints.py."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        checkpoints.save(Path(path), checkpoint)

    def load_checkpoint(self, path: str | Path, *_: object, **__: object) -> dict[str, Any]:
        return checkpoints.load(Path(path))


class Stopped(Exception):
    """A signal has stopped the training, after a checkpoint."""


class SaveAndStop(Callback):
    """Save within an epoch, and save and stop after a complete step when a signal asks for it.

    The end of an epoch is saved by ModelCheckpoint when the test images have been scored. A checkpoint before the last
    step lets a run that is stopped or killed while they are scored repeat that step only.

    Args:
        folder: of the checkpoints.
        every: steps between two checkpoints; 0 for none within an epoch.
    """

    def __init__(self, folder: Path, every: int = 0) -> None:
        self.folder, self.every = folder, every

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, launch.stop)  # Lightning's own handlers save in the middle of a step
        if trainer.strategy.broadcast(trainer.global_step) != trainer.global_step:
            raise RuntimeError(f"the nodes see different checkpoints in {self.folder}")

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._asked(trainer):
            raise Stopped

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        done, left, step = batch_idx + 1, trainer.num_training_batches - batch_idx - 1, trainer.global_step
        if done % trainer.accumulate_grad_batches or not left:
            return
        stop = self._asked(trainer, step)
        if stop or left <= trainer.accumulate_grad_batches or (self.every and step % self.every == 0):
            trainer.save_checkpoint(self.folder / f"step_{step:05d}.ckpt")
        if stop:
            raise Stopped

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._asked(trainer, batch_idx):
            raise Stopped

    def _asked(self, trainer: Trainer, step: int = 0) -> bool:
        """True if a signal asks to stop. Several processes agree on it every AGREE_EVERY steps only."""
        if trainer.world_size > 1 and step % AGREE_EVERY:
            return False
        return trainer.strategy.reduce_boolean_decision(bool(launch.stop.signum), all=False)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """End the processes that Lightning has started for other devices; they would wait for this one."""
        processes = getattr(trainer.strategy.launcher, "procs", [])
        for process in processes:
            process.kill()
        processes.clear()  # Lightning kills the first process, too, when one of these has failed


def metrics_of(trainer: Trainer) -> dict[str, float]:
    """The metrics that were logged last, with the seven digits that float32 has."""
    return {name: float(f"{value.item():.7g}") for name, value in trainer.callback_metrics.items()}


class History(Callback):
    """A row of metrics for each epoch: printed, logged, and kept in the checkpoints.

    When a run is resumed, metrics.csv and TensorBoard's events are written again from the rows of the checkpoint.
    (Lightning's CSVLogger deletes metrics.csv before the checkpoint is loaded.)

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.events = [*run.glob("tensorboard/events.out.tfevents.*")]  # of earlier processes
        self.rows: list[dict[str, Any]] = []
        self.before = 0.0  # seconds of the current epoch in earlier processes
        self.start = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.before = state["rows"], state["seconds"]

    def _seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            for path in self.events:
                path.unlink()
            self._log(trainer, self.rows)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.start, left = time.perf_counter(), (trainer.max_epochs or 0) - len(self.rows)
        devices = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
        message = f"run {self.run}: {left} epochs on {devices}{module.device.type}"
        if trainer.fit_loop.restarting:
            begun = trainer.fit_loop.batch_idx + 1
            message += f", the first from batch {begun + 1} of {trainer.num_training_batches}"
        module.print(message, flush=True)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.start, self.before = time.perf_counter(), 0.0

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Record the epoch; the test images have been scored by now."""
        assert isinstance(module, Retraining)
        measured: dict[str, float] = metrics_of(trainer)
        measured |= {name: int(value) for name, value in measured.items() if name.endswith("_images")}
        epoch, epochs = len(self.rows) + 1, trainer.max_epochs or 0
        if not math.isfinite(measured["test_loss"]):
            raise FloatingPointError(f"test_loss is {measured['test_loss']} in epoch {epoch}")
        learning_rate = module.recipe.learning_rate * module.recipe.schedule(epoch - 1)
        row = {"epoch": epoch, "step": trainer.global_step, "learning_rate": learning_rate}
        row |= {name: measured[name] for name in sorted(measured, reverse=True)}  # of training, then of the test
        row["seconds"] = self._seconds()
        self.rows.append(row)
        if trainer.is_global_zero:
            self._log(trainer, [row])
        module.print(
            f"epoch {epoch}/{epochs}"
            f"  train loss {row['train_loss']:.3f} accuracy {100 * row['train_accuracy']:.2f} %"
            f"  test loss {row['test_loss']:.3f} accuracy {100 * row['test_accuracy']:.2f} %  {row['seconds']:.1f} s"
            + (f", {cli.duration(row['seconds'] * (epochs - epoch))} left" if epoch < epochs else ""),
            flush=True,
        )

    def _log(self, trainer: Trainer, new: list[dict[str, Any]]) -> None:
        if self.rows:
            write_csv(self.run / "metrics.csv", self.rows)
        for row in new:
            for logger in trainer.loggers:
                logger.log_metrics({name: value for name, value in row.items() if name != "step"}, row["step"])


def make_trainer(settings: Any, run: Path) -> Trainer:
    """The Trainer that the flags of `DevicesSettings` and of the recipe describe.

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
