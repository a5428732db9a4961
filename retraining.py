"""Training a discrete network from scratch with the Lightning Trainer: the recipe, its data, and the run folder.

Everything random is a function of (seed, epoch, batch), so that a run that goes on from
its last checkpoint ends in the same weights as one that was never interrupted (bit for bit on the CPU).
"""

import io
import json
import logging
import math
import shlex
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

import cli
import data
from cli import InputError, blaming
from files import write_atomically, write_csv
from model import size
from utils import StepProgress, check_device, compile_parts, provenance, set_up_libraries, write_config


def cosine(learning_rate: float, epochs: int) -> Callable[[int], float]:
    """The learning rate of an epoch, a cosine from `learning_rate` in epoch 0 towards 0 in epoch `epochs`."""
    return lambda epoch: learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum, one learning rate an epoch.

    Attributes:
        learning_rate: of an epoch, counted from 0.
        grad_clip: largest norm of the gradient; None for any.
        auxiliary_weight: of the auxiliary head's loss, where the network has that head.
        drop_path_prob: reached linearly from 0 in the first epoch.
    """

    epochs: int
    learning_rate: Callable[[int], float]
    momentum: float
    weight_decay: float
    grad_clip: float | None = None
    auxiliary_weight: float = 0.0
    drop_path_prob: float = 0.0
    nesterov: bool = False

    def drop_path_prob_of(self, epoch: int) -> float:
        """The drop path probability of an epoch (DARTS's code)."""
        return self.drop_path_prob * epoch / self.epochs

    def loss(self, logits: Tensor, auxiliary_logits: Tensor | None, labels: Tensor) -> Tensor:
        """Cross-entropy, and the auxiliary head's under its weight (DARTS, section 3.2)."""
        loss = F.cross_entropy(logits, labels)
        if auxiliary_logits is None:
            return loss
        auxiliary = F.cross_entropy(auxiliary_logits, labels)
        return loss + self.auxiliary_weight * auxiliary


class Scores(nn.Module):
    """Mean loss and accuracy over the images seen, on all devices together."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.loss = MeanMetric(nan_strategy="disable")  # the others look for NaN at every update, and wait for the GPU
        self.accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: its mean loss, logits (B, classes) and labels (B,)."""
        self.loss.update(loss.detach(), len(labels))
        self.accuracy.update(logits.detach(), labels)

    def take(self) -> dict[str, float]:
        """The loss, and the accuracy in [0, 1]; starts again from nothing. All devices must call this together."""
        scores = {"loss": self.loss.compute().item(), "accuracy": round(self.accuracy.compute().item(), 6)}
        self.loss.reset()
        self.accuracy.reset()
        return scores


class Evaluation(LightningModule):
    """A discrete network and its scores on the test images.

    Args:
        network: maps images to logits and the auxiliary head's logits (or None).
        classes: number of classes.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.test_scores = Scores(classes)

    def validation_step(self, batch: data.Batch, batch_idx: int) -> None:
        torch.manual_seed(batch.seed)
        logits, _ = self.network(batch.images)
        self.test_scores.update(F.cross_entropy(logits, batch.labels), logits, batch.labels)

    test_step = validation_step


class Retraining(Evaluation):
    """The training of a discrete network under a recipe.

    Args:
        compile_for: compile the network, which is trained on batches of this shape.
    """

    def __init__(self, network: nn.Module, classes: int, recipe: Recipe, compile_for: Sequence[int] = ()) -> None:
        super().__init__(network, classes)
        self.recipe = recipe
        self.compile_for = compile_for
        self.train_scores = Scores(classes)

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
        return loss

    def on_validation_start(self) -> None:
        # Every device scores the network that is saved: batch norm's running statistics are the first device's.
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, src=0)


class TensorImages(LightningDataModule):
    """A data set on the device, a new shuffle and augmentation each epoch; each device takes its share of a batch.

    The test images are scored once each: devices may have unequal numbers of them.

    Args:
        batch_size: images of a step, on all devices together.
        augmentation: of the training images; test images are normalized only.
    """

    def __init__(self, dataset: data.DataSet, batch_size: int, augmentation: data.Augmentation, seed: int) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.augmentation, self.seed = dataset, batch_size, augmentation, seed

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        if stage == "fit":
            self.train = self.dataset.train.to(device)
        self.test = self.dataset.test.to(device)

    def _batches(self, images: data.ImageSet, augmentation: data.Augmentation, shuffle: bool) -> data.Batches:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        key = (self.seed, self.trainer.current_epoch if shuffle else 0)
        return data.Batches(images, self.batch_size // world, augmentation, key, shuffle, rank, world)

    def train_dataloader(self) -> data.Batches:
        return self._batches(self.train, self.augmentation, shuffle=True)

    def val_dataloader(self) -> data.Batches:
        return self._batches(self.test, data.Augmentation.none(self.dataset), shuffle=False)

    test_dataloader = val_dataloader


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that are whole or not there. (Lightning's own go through /tmp, and are copied from another disk.)"""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), content.getvalue())


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


