"""Training a discrete network from scratch with the Lightning Trainer: the module, its data, and the run folder.

Everything random is a function of (seed, epoch, batch), so that a run that goes on from its last checkpoint, with the
next batch, ends in the same weights as one that was never interrupted (bit for bit on the CPU).

The networks of this field have a few million parameters: each device holds all of them, so data parallelism is enough,
and nothing is sharded (FSDP).
"""

import io
import json
import logging
import math
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

import cli
import cluster
import data
from cli import InputError, blaming
from files import write_atomically, write_csv
from kernels import BatchNorm2d
from model import size
from recipes import IGNORED, Recipe, counted, cross_entropy
from utils import StepProgress, check_device, compile_parts, provenance, set_up_libraries, write_config


class Scores(nn.Module):
    """Mean loss and accuracy over the images seen, on all devices together.

    Args:
        top5: also how often the label is among the five largest logits.
        ignoring: some labels may be IGNORED.
    """

    def __init__(self, classes: int, top5: bool = False, ignoring: bool = False) -> None:
        super().__init__()
        options = {"average": "micro", "validate_args": False, "ignore_index": IGNORED if ignoring else None}
        # Sums: a MeanMetric that does not look for NaN at every update (and wait for the GPU) forgets the weights.
        self.loss, self.images = (SumMetric(nan_strategy="disable") for _ in range(2))
        self.accuracy = MulticlassAccuracy(classes, **options)
        if top5:
            self.top5 = MulticlassAccuracy(classes, top_k=min(5, classes), **options)

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: its mean loss, logits (B, classes) and labels (B,)."""
        images = counted(labels)
        self.images.update(images)
        self.loss.update(loss.detach() * images)
        for metric in self._accuracies().values():
            metric.update(logits.detach(), labels)

    def _accuracies(self) -> dict[str, MulticlassAccuracy]:
        return {name: metric for name, metric in self.named_children() if isinstance(metric, MulticlassAccuracy)}

    def take(self) -> dict[str, float]:
        """The loss, and accuracies in [0, 1]; starts again from nothing. All devices must call this together."""
        accuracies = {name: round(metric.compute().item(), 6) for name, metric in self._accuracies().items()}
        scores = {"loss": (self.loss.compute() / self.images.compute()).item(), **accuracies}
        for metric in self.children():
            metric.reset()
        return scores

    def sums(self) -> dict[str, dict[str, Tensor]]:
        """What was counted so far, on all devices together. All devices must call this together."""
        result = {}
        for name, metric in self.named_children():
            with metric.sync_context():
                result[name] = {key: value.detach().clone() for key, value in metric.metric_state.items()}
        return result

    def resume(self, sums: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from what `sums` gave."""
        for name, values in sums.items():
            metric = getattr(self, name)
            for key, value in values.items():
                setattr(metric, key, value.to(metric.device))


class Evaluation(LightningModule):
    """A discrete network and its scores on the test images.

    Args:
        network: maps images to logits and the auxiliary head's logits (or None).
        classes: number of classes.
        top5, ignoring: of the `Scores`.
    """

    def __init__(self, network: nn.Module, classes: int, top5: bool = False, ignoring: bool = False) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.test_scores = Scores(classes, top5, ignoring)

    def validation_step(self, batch: data.Batch, batch_idx: int) -> None:
        torch.manual_seed(batch.seed)
        logits, _ = self.network(batch.images)
        self.test_scores.update(cross_entropy(logits, batch.labels), logits, batch.labels)

    test_step = validation_step


