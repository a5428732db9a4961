"""The training of a discrete network as a LightningModule: its recipe, loss, optimizer and metrics."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lib.batches import Batch
from lib.devices import compile_parts
from lib.finite import FiniteCheck

#: factor of the learning rate in an epoch, counted from 0
Schedule = Callable[[int], float]

#: label of an image that could not be read and does not count
IGNORED = -100


def cosine(epochs: int) -> Schedule:
    """A cosine from 1 in epoch 0 towards 0 in epoch `epochs`."""
    return lambda epoch: (1 + math.cos(math.pi * epoch / epochs)) / 2


def linear(epochs: int) -> Schedule:
    """A line from 1 in epoch 0 towards 0; the slope of the last five epochs is a fifth of the others'.

    This is the schedule of PC-DARTS's released code for ImageNet, which later papers use too. The first of the five
    epochs has the learning rate of the one before it.
    """
    whole = max(epochs - 5, 1)

    def schedule(epoch: int) -> float:
        remaining = epochs - epoch
        return (remaining - 5) / whole if remaining > 5 else remaining / (5 * whole)

    return schedule


def warm_up(schedule: Schedule, epochs: int) -> Schedule:
    """A schedule times 1/epochs, 2/epochs, ... in its first `epochs` epochs."""
    return lambda epoch: schedule(epoch) * min(1, (epoch + 1) / epochs) if epochs else schedule(epoch)


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum, and what else the papers' retrainings vary.

    Attributes:
        learning_rate: its factor in each epoch is `schedule`.
        label_smoothing: share of a label that is spread over all classes.
        auxiliary_weight: weight of the auxiliary head's loss, if the network has that head.
        drop_path_prob: reached linearly from 0 in the first epoch (DARTS's code).
    """

    epochs: int
    learning_rate: float
    schedule: Schedule
    momentum: float
    weight_decay: float
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.0
    drop_path_prob: float = 0.0
    nesterov: bool = False

    @classmethod
    def of(cls, settings: Any, schedule: Schedule, **others: Any) -> "Recipe":
        """The recipe in a script's settings, whose names are those of the attributes, and `others`."""
        names = {field.name for field in fields(cls)} & vars(settings).keys()
        return cls(**{**{name: getattr(settings, name) for name in names}, "schedule": schedule, **others})


class MeanLoss(Metric):
    """Mean loss over the images that count. (torchmetrics' MeanMetric reads each value back to look for NaN.)"""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, target: Tensor) -> None:
        """Add the mean loss of a batch with labels `target` (B,)."""
        self.total += loss.detach() * len(target)
        self.count += (target != IGNORED).sum()

    def compute(self) -> Tensor:
        return self.total / self.count


class CountedImages(MeanLoss):
    """Number of images that count."""

    def compute(self) -> Tensor:
        return self.count