class RunLog(Callback):
    """The run folder as training fills it: a row and a checkpoint an epoch, TensorBoard's events, and progress.

    Args:
        run: the folder.
        about: what the checkpoint says of the run, as plain values: its settings and its genotype.
        opened: closes what is opened here.

    Attributes:
        rows: what the run has been, epoch by epoch: part of the checkpoint, and metrics.csv is written from it.
    """

    def __init__(self, run: Path, about: Mapping[str, Any], opened: ExitStack) -> None:
        self.run, self.about, self.opened = run, about, opened
        self.rows: list[dict[str, Any]] = []
        self.on_sigterm = signal.getsignal(signal.SIGTERM)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(self.about, rows=self.rows)

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.rows = checkpoint["rows"]

    def on_train_start(self, trainer: Trainer, module: Retraining) -> None:
        # Lightning's own handler starts a broadcast between the devices, from within whatever they are doing.
        signal.signal(signal.SIGTERM, self.on_sigterm)
        if not trainer.is_global_zero:
            return
        last_checkpoint(self.run).parent.mkdir(exist_ok=True)
        done, epochs = len(self.rows), trainer.max_epochs
        self.board = self.opened.enter_context(SummaryWriter(self.run / "tensorboard", purge_step=done + 1))
        steps = trainer.num_training_batches
        self.progress = self.opened.enter_context(StepProgress("run", epochs * steps, done * steps))
        devices = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
        self.progress.line(f"run {self.run}: {epochs - done} epochs on {devices}{module.device}")
        if self.rows:
            write_csv(self.run / "metrics.csv", self.rows)

    def on_train_epoch_start(self, trainer: Trainer, module: Retraining) -> None:
        self.start = time.perf_counter()
        if trainer.is_global_zero:
            self.progress.start(f"epoch {trainer.current_epoch + 1}", trainer.num_training_batches)

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.is_global_zero:
            self.progress.advance()

    def on_train_epoch_end(self, trainer: Trainer, module: Retraining) -> None:
        """Record the epoch: the test images have been scored by now."""
        train, test = module.train_scores.take(), module.test_scores.take()
        epoch = len(self.rows)
        row = {
            "epoch": epoch + 1,
            "learning_rate": module.recipe.learning_rate(epoch),
            **{f"train_{name}": value for name, value in train.items()},
            **{f"test_{name}": value for name, value in test.items()},
            "seconds": time.perf_counter() - self.start,
        }
        if not math.isfinite(train["loss"]):
            raise FloatingPointError(f"train_loss is not finite in epoch {epoch + 1}")
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


