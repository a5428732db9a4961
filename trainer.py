"""Lightning's Trainer as every retraining uses it: the run folder and its checkpoints, processes, and signals.

A run is stopped between two steps, after its checkpoint, and goes on with the next batch.
"""

import logging
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed
from lightning_fabric.plugins import CheckpointIO
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

import cluster
from checkpoints import Checkpoints, flatten, read, reason, unflatten
from cli import InputError, blaming, saving
from files import write_csv
from kernels import BatchNorm2d
from modules import Images, Retraining, batches_done
from utils import Board, StepProgress, Watch, set_up_libraries


class WholeFiles(CheckpointIO):
    """Lightning's checkpoints as this project's, in a folder of the last two; Lightning's own are pickles.

    Args:
        loaded: what Lightning gets where it asks for one, once.
    """

    def __init__(self, loaded: dict[str, Any] | None) -> None:
        self._loaded = loaded

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        Checkpoints(Path(path), unit="step").save(checkpoint["global_step"], *flatten(checkpoint))

    def load_checkpoint(self, path: str | Path, *_: object, **__: object) -> dict[str, Any]:
        assert self._loaded is not None
        loaded, self._loaded = self._loaded, None
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        raise NotImplementedError("the oldest goes when one is saved")


class SynchronizedOnCPU(LayerSync):
    """What Lightning's TorchSyncBatchNorm is for GPUs."""

    def apply(self, model: nn.Module) -> nn.Module:
        return self._set(model, True)

    def revert(self, model: nn.Module) -> nn.Module:
        return self._set(model, False)

    def _set(self, model: nn.Module, synchronized: bool) -> nn.Module:
        for module in model.modules():
            if isinstance(module, BatchNorm2d):
                module.synchronized = synchronized
        return model


def checkpoints_of(run: Path) -> Checkpoints:
    """The last two checkpoints of a run, by the steps it had taken."""
    return Checkpoints(run / "checkpoints", unit="step")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a run, on the CPU, from its file or as the last that is whole in a folder of them.

    Raises:
        ValueError: it is no checkpoint of this project, or the folder has none.
        OSError: it cannot be read.
    """
    content = Checkpoints(path, unit="step").load() if path.is_dir() else read(path)
    if content is None:
        raise ValueError(f"{path} has no checkpoint; expected a run of a step or more")
    checkpoint = unflatten(*content)
    if "state_dict" not in checkpoint:
        raise ValueError(f"{path} is the checkpoint of a search; expected one of a retraining")
    return checkpoint


def open_checkpoint(given: str) -> dict[str, Any]:
    """The checkpoint that a command line names: a file, or the last one of a run folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = Path(given)
    if path.is_dir() and not checkpoints_of(path).numbers:
        raise InputError(f"checkpoint: {path} has none; expected a checkpoint, or a run folder that has one")
    with blaming("checkpoint"):
        return load_checkpoint(path / "checkpoints" if path.is_dir() else path)


def load_network(network: nn.Module, checkpoint: Mapping[str, Any], without: str = " ") -> None:
    """Give a network the weights of a checkpoint, in their precision; their running mean where the recipe has one.

    Args:
        network: on the meta device, where it takes no memory before it is known to be that of the checkpoint.
        without: leave out what begins so.

    Raises:
        RuntimeError: the checkpoint is of another network.
    """
    prefix = "network."
    named = {name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if prefix in name}
    state = {name: value for name, value in named.items() if not name.startswith(without)}
    network.load_state_dict(state, assign=True)


def scoring_precision(checkpoint: Mapping[str, Any], accelerator: str) -> str:
    """The precision in which a network is scored: that of its training, but half precision is for cuda."""
    precision = checkpoint["settings"]["precision"]
    return "32-true" if precision == "16-mixed" and accelerator != "cuda" else precision


