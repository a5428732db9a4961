"""Callbacks of a retraining: stop on signals, save checkpoints, and record the metrics."""

import math
import signal
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lib import cli, launch
from lib.files import write_csv
from lib.retraining import Retraining

#: steps after which several processes check whether one of them should stop, because the check waits for the GPU
AGREE_EVERY = 10


class Stopped(Exception):
    """A signal has stopped the training after a checkpoint."""


class SaveAndStop(Callback):
    """Save checkpoints within an epoch. After a signal, finish the current step, save and stop.

    ModelCheckpoint saves at the end of an epoch, after the test. This callback also saves before the last step of each
    epoch. A run that is stopped or killed during the test therefore loses only that step.

    Args:
        folder: Folder of the checkpoints.
        every: Steps between two checkpoints. 0 disables them.
    """

    def __init__(self, folder: Path, every: int = 0) -> None:
        self.folder, self.every = folder, every

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, launch.stop)  # Lightning's own handlers save in the middle of a step

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._should_stop(trainer):
            raise Stopped

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        done, left, step = batch_idx + 1, trainer.num_training_batches - batch_idx - 1, trainer.global_step
        if done % trainer.accumulate_grad_batches or not left:
            return
        stop = self._should_stop(trainer, step)
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
        if self._should_stop(trainer, batch_idx):
            raise Stopped

    def _should_stop(self, trainer: Trainer, step: int = 0) -> bool:
        """True if any process has received a signal. Several processes check this only every AGREE_EVERY steps."""
        if trainer.world_size > 1 and step % AGREE_EVERY:
            return False
        return trainer.strategy.reduce_boolean_decision(bool(launch.stop.signum), all=False)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Kill the processes that Lightning started for other devices, because they would wait for this one."""
        processes = getattr(trainer.strategy.launcher, "procs", [])
        for process in processes:
            process.kill()
        processes.clear()  # otherwise Lightning would kill the first process when one of these fails


def metrics_of(trainer: Trainer) -> dict[str, float]:
    """The last logged metrics, rounded to the seven digits of float32."""
    return {name: float(f"{value.item():.7g}") for name, value in trainer.callback_metrics.items()}


class EpochLog(Callback):
    """Print and log a row of metrics for each epoch, and save the rows in the checkpoints.

    A resumed run rewrites metrics.csv and TensorBoard's events from the rows in the checkpoint. (Lightning's CSVLogger
    deletes metrics.csv before the checkpoint is loaded.)
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.events = [*run.glob("tensorboard/events.out.tfevents.*")]  # event files of earlier processes
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
        self.start, left = time.perf_counter(), cli.epochs_left(trainer.max_epochs or 0, len(self.rows))
        devices = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
        message = f"run {self.run}: {left} on {devices}{module.device.type}"
        if trainer.fit_loop.restarting:
            begun = trainer.fit_loop.batch_idx + 1
            message += f", starting at batch {begun + 1} of {trainer.num_training_batches}"
        module.print(message, flush=True)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.start, self.before = time.perf_counter(), 0.0

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Record the epoch. Lightning calls this after the test."""
        assert isinstance(module, Retraining)
        measured = metrics_of(trainer)
        epoch, epochs = len(self.rows) + 1, trainer.max_epochs or 0
        if not math.isfinite(measured["test_loss"]):
            raise FloatingPointError(f"test_loss is {measured['test_loss']} in epoch {epoch}")
        learning_rate = module.recipe.learning_rate * module.recipe.schedule(epoch - 1)
        row = {"epoch": epoch, "step": trainer.global_step, "learning_rate": learning_rate}
        row |= {name: measured[name] for name in sorted(measured, reverse=True)}  # training metrics first
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