class Retraining(Evaluation):
    """The training of a discrete network under a recipe.

    Args:
        compile_for: compile the network, which is trained on batches of this shape.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        recipe: Recipe,
        compile_for: Sequence[int] = (),
        top5: bool = False,
        ignoring: bool = False,
    ) -> None:
        super().__init__(network, classes, top5, ignoring)
        self.recipe = recipe
        self.compile_for = compile_for
        self.train_scores = Scores(classes, top5, ignoring)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.network.parameters(),
            lr=self.recipe.learning_rate(0),
            momentum=self.recipe.momentum,
            weight_decay=self.recipe.weight_decay,
            nesterov=self.recipe.nesterov,
        )

    def on_fit_start(self) -> None:
        if not self.compile_for:
            return
        images = torch.zeros(self.compile_for, device=self.device).to(memory_format=torch.channels_last)
        labels = torch.zeros(len(images), dtype=torch.long, device=self.device)

        def passes() -> None:
            # Drop path is another function than none.
            for drop_path_prob in {0.0, self.recipe.drop_path_prob / 2}:
                with self.trainer.precision_plugin.forward_context():
                    loss = self.recipe.loss(*self.network(images, drop_path_prob), labels)
                loss.backward()

        compile_parts(self.network.train(), [self.network], passes)
        self.network.zero_grad()

    def on_train_epoch_start(self) -> None:
        for group in self.optimizers().param_groups:
            group["lr"] = self.recipe.learning_rate(self.current_epoch)

    def training_step(self, batch: data.Batch, batch_idx: int) -> Tensor:
        torch.manual_seed(batch.seed)
        logits, auxiliary_logits = self.network(batch.images, self.recipe.drop_path_prob_of(self.current_epoch))
        loss = self.recipe.loss(logits, auxiliary_logits, batch.labels)
        self.train_scores.update(loss, logits, batch.labels)
        return loss * batch.weight

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_scores"] = self.train_scores.sums()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.global_rank == 0:  # the sums are those of all devices
            self.train_scores.resume(checkpoint["train_scores"])


class Images(LightningDataModule):
    """The images of a retraining, for the devices of a Trainer.

    Args:
        classes: their names.
        in_channels: channels of the images.
        image_size: height and width in pixels, as the network sees them.
        count: number of training images.
        batch_size: images of a step, on all devices together.
    """

    def __init__(self, classes: Sequence[str], in_channels: int, image_size: int, count: int, batch_size: int) -> None:
        super().__init__()
        self.classes, self.in_channels, self.image_size = tuple(classes), in_channels, image_size
        self.count, self.batch_size = count, batch_size

    def shares(self, order: Tensor, begin: int = 0) -> list[data.Share]:
        """The passes of this process's device through an epoch's images, in their order."""
        trainer = self.trainer
        return data.shares(
            order, self.batch_size, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches, begin
        )


class Epochs:
    """What Lightning iterates over in training: every pass is an epoch, or the rest of one that was interrupted.

    Args:
        batches: of an epoch.
        make: from the epoch, counted from 0, and how many of its batches are done, to those that are not.
    """

    def __init__(self, trainer: Trainer, batches: int, make: Callable[[int, int], Iterable[Any]]) -> None:
        self.trainer, self.batches, self.make = trainer, batches, make

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        loop = self.trainer.fit_loop
        done = (loop.batch_idx + 1) % self.batches
        # The Trainer's current_epoch is one behind here where an epoch's last checkpoint was loaded.
        return iter(self.make(loop.epoch_progress.current.processed, done))


class TensorImages(Images):
    """A data set on the device, a new shuffle and augmentation each epoch; each device takes its share of a batch.

    The test images are scored once each: devices may have unequal numbers of them.

    Args:
        batch_size: images of a step, on all devices together.
        augmentation: of the training images; test images are normalized only.
    """

    def __init__(self, dataset: data.DataSet, batch_size: int, augmentation: data.Augmentation, seed: int) -> None:
        super().__init__(dataset.classes, dataset.in_channels, dataset.image_size, len(dataset.train), batch_size)
        self.dataset, self.augmentation, self.seed = dataset, augmentation, seed

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        if stage == "fit":
            self.train = self.dataset.train.to(device)
        own = torch.arange(self.trainer.global_rank, len(self.dataset.test), self.trainer.world_size)
        self.test = self.dataset.test.subset(own).to(device)

    def train_dataloader(self) -> Epochs:
        return Epochs(self.trainer, len(self.shares(torch.arange(self.count))), self._batches)

    def _batches(self, epoch: int, done: int) -> Iterator[data.Batch]:
        device, rank = self.train.labels.device, self.trainer.global_rank
        order = data.shuffled(self.count, self.seed, epoch, 0)
        for number, share in enumerate(self.shares(order, done), done):
            chosen = share.indices.to(device)
            generator = data.random_numbers(device, self.seed, epoch, 1, rank, number)
            images = self.augmentation(self.train.images[chosen], generator)
            yield data.Batch(
                images, self.train.labels[chosen], data.mix(self.seed, epoch, 2, rank, number), share.weight
            )

    def val_dataloader(self) -> data.Batches:
        none = data.Augmentation.none(self.dataset)
        size = math.ceil(self.batch_size / (self.trainer.world_size * self.trainer.accumulate_grad_batches))
        return data.Batches(self.test, size, none, (self.seed, 0), shuffle=False)

    test_dataloader = val_dataloader


def tensor_images(settings: Any) -> TensorImages:
    """The data set that the flags of `DataSettings` name.

    Raises:
        InputError: its files are not what is expected, or the cutout does not fit.
    """
    with blaming(f"--data: {settings.dataset}"):
        dataset = data.load(settings.dataset, settings.data, settings.image_size, settings.download)
    with blaming("--cutout_length"):
        augmentation = data.Augmentation.training(dataset, settings.cutout_length if settings.cutout else 0)
    return TensorImages(dataset, settings.batch_size, augmentation, settings.seed)


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that are whole or not there. (Lightning's own go through /tmp, and are copied from another disk.)"""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), content.getvalue())


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