class RunLog(Callback):
    """The run folder as training fills it: a row and checkpoints an epoch, TensorBoard's events, and progress.

    Besides the end of every epoch, a checkpoint stands before its last step, so that a run that is stopped while the
    test images are scored has little to do again. Ctrl-C, SIGTERM, or SIGUSR1 (SLURM, before a time limit or a
    preemption) ends the training after the step under way, and its checkpoint; a second one at once.

    Args:
        run: the folder.
        about: what the checkpoint says of the run, as plain values: its settings, its genotype, the classes and number
            of its images.
        opened: closes what is opened here.
        resume: the command that goes on with the run.
        every: steps between two further checkpoints; 0 for none.

    Attributes:
        rows: what the run has been, epoch by epoch: part of the checkpoint, and metrics.csv is written from it.
    """

    def __init__(self, run: Path, about: Mapping[str, Any], opened: ExitStack, resume: str, every: int = 0) -> None:
        self.run, self.about, self.opened, self.every = run, about, opened, every
        self.goes_on = f"go on with: {resume}"
        self.rows: list[dict[str, Any]] = []
        self.board: Board | None = None
        self.asked: int | None = None  # to stop, by this signal
        self.seconds = 0.0  # of the epoch under way, before this process
        self.batches = 0  # of an epoch, in the checkpoint that was loaded
        self.started = False  # until then what goes wrong may come from the checkpoint
        self.children: list[subprocess.Popen[bytes]] = []  # of an error: the other devices' processes, still to end

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(self.about, rows=self.rows, seconds=self._seconds(), batches=trainer.num_training_batches)

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.rows, self.seconds, self.batches = (checkpoint[name] for name in ("rows", "seconds", "batches"))

    def _seconds(self) -> float:
        return self.seconds + time.perf_counter() - self.start

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = signum

    def _stop(self, trainer: Trainer) -> None:
        """End the training; SLURM starts it again where its signal asked for that."""
        if self.asked == signal.SIGUSR1 and trainer.is_global_zero:
            cluster.ask_again()
        raise KeyboardInterrupt

    def _asked_of_any(self, trainer: Trainer) -> bool:
        """Whether one of the processes is to stop. All must call this together."""
        asked = bool(self.asked)
        return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, Retraining)
        # Lightning's own handlers start a broadcast, or save, from within whatever the devices are doing.
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, self._ask_to_stop)
        self.start = time.perf_counter()
        self.watch = Watch(module.device)
        batches, begun = int(trainer.num_training_batches), batches_done(trainer)
        (optimizer,) = trainer.optimizers
        for group in optimizer.param_groups:  # in the midst of an epoch, too
            group.update(optimizer.defaults, lr=module.recipe.learning_rate(len(self.rows)))
        self.started = True
        if begun and batches != self.batches:
            if not trainer.is_global_zero:
                sys.exit(2)  # the first device's process says it
            raise InputError(
                f"--devices: the run stopped in an epoch of {self.batches} passes, which on these devices, with this "
                f"--accumulate, has {batches}; expected those it ran on, to the epoch's end"
            )
        if not trainer.is_global_zero:
            return
        done, epochs = len(self.rows), module.recipe.epochs
        with saving(self.run, self.goes_on):
            self.board = Board(self.run, self.rows)
            if self.rows:
                write_csv(self.run / "metrics.csv", self.rows)
        self.progress = self.opened.enter_context(StepProgress("run", epochs * batches, done * batches + begun))
        devices = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
        self.progress.line(
            f"run {self.run}: {epochs - done} epochs on {devices}{module.device}"
            + (f", the first from batch {begun + 1} of {batches}" if begun else "")
        )
        if begun:
            self.progress.start(f"epoch {done + 1}", batches, begun)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.start, self.seconds = time.perf_counter(), 0.0
        if trainer.is_global_zero:
            self.progress.start(f"epoch {trainer.current_epoch + 1}", int(trainer.num_training_batches))

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert isinstance(module, Retraining)
        if trainer.is_global_zero:
            self.progress.advance()
        self.watch.add(trainer.current_epoch, batch_idx, module.watched)
        done, batches, accumulate = batch_idx + 1, trainer.num_training_batches, trainer.accumulate_grad_batches
        if done % accumulate or done == batches:
            return
        stop = self._asked_of_any(trainer)
        if stop or done + accumulate >= batches or (self.every and done // accumulate % self.every == 0):
            self._save(trainer)
        if stop:
            self._stop(trainer)

    def _save(self, trainer: Trainer) -> None:
        self.watch.check()
        with saving(self.run, self.goes_on):
            trainer.save_checkpoint(self.run / "checkpoints")

    def on_validation_batch_end(self, trainer: Trainer, *_: object) -> None:
        if self._asked_of_any(trainer):
            self._stop(trainer)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Take the other devices' processes from Lightning, before it waits for this one's workers.

        Lightning's observer kills this process within five seconds of a failure of one of them.
        """
        if not isinstance(exception, KeyboardInterrupt):  # at which Lightning ends them
            started = getattr(trainer.strategy.launcher, "procs", [])
            self.children += started
            started.clear()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Record the epoch: the test images have been scored by now."""
        assert isinstance(module, Retraining)
        train, test = module.train_scores.take(), module.test_scores.take()
        epoch = len(self.rows)
        row = {
            "epoch": epoch + 1,
            "learning_rate": module.recipe.learning_rate(epoch),
            **{f"train_{name}": value for name, value in train.items()},
            **{f"test_{name}": value for name, value in test.items()},
            "seconds": self._seconds(),
        }
        if not math.isfinite(test["loss"]):
            raise FloatingPointError(f"test_loss is {test['loss']} in epoch {epoch + 1}")
        self.rows.append(row)
        self._save(trainer)
        if self.board is None:
            return  # another process is the first
        with saving(self.run, self.goes_on):
            write_csv(self.run / "metrics.csv", self.rows)
            self.board.add(row)
        self.progress.line(
            f"epoch {epoch + 1}/{trainer.max_epochs}"
            f"  train loss {train['loss']:.3f} accuracy {100 * train['accuracy']:.2f} %"
            f"  test loss {test['loss']:.3f} accuracy {100 * test['accuracy']:.2f} %  {row['seconds']:.1f} s"
        )


def make_trainer(
    accelerator: str,
    devices: int | list[int],
    precision: str,
    tf32: bool = False,
    deterministic: bool = False,
    num_nodes: int = 1,
    checkpoint: dict[str, Any] | None = None,
    **options: Any,
) -> Trainer:
    """A Trainer that prints and writes nothing of its own.

    Args:
        devices: how many on each node, or the index of the one.
        checkpoint: what the Trainer goes on from.
    """
    set_up_libraries(tf32, deterministic)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=name)
    # Of depthwise weights in channels last, whose strides are ambiguous: DDP copies them, and they are tiny.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    strategy: str | DDPStrategy = "auto"
    plugins: list[Any] = [WholeFiles(checkpoint)]
    if num_nodes > 1 or (isinstance(devices, int) and devices > 1):
        # Synchronized batch norm has equal statistics everywhere, and an odd genotype may leave weights unused: a
        # static graph is the fast way to allow for that, but it fails where passes are accumulated.
        accumulating = options.get("accumulate_grad_batches", 1) > 1
        strategy = DDPStrategy(
            broadcast_buffers=False, static_graph=not accumulating, find_unused_parameters=accumulating
        )
        plugins.append(TorchSyncBatchNorm() if accelerator == "cuda" else SynchronizedOnCPU())
    launch = cluster.launched()
    if launch is None:
        plugins.append(LightningEnvironment())  # else an allocation of SLURM's without srun would count as launched
    elif launch.launcher == "srun":
        plugins.append(SLURMEnvironment(auto_requeue=False))  # RunLog does it, between two steps
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,  # type: ignore[arg-type]  # a string that Lightning knows, as the flag has it
        strategy=strategy,
        plugins=plugins,
        benchmark=not deterministic,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )


