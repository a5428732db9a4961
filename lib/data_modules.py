"""LightningDataModules for retraining, which give each device its share of every batch.

All random numbers are a function of (seed, epoch, pass). An interrupted run therefore ends with the same weights as an
uninterrupted one (bit for bit on a CPU), even if it resumes in the middle of an epoch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lib import datasets
from lib.batches import Augmentation, Batch, shares
from lib.cli import InputError, blaming
from lib.datasets import DataSet, load_dataset
from lib.preprocessing import Preprocessing
from lib.seeds import mix, random_numbers, shuffled


class Pass(NamedTuple):
    """The images of this device in one pass through the network."""

    indices: np.ndarray  # (B,)
    weight: float  # factor of the pass's mean loss, see lib.batches.shares
    epoch: int
    number: int  # index of the pass in its epoch
    seed: int  # for the random numbers that the network draws


class RetrainDataModule(LightningDataModule):
    """Training and test images, divided among the devices.

    Args:
        classes: Names of the classes.
        preprocessing: Preprocessing of the test images.
        count, test_count: Number of training and of test images.
        batch_size: Images per step, on all devices together.
        sha256: Identifies the training images and their order.
        seed: Seed of the order of the images and of the augmentation.
    """

    trainer: Trainer  # set by the Trainer

    def __init__(
        self,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        count: int,
        test_count: int,
        batch_size: int,
        sha256: str,
        seed: int,
    ) -> None:
        super().__init__()
        self.classes, self.preprocessing = tuple(classes), preprocessing
        self.in_channels, self.image_size = preprocessing.channels, preprocessing.image_size
        self.count, self.test_count, self.batch_size = count, test_count, batch_size
        self.sha256, self.seed = sha256, seed

    def state_dict(self) -> dict[str, Any]:
        return {"classes": self.classes, "training images": self.sha256}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise an InputError if the run began with other images."""
        for name, value in self.state_dict().items():
            if state[name] != value:
                raise InputError(f"--data: the run began with other {name}; expected the same")

    def train_passes(self, epoch: int, done: int = 0) -> list[Pass]:
        """The passes of this device in an epoch, without the first `done`."""
        order, trainer = shuffled(self.count, self.seed, epoch), self.trainer
        ours = shares(
            order, self.batch_size, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches, done
        )
        return [self._pass(*share, epoch, number) for number, share in enumerate(ours, done)]

    def test_passes(self) -> list[Pass]:
        """The passes of this device over the test images. All devices have the same number of passes."""
        trainer = self.trainer
        ours = torch.arange(trainer.global_rank, self.test_count, trainer.world_size)
        largest = math.ceil(self.batch_size / (trainer.world_size * trainer.accumulate_grad_batches))
        count = math.ceil(math.ceil(self.test_count / trainer.world_size) / largest)
        count = min(count, self.test_count // trainer.world_size)  # each pass needs an image
        return [self._pass(part, 1.0, 0, number) for number, part in enumerate(ours.tensor_split(count))]

    def _pass(self, indices: Tensor, weight: float, epoch: int, number: int) -> Pass:
        seed = mix(self.seed, epoch, 2, self.trainer.global_rank, number)
        return Pass(indices.numpy(), weight, epoch, number, seed)


class ResumableLoader:
    """A loader of the passes of each epoch. Its position in the epoch is saved in checkpoints.

    Args:
        length: Number of passes in an epoch.
        passes: Takes an epoch, counted from 0, and the number of completed passes. Returns the remaining passes.
    """

    def __init__(self, length: int, passes: Callable[[int, int], Iterable[Any]]) -> None:
        self.length, self.passes = length, passes
        self.epoch = self.done = 0
        self.sampler = self  # Lightning calls set_epoch of a loader's sampler

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        for one in self.passes(self.epoch, self.done):
            self.done += 1
            yield one

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "done": self.done, "length": self.length}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raise an InputError if the epoch had another number of passes when the run stopped."""
        if state["length"] != self.length:
            raise InputError(
                f"--devices, --accumulate: the run stopped in an epoch of {state['length']} passes, but these values "
                f"give {self.length}; expected the earlier values until the epoch ends"
            )
        self.epoch, self.done = state["epoch"], state["done"]


class TensorDataModule(RetrainDataModule):
    """A data set that is stored and augmented on the device.

    Args:
        batch_size: Images per step, on all devices together.
        augmentation: Augmentation of the training images. The test images are only normalized.
    """

    def __init__(self, dataset: DataSet, batch_size: int, augmentation: Augmentation, seed: int) -> None:
        size = dataset.image_size
        preprocessing = Preprocessing(dataset.in_channels, size, size, dataset.mean, dataset.std)
        counts = (len(dataset.train), len(dataset.test))
        super().__init__(dataset.classes, preprocessing, *counts, batch_size, datasets.sha256(dataset.train), seed)
        self.dataset, self.augmentation = dataset, augmentation

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        self.train, self.test = self.dataset.train.to(device), self.dataset.test.to(device)

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(len(self.train_passes(0)), self.train_passes)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test_passes(), batch_size=None)  # type: ignore[arg-type]  # a list is a data set

    test_dataloader = val_dataloader

    def on_after_batch_transfer(self, batch: Pass, dataloader_idx: int) -> Batch:
        """Select the images of a pass. Augment training images; only normalize test images."""
        images, augmentation = self.test, Augmentation.none(self.dataset)
        if self.trainer.training:
            images, augmentation = self.train, self.augmentation
        device = images.labels.device
        chosen = images.subset(torch.as_tensor(batch.indices, device=device))
        generator = random_numbers(device, self.seed, batch.epoch, 1, self.trainer.global_rank, batch.number)
        return Batch(augmentation(chosen.images, generator), chosen.labels, batch.seed, batch.weight)


def make_data_module(settings: Any) -> TensorDataModule:
    """Load the data set that the flags of `ImageSettings` name.

    Raises:
        InputError: Its files are missing or damaged, or the cutout is larger than the images.
    """
    dataset = load_dataset(settings)
    with blaming("--cutout_length"):
        augmentation = Augmentation.training(dataset, settings.cutout_length if settings.cutout else 0)
    return TensorDataModule(dataset, settings.batch_size, augmentation, settings.seed)
