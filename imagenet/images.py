"""ImageNet's pictures, or any others in a folder for each class: decoded by worker processes, augmented on the device.

Workers read, crop and resize; what they hand over is uint8. Colour jitter and normalization are a few operations on the
whole batch, on the device. Everything random about a picture is a function of (seed, epoch, picture): it does not
depend on the number of workers or of devices.
"""

import hashlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import cli
import data
from cli import InputError, blaming
from imagenet.layout import find_split
from modules import Epochs, Images
from recipes import IGNORED

#: of the channels over ImageNet, as every paper normalizes with
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: brightness, contrast, saturation, hue
JITTER = (0.4, 0.4, 0.4, 0.2)


@dataclass(frozen=True)
class Tree:
    """The pictures of one split: a folder for each class.

    Attributes:
        paths: below `root`, as bytes of one length (a list of a million strings would be copied into every worker).
        labels: (N,) int64.
    """

    root: Path
    classes: tuple[str, ...]
    paths: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, number: int) -> Path:
        """Where a picture lies."""
        return self.root / self.paths[number].decode()


def read_tree(root: Path) -> Tree:
    """Look through the folders of a split's classes.

    Raises:
        ValueError: there are fewer than two classes, or one has no pictures.
    """
    classes = data.class_folders(root)
    if len(classes) < 2:
        hint = "; its pictures lie side by side: `python imagenet/prepare.py` sorts them"
        raise ValueError(
            f"{root} has {len(classes)} class folder(s); expected two or more{hint if data.pictures(root) else ''}"
        )
    paths: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = data.pictures(root / name)
        if not found:
            raise ValueError(f"no pictures in {root / name}")
        paths += [f"{name}/{path.name}".encode() for path in found]
        labels += [label] * len(found)
    return Tree(root, classes, np.array(paths), torch.tensor(labels))


class Key(NamedTuple):
    """A picture as it is to be augmented."""

    epoch: int
    number: int
    pass_: int  # of the epoch
    weight: float  # of the pass; see data.shares


class Sample(NamedTuple):
    """What a worker makes of a picture."""

    image: Tensor  # (3, H, W) uint8
    label: int
    factors: tuple[float, float, float, float]  # of brightness, contrast, saturation, and the shift of the hue
    order: tuple[int, int, int, int]  # in which they are applied
    broken: str  # that and why it could not be read; empty where it was
    key: Key


class Pictures(NamedTuple):
    """A batch as it comes from the workers."""

    images: Tensor  # (B, 3, H, W) uint8, channels last
    labels: Tensor  # (B,)
    factors: Tensor  # (B, 4)
    orders: Tensor  # (B, 4)
    broken: list[str]
    key: Key  # of the first


class Decoder(Dataset[Any]):
    """Read, crop and resize pictures: at random for training (DARTS's code), centred for the test.

    Args:
        size: height and width of the images in pixels.
        seed: None for the test.
    """

    def __init__(self, tree: Tree, size: int, seed: int | None = None) -> None:
        self.tree, self.size, self.seed = tree, size, seed
        if seed is None:
            self.transform = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), v2.PILToTensor()])
        else:
            self.transform = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        self.jitter = v2.ColorJitter(*JITTER)

    def __len__(self) -> int:
        return len(self.tree)

    def __getitem__(self, key: Key) -> Sample:
        path = self.tree.path(key.number)
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.default_generator.manual_seed(data.mix(self.seed, key.epoch, key.number))
            try:
                picture = data.read_picture(path, "RGB")
            except ValueError as error:
                nothing = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
                return Sample(nothing, IGNORED, (1, 1, 1, 0), (0, 1, 2, 3), str(error), key)
            image = self.transform(picture)
            if self.seed is None:
                return Sample(image, int(self.tree.labels[key.number]), (1, 1, 1, 0), (0, 1, 2, 3), "", key)
            drawn = self.jitter.make_params([])
        names = ("brightness", "contrast", "saturation", "hue")
        factors = tuple(drawn[f"{name}_factor"] for name in names)
        return Sample(image, int(self.tree.labels[key.number]), factors, tuple(drawn["fn_idx"].tolist()), "", key)


def collate(samples: Sequence[Sample]) -> Pictures:
    """One batch of the samples."""
    height, width = samples[0].image.shape[1:]
    images = torch.empty(len(samples), height, width, 3, dtype=torch.uint8)
    for place, sample in zip(images, samples, strict=True):
        place.copy_(sample.image.permute(1, 2, 0))
    return Pictures(
        images.permute(0, 3, 1, 2),
        torch.tensor([sample.label for sample in samples]),
        torch.tensor([sample.factors for sample in samples], dtype=torch.float32),
        torch.tensor([sample.order for sample in samples]),
        [sample.broken for sample in samples if sample.broken],
        samples[0].key,
    )