def fit(
    module: Retraining,
    images: Images,
    run: Path,
    about: Mapping[str, Any],
    resume: str,
    checkpoint: dict[str, Any] | None = None,
    checkpoint_steps: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Train in a run folder, from its last checkpoint where it has one.

    Args:
        about: of `RunLog`.
        resume: the command that goes on with the run, for whoever interrupts it.
        checkpoint: the run's last, of `load_checkpoint`; None for a run that has none.
        checkpoint_steps: steps between two checkpoints within an epoch; 0 for none.
        options: of `make_trainer`, and `accumulate_grad_batches`.

    Returns:
        The rows of metrics.csv.

    Raises:
        FloatingPointError: the loss or a gradient is not finite.
        InputError: the processes cannot reach each other, a file cannot be written, or the checkpoint does not fit.
        KeyboardInterrupt: the run was interrupted; the message says how to go on.
    """
    with ExitStack() as opened:
        log = RunLog(run, about, opened, resume, checkpoint_steps)
        decay = module.recipe.ema_decay
        trainer = make_trainer(
            max_epochs=module.recipe.epochs,
            callbacks=[*([EMAWeightAveraging(decay=decay)] if decay else []), log],
            gradient_clip_val=module.recipe.grad_clip,
            gradient_clip_algorithm="norm",
            checkpoint=checkpoint,
            **options,
        )
        try:
            trainer.fit(module, datamodule=images, ckpt_path=run / "checkpoints" if checkpoint else None)
        except SystemExit:
            # What Lightning makes of a KeyboardInterrupt; the first device's process speaks for all.
            if not trainer.is_global_zero:
                raise
            raise KeyboardInterrupt(
                f"after {len(log.rows)} of {module.recipe.epochs} epochs; go on with: {resume}"
            ) from None
        except torch.distributed.DistNetworkError as error:
            _end_children(log.children)
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise InputError(
                f"MASTER_PORT: the processes cannot meet at {where}, which is taken or out of reach; expected a free "
                f"port on the first node ({' '.join(str(error).split())[:120]})"
            ) from error
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, MisconfigurationException) as error:
            if "DataLoader worker" in str(error):
                _end_children(log.children)
                raise InputError(
                    f"--workers: one was killed, most often for want of memory; expected fewer; go on with: {resume}"
                ) from error
            statuses = _end_children(log.children, 10)  # which have ended, where this comes of it
            if 2 in statuses:
                sys.exit(2)  # another device's process has said what is wrong
            if 1 in statuses:  # such as a loss that is not finite there; this may be what comes of it, or the cause
                sys.stderr.write(f"another device's process failed, and the first one with it: {reason(error)}\n")
                sys.exit(1)
            machine = (torch.OutOfMemoryError, torch.AcceleratorError, torch.distributed.DistError)
            if not checkpoint or log.started or isinstance(error, machine):
                raise
            if not trainer.is_global_zero:
                sys.exit(3)  # the first device's process says it
            raise InputError(f"--resume: {run}: the last checkpoint does not fit the run: {reason(error)}") from error
        except BaseException:
            _end_children(log.children)
            raise
    if trainer.is_global_zero and log.board is None:  # it had died behind its last checkpoint
        with saving(run, log.goes_on):
            Board(run, log.rows)
            write_csv(run / "metrics.csv", log.rows)
    return log.rows


def _end_children(children: list[subprocess.Popen[bytes]], seconds: float = 2) -> list[int | None]:
    """End the processes of the other devices after so long, or when one has failed.

    Returns:
        The exit statuses of those that ended of themselves.
    """
    deadline = time.monotonic() + seconds
    statuses = [child.poll() for child in children]
    while None in statuses and not any(statuses) and time.monotonic() < deadline:
        time.sleep(0.05)
        statuses = [child.poll() for child in children]
    for child in children:
        child.kill()
    return statuses
