"""The training of a discrete network as a LightningModule: its recipe, loss, optimizer and metrics."""

import math
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
from lib.schedules import LearningRateFactor


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a retraining with SGD.

    Attributes:
        learning_rate: Initial learning rate. `schedule` gives its factor in each epoch.
        label_smoothing: Share of each label that is spread over all classes.
        auxiliary_weight: Weight of the auxiliary head's loss, if the network has that head.
        drop_path_prob: Probability of drop path, increased linearly from 0 (DARTS's code).
    """

    epochs: int
    learning_rate: float
    schedule: LearningRateFactor
    momentum: float
    weight_decay: float
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.0
    drop_path_prob: float = 0.0
    nesterov: bool = False

    @classmethod
    def of(cls, settings: Any, schedule: LearningRateFactor, **others: Any) -> "Recipe":
        """Make a recipe from the settings with the same names. `others` override them."""
        names = {field.name for field in fields(cls)} & vars(settings).keys()
        return cls(**{**{name: getattr(settings, name) for name in names}, "schedule": schedule, **others})


class MeanLoss(Metric):
    """Mean loss over the images. (torchmetrics' MeanMetric waits for the GPU at every step to look for NaN.)"""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, target: Tensor) -> None:
        """Add the mean loss of a batch with labels `target` (B,)."""
        self.total += loss.detach() * len(target)
        self.count += len(target)

    def compute(self) -> Tensor:
        return self.total / self.count


def make_metrics(prefix: str, classes: int, top5: bool) -> MetricCollection:
    """Loss, accuracy and, on request, top-5 accuracy."""
    metrics: dict[str, Any] = {"loss": MeanLoss()}
    for name, k in (("accuracy", 1), ("top5", 5)) if top5 else (("accuracy", 1),):
        metrics[name] = MulticlassAccuracy(classes, top_k=min(k, classes), average="micro", validate_args=False)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


class Retraining(LightningModule):
    """Train a discrete network with a recipe and score it on the test images.

    Args:
        network: Maps images and a drop path probability to logits and the auxiliary head's logits (or None).
        classes: Number of classes.
        recipe: None if the network is only scored.
        memory_format: Memory format of images and weights.
        about: Plain values to keep in checkpoints, such as settings and genotype.
        compiled: Compile the network.
        top5: Measure top-5 accuracy too.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        recipe: Recipe | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        about: dict[str, Any] | None = None,
        compiled: bool = False,
        top5: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(about or {}, logger=False)
        self.network = network.to(memory_format=memory_format)
        self.memory_format, self.compiled = memory_format, compiled
        if recipe:
            self.recipe = recipe
        self.losses: list[Tensor] = []  # losses of the passes of a step
        self.train_metrics, self.test_metrics = (make_metrics(name, classes, top5) for name in ("train_", "test_"))

    def forward(self, images: Tensor, drop_path_prob: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Logits (B, classes), and the auxiliary head's logits (or None)."""
        return self.network(images.to(memory_format=self.memory_format), drop_path_prob)

    def loss(self, logits: Tensor, auxiliary_logits: Tensor | None, labels: Tensor) -> Tensor:
        """Cross-entropy plus the weighted loss of the auxiliary head (DARTS, section 3.2)."""
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if auxiliary_logits is not None:
            auxiliary_loss = F.cross_entropy(auxiliary_logits, labels, label_smoothing=smoothing)
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
        if self.compiled:
            compile_parts([self.network])

    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()  # not called in a resumed epoch, whose sums continue

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
        """Clip the norm of the gradient. Raise a FloatingPointError if the loss or the norm is not finite."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val or math.inf)
        finite = {"train_loss": torch.stack(self.losses).sum(), "gradient_norm": norm}
        self.losses = []
        if self.trainer.precision == "16-mixed":  # its scaler skips steps with infinite gradients
            del finite["gradient_norm"]
        self.watch.add(self.current_epoch, self.step, finite)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(batch.seed)
        logits, _ = self(batch.images)
        self.test_metrics.update(loss=F.cross_entropy(logits, batch.labels), preds=logits, target=batch.labels)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.test_metrics, logger=False)

    test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metrics of the current epoch, summed over all devices."""
        self.watch.check()
        metrics = {}
        for name, metric in self.train_metrics.items():
            with metric.sync_context():
                metrics[name] = {key: torch.as_tensor(value).clone() for key, value in metric.metric_state.items()}
        checkpoint["train_metrics"] = metrics

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.global_rank == 0:  # the saved sums are those of all devices
            for name, state in checkpoint["train_metrics"].items():
                for key, value in state.items():
                    setattr(self.train_metrics[name], key, value.to(self.device))
