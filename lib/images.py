"""The images of a retraining as LightningDataModules, in shares for several devices.

Everything random is a function of (seed, epoch, batch). A run that is resumed with the next batch therefore ends with
the same weights as one that was not interrupted (bit for bit on a CPU).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor

from lib import datasets
from lib.batches import Augmentation, Batch, Share, shares
from lib.cli import InputError, blaming
from lib.datasets import DataSet, load_dataset
from lib.seeds import mix, random_numbers, shuffled


class Images(LightningDataModule):
    """Training and test images.

    Args:
        classes: their names.
        in_channels: channels of the images.
        image_size: height and width in pixels, as the network sees them.
        count, test_count: number of training and of test images.
        batch_size: images of a step, on all devices together.
        sha256: identifies the training images and their order.
    """

    trainer: Trainer  # set by the Trainer

    def __init__(
        self,
        classes: Sequence[str],
        in_channels: int,
        image_size: int,
        count: int,
        test_count: int,
        batch_size: int,
        sha256: str,
    ) -> None:
        super().__init__()
        self.classes, self.in_channels, self.image_size = tuple(classes), in_channels, image_size
        self.count, self.test_count, self.batch_size, self.sha256 = count, test_count, batch_size, sha256

    def state_dict(self) -> dict[str, Any]:
        return {"classes": self.classes, "images": self.count, "sha256": self.sha256}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise InputError if the run began with other images."""
        for name, now in self.state_dict().items():
            if state[name] != now:
                what = {"classes": "classes", "images": f"number of training images ({state[name]})"}
                raise InputError(f"--data: the run began with other {what.get(name, 'training images')}")

    def shares(self, order: Tensor, begin: int = 0) -> list[Share]:
        """The images of this device in each pass of an epoch, from pass `begin` on."""
        trainer = self.trainer
        return shares(
            order, self.batch_size, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches, begin
        )

    def test_shares(self) -> list[Share]:
        """The test images of this device in each pass; all devices have the same number of passes."""
        trainer = self.trainer
        own = torch.arange(trainer.global_rank, self.test_count, trainer.world_size)
        most = math.ceil(self.batch_size / (trainer.world_size * trainer.accumulate_grad_batches))
        passes = math.ceil(math.ceil(self.test_count / trainer.world_size) / most)
        passes = min(passes, self.test_count // trainer.world_size)  # no pass without images
        return [Share(part, 1.0) for part in own.tensor_split(passes)]


class Epochs:
    """The batches of one epoch after another. Its state is the position in the epoch, so that a run can be resumed.

    Args:
        batches: number of batches of an epoch.
        make: makes the batches of an epoch, counted from 0, from a batch number on.
    """

    def __init__(self, batches: int, make: Callable[[int, int], Iterable[Any]]) -> None:
        self.batches, self.make = batches, make
        self.epoch = self.done = 0
        self.sampler = self  # Lightning calls set_epoch of a loader's sampler

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self.make(self.epoch, self.done):
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "done": self.done, "batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raise InputError if the epoch had another number of batches when the run stopped within it."""
        if state["batches"] != self.batches:
            raise InputError(
                f"--devices, --accumulate: the run stopped in an epoch of {state['batches']} passes, which has "
                f"{self.batches} now; expected the values that it had, until the epoch ends"
            )
        self.epoch, self.done = state["epoch"], state["done"]


class Passes:
    """Test batches; `make` makes each from its number when it is needed."""

    def __init__(self, passes: int, make: Callable[[int], Batch]) -> None:
        self.passes, self.make = passes, make

    def __len__(self) -> int:
        return self.passes

    def __iter__(self) -> Iterator[Batch]:
        return map(self.make, range(self.passes))


class TensorImages(Images):
    """A data set on the device, shuffled and augmented anew in each epoch.

    Args:
        batch_size: images of a step, on all devices together.
        augmentation: of the training images; test images are only normalized.
    """

    def __init__(self, dataset: DataSet, batch_size: int, augmentation: Augmentation, seed: int) -> None:
        counts = (len(dataset.train), len(dataset.test))
        shape = (dataset.classes, dataset.in_channels, dataset.image_size)
        super().__init__(*shape, *counts, batch_size, datasets.sha256(dataset.train))
        self.dataset, self.augmentation, self.seed = dataset, augmentation, seed

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        if stage == "fit":
            self.train = self.dataset.train.to(device)
        self.test = self.dataset.test.to(device)

    def train_dataloader(self) -> Epochs:
        return Epochs(len(self.shares(torch.arange(self.count))), self._batches)

    def _batches(self, epoch: int, done: int) -> Iterator[Batch]:
        device, rank = self.train.labels.device, self.trainer.global_rank
        order = shuffled(self.count, self.seed, epoch, 0).to(device)
        for number, share in enumerate(self.shares(order, done), done):
            generator = random_numbers(device, self.seed, epoch, 1, rank, number)
            images = self.augmentation(self.train.images[share.indices], generator)
            seed = mix(self.seed, epoch, 2, rank, number)
            yield Batch(images, self.train.labels[share.indices], seed, share.weight)

    def val_dataloader(self) -> Passes:
        none, rank, shares = Augmentation.none(self.dataset), self.trainer.global_rank, self.test_shares()

        def make(number: int) -> Batch:
            chosen = shares[number].indices.to(self.test.labels.device)
            images = none(self.test.images[chosen], torch.Generator(chosen.device))
            return Batch(images, self.test.labels[chosen], mix(self.seed, 0, 2, rank, number))

        return Passes(len(shares), make)

    test_dataloader = val_dataloader


def tensor_images(settings: Any) -> TensorImages:
    """The data set that the flags of `ImageSettings` name.

    Raises:
        InputError: its files are missing or damaged, or the cutout is larger than the images.
    """
    dataset = load_dataset(settings)
    with blaming("--cutout_length"):
        augmentation = Augmentation.training(dataset, settings.cutout_length if settings.cutout else 0)
    return TensorImages(dataset, settings.batch_size, augmentation, settings.seed)
