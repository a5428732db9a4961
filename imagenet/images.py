"""ImageNet's pictures, or any others with a folder for each class: worker processes decode and augment them.

Everything random about a picture is a function of (seed, epoch, picture); the number of workers or devices does not
matter. Workers hand over uint8 images, which are normalized on the device.
"""

import hashlib
import os
import shutil
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

from imagenet.layout import find_split
from lib import cli, datasets
from lib.batches import Batch, Share, on_channels
from lib.cli import InputError, blaming
from lib.images import Epochs, Images
from lib.retraining import IGNORED
from lib.seeds import mix, shuffled

#: of the channels over ImageNet, as every paper normalizes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: shared memory of a container by default is 64 MiB; worker processes pass batches through this folder
SHARED_MEMORY = Path("/dev/shm")
#: batches that each worker holds ready
PREFETCHED = 2
#: seconds to wait for a batch; a worker that has run out of shared memory may never deliver it
PATIENCE = 300


@dataclass(frozen=True)
class Tree:
    """The pictures of one split: a folder for each class.

    Attributes:
        paths: below `root`, as bytes of one length (each worker would copy a list of a million strings).
        labels: (N,) int64.
    """

    root: Path
    classes: tuple[str, ...]
    paths: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, number: int) -> Path:
        """Path of a picture."""
        return self.root / self.paths[number].decode()


def read_tree(root: Path) -> Tree:
    """List the pictures in the class folders of a split.

    Raises:
        ValueError: there are fewer than two classes, or one has no pictures.
    """
    classes = datasets.class_folders(root)
    if len(classes) < 2:
        hint = "; its pictures lie side by side: `python imagenet/prepare.py` sorts them"
        raise ValueError(
            f"{root} has {len(classes)} class folder(s); expected two or more{hint if datasets.pictures(root) else ''}"
        )
    found = {name: datasets.pictures(root / name) for name in classes}
    empty = next((name for name in classes if not found[name]), None)
    if empty is not None:
        raise ValueError(f"no pictures in {root / empty}")
    paths = [f"{name}/{path.name}".encode() for name in classes for path in found[name]]
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found[name]) for name in classes]))
    return Tree(root, classes, np.array(paths), labels)


def read_splits(root: Path, classes: int = 0) -> tuple[Tree, Tree]:
    """The training and the test pictures below a folder.

    Args:
        classes: the expected number; 0 for any number.

    Raises:
        InputError: a split is missing, or the two have different classes.
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


class Key(NamedTuple):
    """A picture in a pass of an epoch; `weight` is that of the pass, see shares."""

    epoch: int
    number: int
    pass_: int
    weight: float


class Pictures(NamedTuple):
    """A batch as it comes from the workers."""

    images: Tensor  # (B, 3, H, W) uint8
    labels: Tensor  # (B,)
    broken: list[str]  # messages about pictures that cannot be read
    key: Key  # of the first picture


class Decoder(Dataset[Any]):
    """Read and augment pictures as the papers do for training (random crop, flip, colour jitter) or for the test.

    Args:
        size: height and width of the images in pixels.
        seed: None for the test: resize and crop the centre.
    """

    def __init__(self, tree: Tree, size: int, seed: int | None = None) -> None:
        self.tree, self.size, self.seed = tree, size, seed
        if seed is None:
            steps = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
        else:
            steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4, 0.2)]
        self.transform = v2.Compose([*steps, v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.tree)

    def __getitem__(self, key: Key) -> tuple[Tensor, int, str, Key]:
        """Image (3, H, W) uint8, label, the reason if the picture cannot be read (then the image is black), and key."""
        try:
            picture = datasets.read_picture(self.tree.path(key.number), "RGB")
        except ValueError as error:
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), IGNORED, str(error), key
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.default_generator.manual_seed(mix(self.seed, key.epoch, key.number))
            return self.transform(picture), int(self.tree.labels[key.number]), "", key


def collate(samples: Sequence[tuple[Tensor, int, str, Key]]) -> Pictures:
    """One batch of the samples."""
    images, labels, broken, keys = zip(*samples, strict=True)
    return Pictures(torch.stack(images), torch.tensor(labels), [reason for reason in broken if reason], keys[0])


def begin_worker(worker: int) -> None:
    """Set up a worker: the signals that stop a training are for the main process, which finishes its step."""
    os.setpgrp()  # Ctrl-C and torchrun signal the whole group
    for signum in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the main process ends its workers with it
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="PIL")  # about metadata, which nothing reads


def normalize(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images (B, 3, H, W) uint8, normalized by MEAN and STD."""
    mean, std = (255 * on_channels(values, images.device).to(dtype) for values in (MEAN, STD))
    return (images.to(dtype) - mean) / std


