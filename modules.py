"""A discrete network in training and its images, as Lightning takes them.

Everything random is a function of (seed, epoch, batch), so that a run that goes on from its last checkpoint, with the
next batch, ends in the same weights as one that was never interrupted (bit for bit on the CPU).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy

import data
from recipes import IGNORED, Recipe, cross_entropy
from utils import compile_parts


class Scores(nn.Module):
    """Mean loss and accuracy over the images seen, on all devices together.

    Args:
        top5: also how often the label is among the five largest logits.
        ignoring: some labels may be IGNORED.
    """

    def __init__(self, classes: int, top5: bool = False, ignoring: bool = False) -> None:
        super().__init__()
        self.ignoring = ignoring
        options: dict[str, Any] = {
            "average": "micro",
            "validate_args": False,
            "ignore_index": IGNORED if ignoring else None,
        }
        # Sums: a MeanMetric that does not look for NaN at every update (and wait for the GPU) forgets the weights.
        self.loss, self.images = (SumMetric(nan_strategy="disable") for _ in range(2))
        self.accuracy = MulticlassAccuracy(classes, **options)
        if top5:
            self.top5 = MulticlassAccuracy(classes, top_k=min(5, classes), **options)

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: its mean loss, logits (B, classes) and labels (B,)."""
        self.images.update((labels != IGNORED).sum())
        self.loss.update(loss.detach() * len(labels))
        for metric in self._accuracies().values():
            metric.update(logits.detach(), labels)

    def _metrics(self) -> dict[str, Metric]:
        return {name: metric for name, metric in self.named_children() if isinstance(metric, Metric)}

    def _accuracies(self) -> dict[str, MulticlassAccuracy]:
        return {name: metric for name, metric in self._metrics().items() if isinstance(metric, MulticlassAccuracy)}

    def take(self) -> dict[str, float]:
        """The loss, and accuracies in [0, 1]; starts again from nothing. All devices must call this together.

        Where some may be ignored, also the number of images that count.
        """
        accuracies = {name: round(metric.compute().item(), 6) for name, metric in self._accuracies().items()}
        images = self.images.compute()
        scores = {"loss": (self.loss.compute() / images).item(), **accuracies}
        if self.ignoring:
            scores["images"] = int(images)
        for each in self._metrics().values():
            each.reset()
        return scores

    def sums(self) -> dict[str, dict[str, Tensor]]:
        """What was counted so far, on all devices together. All devices must call this together."""
        result = {}
        for name, metric in self._metrics().items():
            with metric.sync_context():
                # These metrics keep tensors, others may keep lists.
                state: Mapping[str, Tensor] = metric.metric_state  # type: ignore[assignment]
                result[name] = {key: value.detach().clone() for key, value in state.items()}
        return result

    def resume(self, sums: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from what `sums` gave.

        Raises:
            KeyError, ValueError: it is of other scores.
        """
        metrics = self._metrics()
        for name, values in sums.items():
            for key, value in values.items():
                # These metrics keep tensors, others may keep lists.
                shape = metrics[name].metric_state[key].shape  # type: ignore[union-attr]
                if value.shape != shape or value.dtype not in (torch.float32, torch.float64, torch.long):
                    raise ValueError(f"the {name} so far is of another shape or type")
                setattr(metrics[name], key, value.to(metrics[name].device))


class Evaluation(LightningModule):
    """A discrete network and its scores on the test images.

    Args:
        network: maps images to logits and the auxiliary head's logits (or None).
        classes: number of classes.
        memory_format: of images and weights.
        top5, ignoring: of the `Scores`.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        memory_format: torch.memory_format,
        top5: bool = False,
        ignoring: bool = False,
    ) -> None:
        super().__init__()
        self.memory_format = memory_format
        self.network = network.to(memory_format=memory_format)
        self.test_scores = Scores(classes, top5, ignoring)

    def forward(self, images: Tensor, drop_path_prob: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """The logits (B, classes), and the auxiliary head's (or None)."""
        return self.network(images.to(memory_format=self.memory_format), drop_path_prob)

    def validation_step(self, batch: data.Batch, batch_idx: int) -> None:
        torch.manual_seed(batch.seed)
        logits, _ = self(batch.images)
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
        memory_format: torch.memory_format,
        recipe: Recipe,
        compile_for: Sequence[int] = (),
        top5: bool = False,
        ignoring: bool = False,
    ) -> None:
        super().__init__(network, classes, memory_format, top5, ignoring)
        self.recipe = recipe
        self.compile_for = compile_for
        self.train_scores = Scores(classes, top5, ignoring)
        #: of the last step, what must be finite: the loss, and the norm of the gradient before it is clipped
        self.watched: dict[str, Tensor] = {}

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
        images = torch.zeros(self.compile_for, device=self.device)
        labels = torch.zeros(len(images), dtype=torch.long, device=self.device)

        def passes() -> None:
            # Drop path is another function than none.
            for drop_path_prob in {0.0, self.recipe.drop_path_prob / 2}:
                with self.trainer.precision_plugin.forward_context():
                    logits, auxiliary_logits = self(images, drop_path_prob)
                    loss = self.recipe.loss(logits, auxiliary_logits, labels)
                # Not backward(), which DDP would take for a step of the training.
                torch.autograd.grad(loss, list(self.network.parameters()), allow_unused=True)

        compile_parts(self.network.train(), [self.network], passes)

    def on_train_epoch_start(self) -> None:
        (optimizer,) = self.trainer.optimizers
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.current_epoch)

    def training_step(self, batch: data.Batch, batch_idx: int) -> Tensor:
        torch.manual_seed(batch.seed)
        logits, auxiliary_logits = self(batch.images, self.recipe.drop_path_prob_of(self.current_epoch))
        loss = self.recipe.loss(logits, auxiliary_logits, batch.labels)
        self.watched["train_loss"] = loss.detach()
        self.train_scores.update(loss, logits, batch.labels)
        return loss * batch.weight

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, and keep the norm."""
        largest = math.inf if gradient_clip_val is None else gradient_clip_val
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), largest)
        if self.trainer.precision != "16-mixed":  # whose scaling makes infinite gradients, and leaves out their steps
            self.watched["gradient_norm"] = norm

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
        count, test_count: number of training and of test images.
        batch_size: images of a step, on all devices together.
    """

    trainer: Trainer  # once there is one

    def __init__(
        self,
        classes: Sequence[str],
        in_channels: int,
        image_size: int,
        count: int,
        test_count: int,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.classes, self.in_channels, self.image_size = tuple(classes), in_channels, image_size
        self.count, self.test_count, self.batch_size = count, test_count, batch_size

    def sha256(self) -> str:
        """What identifies the training images, in their order."""
        raise NotImplementedError

    def shares(self, order: Tensor, begin: int = 0) -> list[data.Share]:
        """The passes of this process's device through an epoch's images, in their order."""
        trainer = self.trainer
        return data.shares(
            order, self.batch_size, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches, begin
        )

    def test_shares(self) -> list[data.Share]:
        """This process's part of the test images, pass by pass: as many passes for every process."""
        trainer = self.trainer
        own = torch.arange(trainer.global_rank, self.test_count, trainer.world_size)
        most = math.ceil(self.batch_size / (trainer.world_size * trainer.accumulate_grad_batches))
        passes = math.ceil(math.ceil(self.test_count / trainer.world_size) / most)
        passes = min(passes, self.test_count // trainer.world_size)  # none without images
        return [data.Share(part, 1.0) for part in own.tensor_split(passes)]


def batches_done(trainer: Trainer) -> int:
    """How many batches of the epoch under way a checkpoint has behind it; 0 where none was loaded, or a whole epoch."""
    loop = trainer.fit_loop
    return loop.batch_idx + 1 if loop.restarting else 0


class Parts:
    """A pass over batches that are made when it is their turn.

    Args:
        shares: of each batch.
        make: from its number and its share.
    """

    def __init__(self, shares: Sequence[data.Share], make: Callable[[int, data.Share], data.Batch]) -> None:
        self.shares, self.make = shares, make

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[data.Batch]:
        return (self.make(number, share) for number, share in enumerate(self.shares))


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
        # The Trainer's current_epoch is one behind here where an epoch's last checkpoint was loaded.
        # Lightning declares only the base class of what counts the epochs.
        epoch = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return iter(self.make(epoch, batches_done(self.trainer)))


class TensorImages(Images):
    """A data set on the device, a new shuffle and augmentation each epoch; each device takes its share of a batch.

    The test images are scored once each: devices may have unequal numbers of them.

    Args:
        batch_size: images of a step, on all devices together.
        augmentation: of the training images; test images are normalized only.
    """

    def __init__(self, dataset: data.DataSet, batch_size: int, augmentation: data.Augmentation, seed: int) -> None:
        counts = (len(dataset.train), len(dataset.test))
        super().__init__(dataset.classes, dataset.in_channels, dataset.image_size, *counts, batch_size)
        self.dataset, self.augmentation, self.seed = dataset, augmentation, seed

    def sha256(self) -> str:
        """Of the training images and their labels."""
        return data.sha256(self.dataset.train)

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        if stage == "fit":
            self.train = self.dataset.train.to(device)
        self.test = self.dataset.test.to(device)

    def train_dataloader(self) -> Epochs:
        return Epochs(self.trainer, len(self.shares(torch.arange(self.count))), self._batches)

    def _batches(self, epoch: int, done: int) -> Iterator[data.Batch]:
        device, rank = self.train.labels.device, self.trainer.global_rank
        order = data.shuffled(self.count, self.seed, epoch, 0).to(device)
        for number, share in enumerate(self.shares(order, done), done):
            generator = data.random_numbers(device, self.seed, epoch, 1, rank, number)
            images = self.augmentation(self.train.images[share.indices], generator)
            seed = data.mix(self.seed, epoch, 2, rank, number)
            yield data.Batch(images, self.train.labels[share.indices], seed, share.weight)

    def val_dataloader(self) -> Parts:
        none = data.Augmentation.none(self.dataset)

        def make(number: int, share: data.Share) -> data.Batch:
            chosen = share.indices.to(self.test.labels.device)
            images = none(self.test.images[chosen], torch.Generator(chosen.device))
            seed = data.mix(self.seed, 0, 2, self.trainer.global_rank, number)
            return data.Batch(images, self.test.labels[chosen], seed)

        return Parts(self.test_shares(), make)

    test_dataloader = val_dataloader
