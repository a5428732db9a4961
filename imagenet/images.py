"""Load ImageNet, or any pictures with a folder for each class. Worker processes decode and augment the pictures.

All random numbers of a picture are a function of (seed, epoch, picture), whatever the number of workers or devices.
Workers return uint8 images, which are normalized on the device.
"""

import hashlib
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lib.batches import Batch, on_channels
from lib.cli import InputError, blaming
from lib.data_modules import Pass, ResumableLoader, RetrainDataModule
from lib.files import find_split
from lib.pictures import PictureFolder, check_same_classes, read_picture, read_tree
from lib.preprocessing import Preprocessing, central_pixels
from lib.seeds import mix


def read_splits(root: Path, classes: int = 0) -> tuple[PictureFolder, PictureFolder]:
    """The training and the test pictures in a folder.

    Args:
        classes: The expected number of classes. 0 allows any number.

    Raises:
        InputError: A split is missing, or the two have different classes.
    """
    with blaming("--data"):
        train, test = (read_tree(find_split(root, split)) for split in ("train", "val"))
        check_same_classes(train, test)
    if classes and len(train.classes) != classes:
        raise InputError(f"--classes: {classes}, but {train.root} has {len(train.classes)} classes; expected {classes}")
    return train, test


class Decoder(Dataset[Any]):
    """Read and augment the pictures of a pass as the papers do: random crop, flip and colour jitter for training.

    Args:
        preprocessing: Preprocessing of the test images. Training images have the same size.
        seed: Seed of the augmentation. None for test images.
    """

    def __init__(self, tree: PictureFolder, preprocessing: Preprocessing, seed: int | None = None) -> None:
        self.tree, self.seed = tree, seed
        size = preprocessing.image_size
        if seed is None:
            steps = central_pixels(size, preprocessing.shorter_side)
        else:
            jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.2)
            steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), jitter, v2.PILToTensor()]
        self.transform = v2.Compose(steps)

    def __getitem__(self, one: Pass) -> Batch | InputError:
        """The images (B, 3, H, W) uint8 and labels of a pass, or the error about a picture that cannot be read."""
        try:
            images = [self.decode(one.epoch, number) for number in one.indices.tolist()]
        except ValueError as error:
            return InputError(f"--data: {error}")
        return Batch(torch.stack(images), self.tree.labels[one.indices], one.seed, one.weight)

    def decode(self, epoch: int, number: int) -> Tensor:
        """Read a picture and transform it into an image (3, H, W) uint8."""
        picture = read_picture(self.tree.path(number), "RGB")
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.default_generator.manual_seed(mix(self.seed, epoch, number))
            return self.transform(picture)


def begin_worker(worker: int) -> None:
    """Set up a worker. It ignores the signals that stop a run, so that the main process can finish its step."""
    os.setpgrp()  # Ctrl-C and torchrun signal the whole group
    for signum in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the main process ends its workers with it
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="PIL")  # about metadata, which is not used


def normalize(images: Tensor, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalize images (B, 3, H, W) uint8."""
    statistics = (preprocessing.mean, preprocessing.std)
    mean, std = (255 * on_channels(values, images.device).to(dtype) for values in statistics)
    return (images.to(dtype) - mean) / std


class FolderDataModule(RetrainDataModule):
    """Pictures in folders, which worker processes decode.

    Args:
        train, test: The two splits, with the same classes. `train` is None if nothing is trained.
        batch_size: Images per step, on all devices together.
        preprocessing: Preprocessing of the test images. Training images have the same size.
        workers: Number of decoding processes for each device. 0 decodes in the main process.
    """

    def __init__(
        self,
        train: PictureFolder | None,
        test: PictureFolder,
        batch_size: int,
        preprocessing: Preprocessing,
        seed: int,
        workers: int,
    ) -> None:
        names = train.paths.tolist() if train else []
        sha256 = hashlib.sha256(b"\n".join(names)).hexdigest()  # only of the names; reading all files takes hours
        super().__init__(test.classes, preprocessing, len(names), len(test), batch_size, sha256, seed)
        self.train, self.test, self.workers = train, test, workers

    def _loader(self, decoder: Decoder, passes: list[Pass], keep_workers: bool) -> DataLoader[Any]:
        return DataLoader(
            decoder,
            sampler=passes,
            batch_size=None,  # the decoder makes batches
            num_workers=self.workers,
            timeout=300 if self.workers else 0,  # seconds; a worker may hang if there is no shared memory
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=keep_workers and self.workers > 0,
            worker_init_fn=begin_worker,
        )

    def train_dataloader(self) -> ResumableLoader:
        assert self.train is not None
        passes: list[Pass] = []
        loader = self._loader(Decoder(self.train, self.preprocessing, self.seed), passes, keep_workers=True)

        def load(epoch: int, done: int) -> DataLoader[Any]:
            passes[:] = self.train_passes(epoch, done)
            return loader

        return ResumableLoader(len(self.train_passes(0)), load)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(Decoder(self.test, self.preprocessing), self.test_passes(), keep_workers=False)

    test_dataloader = val_dataloader

    def on_before_batch_transfer(self, batch: Batch | InputError, dataloader_idx: int) -> Batch:
        """Raise the InputError about a picture that cannot be read."""
        if isinstance(batch, InputError):
            raise batch
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        dtype = self.trainer.lightning_module.dtype
        assert isinstance(dtype, torch.dtype)
        return batch._replace(images=normalize(batch.images, self.preprocessing, dtype))


def count_workers(asked: int, devices: int) -> int:
    """The number of worker processes of each device. -1 asks for an equal share of the cores."""
    if asked >= 0:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // devices)