class Keys:
    """The batches of keys that a DataLoader's workers take: `shares` of an epoch, from pass `done` on."""

    epoch = done = 0
    shares: Sequence[Share] = ()

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[list[Key]]:
        for pass_, share in enumerate(self.shares, self.done):
            yield [Key(self.epoch, number, pass_, share.weight) for number in share.indices.tolist()]


class FolderImages(Images):
    """Pictures in folders; each device takes its share of a batch.

    Args:
        train, test: the two splits, of the same classes; no `train` if nothing is trained.
        batch_size: images of a step, on all devices together.
        image_size: height and width in pixels.
        workers: processes that decode, for each device; 0 decodes in the main process.
        skip_broken: name pictures that cannot be read and do not count them. Otherwise they are an InputError.
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
        names = [] if train is None else train.paths.tolist()  # reading the content would take hours
        sha256 = hashlib.sha256(b"\n".join(names)).hexdigest()
        super().__init__(test.classes, 3, image_size, len(names), len(test), batch_size, sha256)
        self.train, self.test, self.seed = train, test, seed
        self.workers, self.skip_broken = workers, skip_broken
        self.named: set[str] = set()

    def check_shared_memory(self, world: int, num_nodes: int, accumulate: int) -> None:
        """Raise InputError if the batches that the workers hold ready do not fit into /dev/shm."""
        if not self.workers or not SHARED_MEMORY.is_dir():
            return
        batch = 3 * self.image_size**2 * -(-self.batch_size // (world * accumulate))
        needed, free = PREFETCHED * batch * self.workers * (world // num_nodes), shutil.disk_usage(SHARED_MEMORY).free
        if needed > free:
            raise InputError(
                f"--workers: {self.workers} for each device hold {needed / 2**20:.0f} MiB of images ready, but "
                f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free; expected fewer, or more shared memory (docker run "
                "--shm-size)"
            )

    def _loader(self, decoder: Decoder, keys: Keys, keep_workers: bool) -> DataLoader[Any]:
        return DataLoader(
            decoder,
            batch_sampler=keys,
            collate_fn=collate,
            num_workers=self.workers,
            prefetch_factor=PREFETCHED if self.workers else None,
            timeout=PATIENCE if self.workers else 0,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=keep_workers and self.workers > 0,
            worker_init_fn=begin_worker,
        )

    def train_dataloader(self) -> Epochs:
        assert self.train is not None
        keys = Keys()
        loader = self._loader(Decoder(self.train, self.image_size, self.seed), keys, keep_workers=True)

        def make(epoch: int, done: int) -> DataLoader[Any]:
            keys.epoch, keys.done = epoch, done
            keys.shares = self.shares(shuffled(self.count, self.seed, epoch), done)
            return loader

        return Epochs(len(self.shares(torch.arange(self.count))), make)

    def val_dataloader(self) -> DataLoader[Any]:
        keys = Keys()
        keys.shares = self.test_shares()
        return self._loader(Decoder(self.test, self.image_size), keys, keep_workers=False)

    test_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch: Pictures, device: torch.device, dataloader_idx: int) -> Pictures:
        images, labels = (part.to(device, non_blocking=True) for part in batch[:2])
        return batch._replace(images=images, labels=labels)

    def on_after_batch_transfer(self, batch: Pictures, dataloader_idx: int) -> Batch:
        """Normalize the images. Raises InputError for a picture that cannot be read, unless they are skipped."""
        for picture in batch.broken:
            if not self.skip_broken:
                raise InputError(f"--data: {picture}; expected a picture, or --broken_images skip to go on without")
            if picture not in self.named:
                self.named.add(picture)
                print(f"skipped: {cli.one_line(picture)}", file=sys.stderr, flush=True)
        dtype = self.trainer.lightning_module.dtype
        assert isinstance(dtype, torch.dtype)
        seed = mix(self.seed, batch.key.epoch, 2, self.trainer.global_rank, batch.key.pass_)
        return Batch(normalize(batch.images, dtype), batch.labels, seed, batch.key.weight)


def count_workers(asked: int, devices: int) -> int:
    """The worker processes of each device: as asked, or for -1 an equal share of the cores."""
    if asked >= 0:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // devices)