def make_metrics(prefix: str, classes: int, top5: bool, ignoring: bool) -> MetricCollection:
    """Loss, accuracy and, if asked for, top-5 accuracy and the number of images that count."""
    options: dict[str, Any] = {"average": "micro", "validate_args": False}
    options["ignore_index"] = IGNORED if ignoring else None
    metrics: dict[str, Metric] = {"loss": MeanLoss(), "accuracy": MulticlassAccuracy(classes, **options)}
    if top5:
        metrics["top5"] = MulticlassAccuracy(classes, top_k=min(5, classes), **options)
    if ignoring:
        metrics["images"] = CountedImages()
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)  # type: ignore[arg-type]  # invariant dict


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over the images that count, divided by the number of all (B)."""
    total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing, ignore_index=IGNORED)
    return total / len(labels)


class Retraining(LightningModule):
    """A discrete network, trained under a recipe and scored on the test images.

    Args:
        network: maps images and a drop path probability to logits and the auxiliary head's logits (or None).
        classes: number of classes.
        recipe: None if the network is only scored.
        memory_format: of images and weights.
        about: plain values that a checkpoint keeps, such as settings and genotype.
        compile_for: compile the network, which is trained on batches of this shape.
        top5: measure top-5 accuracy, too.
        ignoring: some labels may be IGNORED.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        recipe: Recipe | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        about: dict[str, Any] | None = None,
        compile_for: Sequence[int] = (),
        top5: bool = False,
        ignoring: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(about or {}, logger=False)
        self.network = network.to(memory_format=memory_format)
        self.memory_format, self.compile_for = memory_format, compile_for
        if recipe:
            self.recipe = recipe
        self.losses: list[Tensor] = []  # of the passes of a step
        self.train_metrics, self.test_metrics = (
            make_metrics(prefix, classes, top5, ignoring) for prefix in ("train_", "test_")
        )

    def forward(self, images: Tensor, drop_path_prob: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Logits (B, classes), and the auxiliary head's (or None)."""
        return self.network(images.to(memory_format=self.memory_format), drop_path_prob)

    def loss(self, logits: Tensor, auxiliary_logits: Tensor | None, labels: Tensor) -> Tensor:
        """Mean cross-entropy plus the weighted loss of the auxiliary head (DARTS, section 3.2)."""
        loss = cross_entropy(logits, labels, self.recipe.label_smoothing)
        if auxiliary_logits is not None:
            auxiliary_loss = cross_entropy(auxiliary_logits, labels, self.recipe.label_smoothing)
            loss = loss + self.recipe.auxiliary_weight * auxiliary_loss
        return loss

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.schedule)}

    def on_fit_start(self) -> None:
        self.watch = FiniteCheck(self.device)
        if self.compile_for:
            compile_parts(self.network.train(), [self.network], self._all_passes)

    def _all_passes(self) -> None:
        """Each pass that training takes, for the compiler. Drop path is another function than none."""
        images = torch.zeros(self.compile_for, device=self.device)
        labels = torch.zeros(len(images), dtype=torch.long, device=self.device)
        for drop_path_prob in {0.0, self.recipe.drop_path_prob / 2}:
            with self.trainer.precision_plugin.forward_context():
                logits, auxiliary_logits = self(images, drop_path_prob)
                loss = self.loss(logits, auxiliary_logits, labels)
            # not backward(), which DDP would take for a training step
            torch.autograd.grad(loss, list(self.network.parameters()), allow_unused=True)

    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()  # a resumed epoch does not come here and goes on with its sums

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        torch.manual_seed(batch.seed)
        drop_path_prob = self.recipe.drop_path_prob * self.current_epoch / self.recipe.epochs
        logits, auxiliary_logits = self(batch.images, drop_path_prob)
        loss = self.loss(logits, auxiliary_logits, batch.labels)
        self.step, self.losses = batch_idx, [*self.losses, loss.detach()]
        self.train_metrics.update(loss=loss, preds=logits.detach(), target=batch.labels)
        return loss * batch.weight

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        if self.trainer.is_last_batch:  # log_dict takes a millisecond
            self.log_dict(self.train_metrics, on_step=False, on_epoch=True, logger=False)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient's norm, and raise FloatingPointError if the loss or the norm is not finite."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val or math.inf)
        finite = {"train_loss": torch.stack(self.losses).sum(), "gradient_norm": norm}
        self.losses = []
        if self.trainer.precision == "16-mixed":  # its scaler skips the steps of infinite gradients
            del finite["gradient_norm"]
        self.watch.add(self.current_epoch, self.step, finite)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(batch.seed)
        logits, _ = self(batch.images)
        self.test_metrics.update(loss=cross_entropy(logits, batch.labels), preds=logits, target=batch.labels)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.test_metrics, logger=False)

    test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metrics of the current epoch, summed over all devices."""
        self.watch.check()
        metrics = {}
        for name, metric in self.train_metrics.items():
            with metric.sync_context():
                # These metrics keep tensors, others may keep lists.
                metrics[name] = {key: value.clone() for key, value in metric.metric_state.items()}  # type: ignore[union-attr]
        checkpoint["train_metrics"] = metrics

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.global_rank == 0:  # the saved sums are those of all devices
            for name, state in checkpoint["train_metrics"].items():
                for key, value in state.items():
                    setattr(self.train_metrics[name], key, value.to(self.device))