def normalize(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] by MEAN and STD, channels last in memory."""
    mean, std = (data.on_channels(values, images.device) for values in (MEAN, STD))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def colour_jitter(images: Tensor, factors: Tensor, orders: Tensor) -> Tensor:
    """torchvision's ColorJitter with factors and an order for each image, on the whole batch.

    The papers' pipeline rounds to 8 bits after each of the four; here nothing is rounded.

    Args:
        images: (B, 3, H, W) in [0, 1].
        factors: (B, 4), of brightness, contrast and saturation, and the shift of the hue in turns.
        orders: (B, 4), which of the four comes first, second, ... On any device; on the CPU nothing waits for the GPU.
    """
    places = [[torch.nonzero(orders[:, turn] == kind).flatten() for kind in range(4)] for turn in range(4)]
    factors = factors.view(-1, 4, 1, 1, 1)
    for turn in range(4):
        brightness, contrast, saturation, hue = (place.to(images.device, non_blocking=True) for place in places[turn])
        result = torch.empty_like(images)
        if len(brightness):
            result[brightness] = (images[brightness] * factors[brightness, 0]).clamp(0, 1)
        if len(contrast):
            chosen = images[contrast]
            result[contrast] = blend(chosen, gray(chosen).mean(dim=(2, 3), keepdim=True), factors[contrast, 1])
        if len(saturation):
            chosen = images[saturation]
            result[saturation] = blend(chosen, gray(chosen), factors[saturation, 2])
        if len(hue):
            result[hue] = shift_hue(images[hue], factors[hue, 3, 0])
        images = result
    return images


def gray(images: Tensor) -> Tensor:
    """Luma of images (B, 3, H, W) after ITU-R 601-2, (B, 1, H, W)."""
    red, green, blue = images.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def blend(images: Tensor, base: Tensor, factors: Tensor) -> Tensor:
    """`factors` of the images and the rest of `base`, clamped to [0, 1]."""
    return (factors * images + (1 - factors) * base).clamp(0, 1)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] with their hue in HSV turned by `shift` (B, 1, 1), in turns."""
    value, brightest = images.max(dim=1)
    chroma = value - images.min(dim=1).values
    red, green, blue = images.unbind(dim=1)
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sixth = torch.where(
        brightest == 0,
        (green - blue) / divisor,
        torch.where(brightest == 1, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = 6 * torch.remainder(sixth / 6 + shift, 1)
    # The channels of a colour: value - chroma * max(0, min(k, 4 - k, 1)), k = (5, 3, 1) + hue in sixths of a turn
    channels = []
    for offset in (5, 3, 1):
        k = torch.remainder(offset + hue, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def transfer(batch: Pictures, device: torch.device) -> Pictures:
    """A batch on a device, but for the orders, which the host reads."""
    images, labels, factors = (part.to(device, non_blocking=True) for part in batch[:3])
    return batch._replace(images=images, labels=labels, factors=factors)


def on_device(batch: Pictures, dtype: torch.dtype, jitter: bool) -> Tensor:
    """The images of a batch as the network takes them, (B, 3, H, W)."""
    images = batch.images.to(dtype) / 255
    if jitter:
        images = colour_jitter(images, batch.factors.to(dtype), batch.orders)
    return normalize(images)


class Keys:
    """The batches of keys that the workers of a DataLoader take.

    Attributes:
        epoch: counted from 0.
        shares: one for each batch.
        done: batches of the epoch before them.
    """

    def __init__(self) -> None:
        self.epoch, self.done = 0, 0
        self.shares: Sequence[data.Share] = ()

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[list[Key]]:
        for pass_, share in enumerate(self.shares, self.done):
            yield [Key(self.epoch, number, pass_, share.weight) for number in share.indices.tolist()]


class FolderImages(Images):
    """Pictures in folders: read by workers, each device taking its share of a batch.

    The test pictures are scored once each: devices may have unequal numbers of them.

    Args:
        train, test: the two splits, of the same classes; no `train` where nothing is trained.
        batch_size: images of a step, on all devices together.
        image_size: height and width in pixels.
        workers: processes that decode, for each device; 0 decodes in the training's own.
        skip_broken: leave pictures that cannot be read uncounted, instead of refusing them. Each is named, and a black
            image stands in its place.
    """

    def __init__(
        self,
        train: Tree | None,
        test: Tree,
        batch_size: int,
        image_size: int,
        seed: int,
        workers: int,
        skip_broken: bool = False,
    ) -> None:
        counts = (0 if train is None else len(train), len(test))
        super().__init__(test.classes, 3, image_size, *counts, batch_size)
        self.train, self.test, self.seed = train, test, seed
        self.workers, self.skip_broken = workers, skip_broken
        self.named: set[str] = set()

    def sha256(self) -> str:
        """Of the training pictures' names: their content is too much to be read before a run."""
        names = [] if self.train is None else self.train.paths.tolist()
        return hashlib.sha256(b"\n".join(names)).hexdigest()

    def _loader(self, decoder: Decoder, keep_workers: bool) -> tuple[Keys, DataLoader[Any]]:
        keys = Keys()
        return keys, DataLoader(
            decoder,
            batch_sampler=keys,
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=keep_workers and self.workers > 0,
            worker_init_fn=begin_worker,
        )

    def train_dataloader(self) -> Epochs:
        assert self.train is not None
        keys, loader = self._loader(Decoder(self.train, self.image_size, self.seed), keep_workers=True)

        def make(epoch: int, done: int) -> DataLoader[Any]:
            keys.epoch, keys.done = epoch, done
            keys.shares = self.shares(data.shuffled(self.count, self.seed, epoch), done)
            return loader

        return Epochs(self.trainer, len(self.shares(torch.arange(self.count))), make)

    def val_dataloader(self) -> DataLoader[Any]:
        keys, loader = self._loader(Decoder(self.test, self.image_size), keep_workers=False)
        keys.shares = self.test_shares()
        return loader

    test_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch: Pictures, device: torch.device, dataloader_idx: int) -> Pictures:
        """The pictures, there."""
        return transfer(batch, device)

    def on_after_batch_transfer(self, batch: Pictures, dataloader_idx: int) -> data.Batch:
        """The pictures as the network takes them.

        Raises:
            InputError: one of them cannot be read, and is not to be skipped; it names the file.
        """
        self._judge(batch.broken)
        dtype = self.trainer.lightning_module.dtype
        assert isinstance(dtype, torch.dtype)
        images = on_device(batch, dtype, jitter=self.trainer.training)
        seed = data.mix(self.seed, batch.key.epoch, 2, self.trainer.global_rank, batch.key.pass_)
        return data.Batch(images, batch.labels, seed, batch.key.weight)

    def _judge(self, broken: Sequence[str]) -> None:
        for picture in broken:
            if not self.skip_broken:
                raise InputError(f"--data: {picture}; expected a picture, or --broken_images skip to go on without")
            if picture not in self.named:
                self.named.add(picture)
                print(f"skipped: {cli.one_line(picture)}", file=sys.stderr, flush=True)


def begin_worker(worker: int) -> None:
    """Set up a worker process: signals that end a training are for the training's own, which finishes its step."""
    os.setpgrp()  # Ctrl-C and torchrun signal the whole group
    for signum in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with which the training ends its workers
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="PIL")  # of metadata, which nothing reads


def read_splits(root: Path, classes: int = 0) -> tuple[Tree, Tree]:
    """The training and the test pictures below a folder.

    Args:
        classes: how many are expected; 0 for any number.

    Raises:
        InputError: a split is not there, or its classes are not those of the other.
    """
    with blaming("--data"):
        train, test = (read_tree(find_split(root, split)) for split in ("train", "val"))
    for here, there in ((train, test), (test, train)):
        missing = sorted(set(here.classes) - set(there.classes))
        if missing:
            raise InputError(
                f"--data: {there.root} has no class {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}, "
                f"which {here.root} has; expected the same classes in both"
            )
    if classes and len(train.classes) != classes:
        raise InputError(f"--classes: {classes}, but {train.root} has {len(train.classes)}; expected as many")
    return train, test


def count_workers(asked: int, devices: int) -> int:
    """The worker processes of each device: as asked, or, where that is -1, the cores shared by the devices."""
    if asked >= 0:
        return asked
    # Those that this process may use, where the system says it.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // devices)


def folder_images(settings: Any, devices: int) -> FolderImages:
    """The pictures that the flags of a retraining name.

    Args:
        devices: on this node.

    Raises:
        InputError: they are not as expected.
    """
    train, test = read_splits(Path(settings.data), settings.classes)
    return FolderImages(
        train,
        test,
        settings.batch_size,
        settings.image_size,
        settings.seed,
        count_workers(settings.workers, devices),
        settings.broken_images == "skip",
    )