def make_trainer(
    accelerator: str, devices: int | list[int], precision: str, tf32: bool = False, **options: Any
) -> Trainer:
    """A Trainer that prints and writes nothing of its own.

    Args:
        devices: how many, or the index of the one.
    """
    set_up_libraries(tf32)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=name)
    # Batch norm's statistics are made equal before they matter, and an odd genotype may leave weights unused.
    several = isinstance(devices, int) and devices > 1
    strategy = DDPStrategy(broadcast_buffers=False, static_graph=True) if several else "auto"
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        strategy=strategy,
        plugins=[WholeFiles()],
        benchmark=True,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def fit(
    module: Retraining,
    images: LightningDataModule,
    run: Path,
    about: Mapping[str, Any],
    resume: str,
    **options: Any,
) -> list[dict[str, Any]]:
    """Train in a run folder, from its last checkpoint where it has one.

    Args:
        about: the settings and the genotype, for the checkpoint.
        resume: the command that goes on with the run, for whoever interrupts it.
        options: the accelerator, devices and precision of `make_trainer`.

    Returns:
        The rows of metrics.csv.

    Raises:
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: the run was interrupted; the message says how to go on.
    """
    checkpoint = last_checkpoint(run)
    with ExitStack() as opened:
        log = RunLog(run, about, opened)
        trainer = make_trainer(
            max_epochs=module.recipe.epochs,
            callbacks=[log],
            gradient_clip_val=module.recipe.grad_clip,
            gradient_clip_algorithm="norm",
            reload_dataloaders_every_n_epochs=1,
            **options,
        )
        try:
            trainer.fit(
                module, datamodule=images, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True
            )
        except SystemExit:
            # What Lightning makes of Ctrl-C and of SIGTERM; the first device's process speaks for all.
            if not trainer.is_global_zero:
                raise
            raise KeyboardInterrupt(
                f"after {len(log.rows)} of {module.recipe.epochs} epochs; go on with: {resume}"
            ) from None
    return log.rows


def retrain(
    settings: Any,
    run: Path,
    resumed: bool,
    script: str,
    cell: Any,
    recipe: Recipe,
    make_network: Callable[[int, int, bool], nn.Module],
    check: Callable[[int], None] = lambda image_size: None,
) -> None:
    """Train the network of a cell from scratch on the device's images, and leave a run folder.

    Args:
        settings: the dataclass of a script's flags: DataSettings, RunSettings, the batch size, devices and precision.
        resumed: go on with the run folder that is there.
        script: the path of the script, for whoever interrupts it.
        cell: what the network is made of, with `to_json` and `_asdict`.
        make_network: from the numbers of classes and of image channels, and whether with an auxiliary head.
        check: refuses images of so many pixels.

    Raises:
        InputError: the settings do not fit the data or the machine; it names the flag.
    """
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
    count = len(dataset.train)
    if settings.batch_size > count:
        raise InputError(f"--batch_size: {settings.batch_size}, but there are {count} images; expected at most {count}")
    check(dataset.image_size)

    auxiliary = getattr(settings, "auxiliary", False)
    shape = (len(dataset.classes), dataset.in_channels)
    torch.manual_seed(settings.seed)
    network = make_network(*shape, auxiliary)
    with blaming("--cutout_length"):
        augmentation = data.Augmentation.training(dataset, settings.cutout_length if settings.cutout else 0)
    images = TensorImages(dataset, settings.batch_size, augmentation, settings.seed)
    about = {"settings": {**asdict(settings), "save": str(run)}, "genotype": cell._asdict()}
    if first and not resumed:
        cli.new_folder(run, "--save")
        write_atomically(run / "genotype.json", cell.to_json())
        write_config(run, about["settings"], provenance(cli.command_line(), f"{settings.devices} x {accelerator}"))
    batch_shape = (share, dataset.in_channels, dataset.image_size, dataset.image_size)
    rows = fit(
        Retraining(network, len(dataset.classes), recipe, batch_shape if settings.compile else ()),
        images,
        run,
        about,
        resume=f"python {script} --resume {shlex.quote(str(run))}",
        accelerator=accelerator,
        devices=devices,
        precision=settings.precision,
        tf32=settings.tf32,
    )
    if not first:
        return
    # The papers count the parameters without the auxiliary head.
    with torch.device("meta"):
        counted = size(make_network(*shape, False), dataset.in_channels, dataset.image_size)
    summary = {"accuracy": rows[-1]["test_accuracy"], **counted, "seed": settings.seed, **about}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in summary.items())
    write_atomically(run / "result.json", f"{{\n{lines}\n}}\n")
    print(
        f"test accuracy {100 * summary['accuracy']:.2f} %, {counted['params'] / 1e6:.3f} M parameters, "
        f"{counted['multiply_adds'] / 1e6:.1f} M multiply-adds\nrun folder {run}",
        flush=True,
    )