def last_checkpoint(run: Path) -> Path:
    """Where a run keeps its last checkpoint."""
    return run / "checkpoints" / "last.ckpt"


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a run, on the CPU. The file is data: nothing in it is executed.

    Raises:
        ValueError: it is no checkpoint of this project.
        OSError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign pickle's protocol
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises almost any
        raise ValueError(f"{path} is damaged or no checkpoint") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "settings", "genotype", "rows"} <= set(checkpoint):
        raise ValueError(f"{path} is no checkpoint of a retraining")
    return checkpoint


def open_checkpoint(given: str) -> dict[str, Any]:
    """The checkpoint that a command line names: a file, or the last one of a run folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = Path(given)
    path = last_checkpoint(path) if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"checkpoint: no file {path}; expected a checkpoint, or a run folder that has one")
    with blaming("checkpoint"):
        return load_checkpoint(path)


def load_network(network: nn.Module, checkpoint: Mapping[str, Any], without: str = " ") -> None:
    """Give a network the weights of a checkpoint, in their precision; their running mean where the recipe has one.

    Args:
        without: leave out what begins so.

    Raises:
        RuntimeError: the checkpoint is of another network.
    """
    prefix = "network."
    named = {name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if prefix in name}
    state = {name: value for name, value in named.items() if not name.startswith(without)}
    network.to(next(iter(state.values())).dtype).load_state_dict(state)


class RunLog(Callback):
    """The run folder as training fills it: a row and checkpoints an epoch, TensorBoard's events, and progress.

    Besides the end of every epoch, a checkpoint stands before its last step, so that a run that is stopped while the
    test images are scored has little to do again. Ctrl-C, SIGTERM, or SIGUSR1 (SLURM, before a time limit or a
    preemption) ends the training after the step under way, and its checkpoint; a second Ctrl-C at once.

    Args:
        run: the folder.
        about: what the checkpoint says of the run, as plain values: its settings, genotype and classes.
        opened: closes what is opened here.
        every: steps between two further checkpoints; 0 for none.

    Attributes:
        rows: what the run has been, epoch by epoch: part of the checkpoint, and metrics.csv is written from it.
    """

    def __init__(self, run: Path, about: Mapping[str, Any], opened: ExitStack, every: int = 0) -> None:
        self.run, self.about, self.opened, self.every = run, about, opened, every
        self.rows: list[dict[str, Any]] = []
        self.asked: int | None = None  # to stop, by this signal
        self.seconds = 0.0  # of the epoch under way, before this process

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(self.about, rows=self.rows, seconds=self._seconds())

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.rows = checkpoint["rows"]
        self.seconds = checkpoint["seconds"]

    def _seconds(self) -> float:
        return self.seconds + time.perf_counter() - self.start

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.asked:
            raise KeyboardInterrupt
        self.asked = signum

    def _stop(self, trainer: Trainer) -> None:
        """End the training; SLURM starts it again where its signal asked for that."""
        if self.asked == signal.SIGUSR1 and trainer.is_global_zero and "SLURM_JOB_ID" in os.environ:
            cluster.requeue()
        raise KeyboardInterrupt

    def on_train_start(self, trainer: Trainer, module: Retraining) -> None:
        # Lightning's own handlers start a broadcast, or save, from within whatever the devices are doing.
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, self._ask_to_stop)
        self.start = time.perf_counter()
        if not trainer.is_global_zero:
            return
        last_checkpoint(self.run).parent.mkdir(exist_ok=True)
        done, epochs = len(self.rows), trainer.max_epochs
        self.board = self.opened.enter_context(SummaryWriter(self.run / "tensorboard", purge_step=done + 1))
        batches = trainer.num_training_batches
        begun = (trainer.fit_loop.batch_idx + 1) % batches  # of an epoch that was interrupted
        self.progress = self.opened.enter_context(StepProgress("run", epochs * batches, done * batches + begun))
        devices = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
        self.progress.line(
            f"run {self.run}: {epochs - done} epochs on {devices}{module.device}"
            + (f", the first from batch {begun + 1} of {batches}" if begun else "")
        )
        if begun:
            self.progress.start(f"epoch {done + 1}", batches, begun)
        if self.rows:
            write_csv(self.run / "metrics.csv", self.rows)

    def on_train_epoch_start(self, trainer: Trainer, module: Retraining) -> None:
        self.start, self.seconds = time.perf_counter(), 0.0
        if trainer.is_global_zero:
            self.progress.start(f"epoch {trainer.current_epoch + 1}", trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: Trainer, module: Retraining, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.is_global_zero:
            self.progress.advance()
        done, batches, accumulate = batch_idx + 1, trainer.num_training_batches, trainer.accumulate_grad_batches
        if done % accumulate or done == batches:
            return
        stop = bool(self.asked)
        if trainer.world_size > 1:  # all of them, once it is asked of one
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop or done + accumulate >= batches or (self.every and done // accumulate % self.every == 0):
            self._check_finite(module.train_scores.sums()["loss"]["sum_value"].item(), trainer.current_epoch)
            trainer.save_checkpoint(last_checkpoint(self.run), weights_only=False)
        if stop:
            self._stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: object) -> None:
        if self.asked:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Retraining) -> None:
        """Record the epoch: the test images have been scored by now."""
        train, test = module.train_scores.take(), module.test_scores.take()
        epoch = len(self.rows)
        row = {
            "epoch": epoch + 1,
            "learning_rate": module.recipe.learning_rate(epoch),
            **{f"train_{name}": value for name, value in train.items()},
            **{f"test_{name}": value for name, value in test.items()},
            "seconds": self._seconds(),
        }
        self._check_finite(train["loss"], epoch)
        self.rows.append(row)
        trainer.save_checkpoint(last_checkpoint(self.run), weights_only=False)
        if not trainer.is_global_zero:
            return
        write_csv(self.run / "metrics.csv", self.rows)
        for name, value in row.items():
            if name != "epoch":
                self.board.add_scalar(name, value, epoch + 1)
        self.progress.line(
            f"epoch {epoch + 1}/{trainer.max_epochs}"
            f"  train loss {train['loss']:.3f} accuracy {100 * train['accuracy']:.2f} %"
            f"  test loss {test['loss']:.3f} accuracy {100 * test['accuracy']:.2f} %  {row['seconds']:.1f} s"
        )

    @staticmethod
    def _check_finite(loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"train_loss is not finite in epoch {epoch + 1}")


def make_trainer(
    accelerator: str,
    devices: int | list[int],
    precision: str,
    tf32: bool = False,
    num_nodes: int = 1,
    **options: Any,
) -> Trainer:
    """A Trainer that prints and writes nothing of its own.

    Args:
        devices: how many on each node, or the index of the one.
    """
    set_up_libraries(tf32)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=name)
    # Of depthwise weights in channels last, whose strides are ambiguous: DDP copies them, and they are tiny.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    strategy, plugins = "auto", [WholeFiles()]
    if num_nodes > 1 or (isinstance(devices, int) and devices > 1):
        # Synchronized batch norm has equal statistics everywhere, and an odd genotype may leave weights unused.
        strategy = DDPStrategy(broadcast_buffers=False, static_graph=True)
        plugins.append(TorchSyncBatchNorm() if accelerator == "cuda" else SynchronizedOnCPU())
    launch = cluster.launched()
    if launch and launch.launcher == "srun":
        plugins.append(SLURMEnvironment(auto_requeue=False))  # RunLog does it, between two steps
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        strategy=strategy,
        plugins=plugins,
        benchmark=True,
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
    checkpoint_steps: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Train in a run folder, from its last checkpoint where it has one.

    Args:
        about: the settings, the genotype and the classes, for the checkpoint.
        resume: the command that goes on with the run, for whoever interrupts it.
        checkpoint_steps: steps between two checkpoints within an epoch; 0 for none.
        options: of `make_trainer`, and `accumulate_grad_batches`.

    Returns:
        The rows of metrics.csv.

    Raises:
        FloatingPointError: the loss is not finite.
        InputError: the processes cannot reach each other, or a file cannot be written.
        KeyboardInterrupt: the run was interrupted; the message says how to go on.
    """
    checkpoint = last_checkpoint(run)
    with ExitStack() as opened:
        log = RunLog(run, about, opened, checkpoint_steps)
        decay = module.recipe.ema_decay
        trainer = make_trainer(
            max_epochs=module.recipe.epochs,
            callbacks=[*([EMAWeightAveraging(decay=decay)] if decay else []), log],
            gradient_clip_val=module.recipe.grad_clip,
            gradient_clip_algorithm="norm",
            **options,
        )
        try:
            trainer.fit(
                module, datamodule=images, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True
            )
        except SystemExit:
            # What Lightning makes of a KeyboardInterrupt; the first device's process speaks for all.
            if not trainer.is_global_zero:
                raise
            raise KeyboardInterrupt(
                f"after {len(log.rows)} of {module.recipe.epochs} epochs; go on with: {resume}"
            ) from None
        except torch.distributed.DistNetworkError as error:
            _end_children(trainer)
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise InputError(
                f"MASTER_PORT: the processes cannot meet at {where}, which is taken or out of reach; expected a free "
                f"port on the first node ({' '.join(str(error).split())[:120]})"
            ) from error
        except OSError as error:
            _end_children(trainer)
            raise InputError(
                f"--save: {error.filename or run}: {error.strerror}; its last checkpoint is whole, go on with: {resume}"
            ) from error
        except RuntimeError as error:
            if "DataLoader worker" in str(error):
                _end_children(trainer)
                raise InputError(
                    f"--workers: one was killed, most often for want of memory; expected fewer; go on with: {resume}"
                ) from error
            if any(status == 2 for status in _end_children(trainer)):
                sys.exit(2)  # another device's process has said what is wrong
            raise
        except BaseException:
            _end_children(trainer)
            raise
    return log.rows


