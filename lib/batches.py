"""Batches of images on the device: their order, their augmentation, and the share of each process.

All random numbers are a function of (seed, epoch), so a run that repeats an epoch sees the same batches.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.datasets import DataSet, ImageSet
from lib.seeds import mix, random_numbers, shuffled


class Batch(NamedTuple):
    """A mini-batch and the seed of the network's random operations (`noise`, drop path).

    All passes over a batch draw the same noise, so they evaluate the same function. With --noise fresh, each pass draws
    new noise.
    """

    images: Tensor  # (B, channels, H, W)
    labels: Tensor  # (B,)
    seed: int = 0
    weight: float = 1.0  # factor of its mean loss, if a step has several batches


def on_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A tensor (1, channels, 1, 1) of the values, filled on the device (a copy from the host would synchronize)."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])[None]


@dataclass(frozen=True)
class Augmentation:
    """Crop and flip the images of a uint8 batch at random, normalize them, and apply cutout.

    Attributes:
        mean, std: Mean and standard deviation of each channel, for images in [0, 1].
        padding: Zero padding before a random crop to the original size. 0 disables the crop.
        flip: Mirror each image with probability 0.5.
        cutout_length: Side of the square that cutout sets to the mean (DeVries and Taylor, 2017), rounded down to an
            even number as in DARTS's code. 0 disables cutout.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    flip: bool = False
    cutout_length: int = 0

    @classmethod
    def training(cls, data: DataSet, cutout_length: int = 0) -> "Augmentation":
        """The papers' augmentation: a flip, and a crop whose padding is an eighth of the image size (4 of 32 pixels).

        Raises:
            ValueError: The cutout is empty, or as large as the image.
        """
        if cutout_length and not 2 <= cutout_length < data.image_size:
            raise ValueError(
                f"{cutout_length}, expected 2 to {data.image_size - 1} for images of {data.image_size} pixels"
            )
        return cls(data.mean, data.std, max(1, data.image_size // 8), data.flip, cutout_length)

    @classmethod
    def none(cls, data: DataSet) -> "Augmentation":
        """Normalize only."""
        return cls(data.mean, data.std)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment uint8 images (B, channels, H, W). Returns float32 images, channels last in memory."""
        batch, _, height, width = images.shape
        device = images.device
        if self.padding or self.flip:
            images = F.pad(images, (self.padding,) * 4)
            shift = torch.randint(0, 2 * self.padding + 1, (2, batch, 1), generator=generator, device=device)
            rows = shift[0] + torch.arange(height, device=device)  # (B, H)
            columns = shift[1] + torch.arange(width, device=device)  # (B, W)
            if self.flip:
                mirrored = torch.rand(batch, 1, generator=generator, device=device) < 0.5
                columns = torch.where(mirrored, columns.flip(1), columns)
            index = torch.arange(batch, device=device)[:, None, None]
            images = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        mean, std = (255 * on_channels(values, device) for values in (self.mean, self.std))
        output = (images.float() - mean) / std
        if self.cutout_length:
            half = self.cutout_length // 2
            centre = torch.rand(2, batch, 1, generator=generator, device=device)
            y, x = (centre[0] * height).floor(), (centre[1] * width).floor()  # (B, 1)
            rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
            inside_y = (rows >= y - half) & (rows < y + half)  # (B, H)
            inside_x = (columns >= x - half) & (columns < x + half)  # (B, W)
            output = output.masked_fill((inside_y[:, :, None] & inside_x[:, None, :])[:, None], 0)
        return output.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Batches:
    """The batches of one epoch, shuffled and augmented on the device of the images.

    The last batch may be smaller. If it has a single image, it is dropped, as batch norm needs two.

    Attributes:
        key: Determines the order and the augmentation, such as (seed, epoch).
    """

    data: ImageSet
    batch_size: int
    augmentation: Augmentation
    key: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + (rest > 1)

    def __iter__(self) -> Iterator[Batch]:
        device = self.data.labels.device
        order = shuffled(len(self.data), *self.key, 0).to(device)
        generator = random_numbers(device, *self.key, 1, 0)
        for number in range(len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            images = self.augmentation(self.data.images[chosen], generator)
            yield Batch(images, self.data.labels[chosen], mix(*self.key, 2, 0, number))


def cycle(batches: Batches, count: int) -> Iterator[Batch]:
    """Yield `count` batches, and reshuffle the images for each pass over them."""
    repeat = 0
    while count > 0:
        for batch in Batches(batches.data, batches.batch_size, batches.augmentation, (*batches.key, repeat)):
            yield batch
            count -= 1
            if count == 0:
                return
        repeat += 1


def draw(batches: Batches, count: int) -> Iterator[Batch]:
    """Yield `count` batches, each drawn without replacement from all images."""
    device, key = batches.data.labels.device, batches.key
    generator = random_numbers(device, *key, 1, 1)
    orders = [shuffled(len(batches.data), *key, 0, 1, number)[: batches.batch_size] for number in range(count)]
    for number, chosen in enumerate(torch.stack(orders).to(device)):  # a copy in each step would synchronize
        images = batches.augmentation(batches.data.images[chosen], generator)
        yield Batch(images, batches.data.labels[chosen], mix(*key, 2, 1, number))


class Share(NamedTuple):
    """The images of one process in one pass through the network."""

    indices: Tensor
    weight: float  # factor of their mean loss, see `shares`


def shares(
    order: Tensor, batch_size: int, rank: int = 0, world: int = 1, accumulate: int = 1, begin: int = 0
) -> list[Share]:
    """The images of one process in each pass of an epoch.

    A step takes the next `batch_size` images of the order, whatever the number of processes. It splits them into
    `accumulate` equal passes, and divides each pass among the processes. The last step may be smaller; it then has only
    as many passes as it needs. If it has fewer than two images for each process, which batch norm needs, its images are
    added to the previous step.

    Lightning sums the weighted mean losses of the passes of a step, divides by `accumulate`, and averages over the
    processes. With these weights, the result is the mean loss over the images of the step.

    Args:
        order: Indices of all images in the order of the epoch, (N,).
        accumulate: At most `batch_size` // (2 * `world`).
        begin: Number of completed passes, which are skipped.
    """
    smallest = 2 * world
    steps = list(order.split(batch_size))
    if len(steps) > 1 and len(steps[-1]) < smallest:
        steps[-2:] = [torch.cat(steps[-2:])]
    result = []
    for number, step in enumerate(steps):
        passes = accumulate
        if number == len(steps) - 1:
            whole = math.ceil(batch_size / accumulate)
            passes = max(1, min(accumulate, math.ceil(len(step) / whole), len(step) // smallest))
        for part in step.tensor_split(passes):
            own = part[rank::world]
            result.append(Share(own, len(own) * world * accumulate / len(step)))
    return result[begin:]