def _end_children(trainer: Trainer) -> list[int | None]:
    """End the processes of the other devices that this one has started, after a moment; their exit statuses."""
    children = getattr(trainer.strategy.launcher, "procs", [])
    deadline = time.monotonic() + 2
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    statuses = [child.returncode for child in children]
    for child in children:
        child.kill()
    return statuses


def retrain(
    settings: Any,
    run: Path,
    resumed: bool,
    script: str,
    cell: Any,
    recipe: Recipe,
    make_network: Callable[[int, int, bool], nn.Module],
    make_images: Callable[[Any], Images] = tensor_images,
    top5: bool = False,
) -> bool:
    """Train the network of a cell from scratch, and leave a run folder.

    Args:
        settings: the dataclass of a script's flags: RunSettings, DevicesSettings, the batch size and what
            `make_images` reads.
        resumed: go on with the run folder that is there.
        script: the path of the script, for whoever interrupts it.
        cell: what the network is made of, with `to_json` and `_asdict`.
        make_network: from the numbers of classes and of image channels, and whether with an auxiliary head.
        make_images: from the settings.
        top5: record also how often the label is among the five largest logits.

    Returns:
        Whether this process is the first of all, which has written the run folder.

    Raises:
        InputError: the settings do not fit the data or the machine; it names the flag.
    """
    devices_here, num_nodes = cluster.devices_and_nodes(settings.devices, settings.num_nodes)
    accelerator, devices = check_device(settings.device, devices_here)
    if settings.precision == "16-mixed" and accelerator != "cuda":
        raise InputError(
            f"--precision: 16-mixed needs a cuda device, not {accelerator}; expected bf16-mixed or 32-true"
        )
    world, accumulate = devices_here * num_nodes, settings.accumulate
    least = accumulate * max(world, 2)  # batch norm cannot normalize a single image
    if settings.batch_size < least:
        passes = f" in each of --accumulate {accumulate} passes" if accumulate > 1 else ""
        raise InputError(
            f"--batch_size: {settings.batch_size}, expected {least} or more: one image for each of {world} device(s), "
            f"and two images or more{passes}"
        )
    # Each further device has a process that runs this script, when the first one's has made the folder.
    first = cluster.is_first()
    if first and not resumed:
        cli.check_new_folder(run, "--save")
    if resumed and last_checkpoint(run).exists():
        with blaming("--resume"):
            load_checkpoint(last_checkpoint(run))
    images = make_images(settings)
    if settings.batch_size > images.count:
        raise InputError(
            f"--batch_size: {settings.batch_size}, but there are {images.count} images; expected at most {images.count}"
        )
    auxiliary = getattr(settings, "auxiliary", False)
    shape = (len(images.classes), images.in_channels)
    torch.manual_seed(settings.seed)
    network = make_network(*shape, auxiliary)
    if settings.precision == "64-true":
        network.double()  # before a checkpoint is loaded into it, which Lightning does first
    about = {
        "settings": {**asdict(settings), "save": str(run)},
        "genotype": cell._asdict(),
        "classes": list(images.classes),
    }
    if first and not resumed:
        with blaming("--save"):
            run.mkdir(parents=True, exist_ok=True)
            write_atomically(run / "genotype.json", cell.to_json())
            write_config(run, about["settings"], provenance(cli.command_line(), f"{world} x {accelerator}"))
    largest = math.ceil(settings.batch_size / (world * accumulate))
    compile_for = (largest, images.in_channels, images.image_size, images.image_size) if settings.compile else ()
    ignoring = getattr(settings, "broken_images", "refuse") == "skip"
    rows = fit(
        Retraining(network, len(images.classes), recipe, compile_for, top5, ignoring),
        images,
        run,
        about,
        resume=f"python {script} --resume {shlex.quote(str(run))}",
        checkpoint_steps=settings.checkpoint_steps,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=settings.precision,
        tf32=settings.tf32,
        accumulate_grad_batches=accumulate,
    )
    if not first:
        return False
    # The papers count the parameters without the auxiliary head.
    with torch.device("meta"):
        counted_size = size(make_network(*shape, False), images.in_channels, images.image_size)
    last = {name: rows[-1][f"test_{name}"] for name in ("accuracy", *(["top5"] if top5 else []))}
    summary = {**last, **counted_size, "seed": settings.seed, **about}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in summary.items())
    write_atomically(run / "result.json", f"{{\n{lines}\n}}\n")
    print(
        f"test accuracy {100 * summary['accuracy']:.2f} %, {counted_size['params'] / 1e6:.3f} M parameters, "
        f"{counted_size['multiply_adds'] / 1e6:.1f} M multiply-adds\nrun folder {run}",
        flush=True,
    )
    return True
