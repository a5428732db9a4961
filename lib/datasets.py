"""Data sets as uint8 tensors, and their splits."""

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.cli import blaming
from lib.files import find_split, read_json
from lib.pictures import check_same_classes, counted_warnings, read_header, read_picture, read_tree
from lib.registry import Registry, check_arguments
from lib.seeds import shuffled

#: channel means and standard deviations from the papers; for other data sets, those of the training images are used
STATISTICS = {
    "cifar10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet16_120": ((122.68 / 255, 116.66 / 255, 104.01 / 255), (63.22 / 255, 61.26 / 255, 65.09 / 255)),
}


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one split: images (N, channels, H, W) uint8, labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "ImageSet":
        """The images at `indices`, in their order."""
        return ImageSet(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "ImageSet":
        """The set on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))


def sha256(*parts: ImageSet) -> str:
    """The SHA-256 of images and labels, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        for tensor in (part.images, part.labels):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class DataSet:
    """A data set with its held-out test images, and the properties that its augmentation needs."""

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool  # True if a mirrored image keeps its class

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.images.shape[2]


class Wanted(NamedTuple):
    """A request to the loader of a data set.

    Attributes:
        root: Folder of the files.
        image_size: Height and width in pixels; 0 keeps the images' size. The caller resizes images of another size.
        download: Download missing files.
        channels: 1 for gray, 3 for RGB; 0 keeps the images' channels.
        test_only: Only the test images are needed. A loader may return them as the training images too.
    """

    root: Path
    image_size: int = 0
    download: bool = False
    channels: int = 0
    test_only: bool = False


class Loaded(NamedTuple):
    """The return value of a data set's loader.

    Attributes:
        classes: The name of each label.
        statistics: Mean and standard deviation of each channel, for values in [0, 1]. None computes them from `train`.
        flip: True if a mirrored image keeps its class.
    """

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    flip: bool = True


def load(
    name: str,
    root: str = "data",
    image_size: int = 0,
    download: bool = False,
    images: int = 0,
    channels: int = 0,
    test_only: bool = False,
) -> DataSet:
    """Load a data set.

    Args:
        name: An entry of DATASETS.
        root: Folder of the files.
        image_size: Height and width in pixels. 0 keeps the images' own size (in a folder, that of the first image).
        download: Download the files of cifar10, cifar100 or svhn if they are missing.
        images: Use only the first N training and N test images, the same number of each class. 0 uses all.
        channels: For a folder of images: 1 for gray, 3 for RGB. 0 means gray if all training images are gray.
        test_only: The training images are not needed, and may be missing.

    Raises:
        ValueError: There is no such data set, or its files are missing or invalid; the message names them.
        OSError: A file cannot be read.
    """
    loader = DATASETS.find(name.replace("imagenet16-120", "imagenet16_120"))  # its name in earlier checkpoints
    loaded = loader(Wanted(Path(root), image_size, download, channels, test_only))
    if not isinstance(loaded, Loaded):
        raise ValueError(f"the loader returned a {type(loaded).__name__}; expected a Loaded")
    for part in (loaded.train, loaded.test):
        _check(part, len(loaded.classes))
    if loaded.train.images.shape[1] != loaded.test.images.shape[1]:
        raise ValueError("the training and the test images differ in their number of channels")
    train, test = (ImageSet(_resize(part.images, image_size), part.labels) for part in (loaded.train, loaded.test))
    if images:
        train, test = (_first(part, images, len(loaded.classes)) for part in (train, test))
    if train.images.shape != (len(train), *test.images.shape[1:]):
        raise ValueError("the training and the test images differ in size; --image_size resizes them")
    mean, std = loaded.statistics or _statistics(train.images)
    return DataSet(train, test, loaded.classes, mean, std, loaded.flip)


def _check(part: ImageSet, classes: int) -> None:
    """Raise a ValueError if a loader returned anything but square images and their labels."""
    images, labels = part.images, part.labels
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images {tuple(images.shape)} {images.dtype}, expected (N, channels, size, size) torch.uint8")
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images with {images.shape[1]} channels, expected 1 or 3")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} {labels.dtype}, expected ({len(images)},) torch.int64")
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"expected one image or more, with labels from 0 to {classes - 1}")


def load_dataset(settings: Any) -> DataSet:
    """Load the data set that the flags of `ImageSettings` name.

    Raises:
        InputError: There is no such data set, or its files are missing or damaged.
    """
    s = settings
    DATASETS.choose(s.dataset, "--dataset")
    with blaming(f"--data: {s.dataset}"):
        dataset = load(s.dataset, s.data, s.image_size, s.download, s.images)
    return replace(dataset, flip=dataset.flip and s.flip)


def _first(part: ImageSet, images: int, classes: int) -> ImageSet:
    """The first images of each class, the same number of each and at most `images` in all.

    Raises:
        ValueError: `images` is less than the number of classes.
    """
    if images < classes:
        raise ValueError(f"--images: {images}, expected {classes} or more, at least one for each class")
    chosen = [(part.labels == label).nonzero()[: images // classes, 0] for label in range(classes)]
    return part.subset(torch.cat(chosen).sort().values)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    values = torch.arange(256.0, dtype=torch.float64)
    total, squares = counts @ values, counts @ values.square()  # exact: sums of whole numbers below 2^53
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).clamp(min=1e-3).tolist())


def _resize(images: Tensor, size: int) -> Tensor:
    if size in (0, images.shape[-1]):
        return images
    resized = [
        F.interpolate(chunk.float(), size=(size, size), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for chunk in images.split(1024)
    ]
    return torch.cat(resized)


def _digits(wanted: Wanted) -> Loaded:
    """scikit-learn's 1,797 handwritten digits, 8x8. A fixed fifth of each class is held out for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    whole = ImageSet(images, torch.from_numpy(digits.target.astype(np.int64)))
    parts = train_test_split(np.arange(len(whole)), test_size=0.2, random_state=0, stratify=digits.target)
    train, test = (whole.subset(torch.from_numpy(part)) for part in parts)
    return Loaded(train, test, tuple(str(name) for name in digits.target_names), flip=False)


def _torchvision(name: str, wanted: Wanted) -> Loaded:
    from torchvision import datasets

    root, download = str(wanted.root), wanted.download
    makers = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    try:
        if name == "svhn":
            parts = [datasets.SVHN(root, split=split, download=download) for split in ("train", "test")]
            images, labels = [part.data for part in parts], [part.labels for part in parts]
            classes = tuple(str(digit) for digit in range(10))
        else:
            parts = [makers[name](root, train=train, download=download) for train in (True, False)]
            images, labels = [part.data.transpose(0, 3, 1, 2) for part in parts], [part.targets for part in parts]
            classes = tuple(parts[0].classes)
    except RuntimeError as error:
        raise ValueError(
            f"the files of {name} in {root!r} are missing or incomplete; --download fetches them"
        ) from error
    train, test = (
        ImageSet(torch.from_numpy(np.ascontiguousarray(pixels)), torch.as_tensor(numbers).long())
        for pixels, numbers in zip(images, labels, strict=True)
    )
    return Loaded(train, test, classes, STATISTICS.get(name))


def _imagenet16(wanted: Wanted) -> Loaded:
    from lib import imagenet16

    train, test = (ImageSet(images, labels) for images, labels in imagenet16.load(wanted.root))
    classes = tuple(str(number) for number in range(imagenet16.CLASSES))
    return Loaded(train, test, classes, STATISTICS["imagenet16_120"])


def _folder(wanted: Wanted) -> Loaded:
    from torchvision.transforms import v2

    from lib.preprocessing import central_pixels

    splits: tuple[Literal["train", "test"], ...] = ("test",) if wanted.test_only else ("train", "test")
    trees = [read_tree(folder) for folder in [find_split(wanted.root, split) for split in splits]]
    check_same_classes(trees[0], trees[-1])
    train, channels = trees[0], wanted.channels
    with counted_warnings(wanted.root):
        size = wanted.image_size or min(read_header(train.path(0)).size)
        if not channels:
            gray = all(read_header(train.path(number)).mode in ("1", "L", "LA") for number in range(len(train)))
            channels = 1 if gray else 3
        transform = v2.Compose(central_pixels(size, size))

        def decode(path: Path) -> Tensor:
            return transform(read_picture(path, "L" if channels == 1 else "RGB"))

        with ThreadPoolExecutor() as pool:
            images = [torch.stack([*pool.map(decode, map(tree.path, range(len(tree))))]) for tree in trees]
    sets = [ImageSet(pixels, tree.labels) for pixels, tree in zip(images, trees, strict=True)]
    return Loaded(sets[0], sets[-1], train.classes)


DATASETS: Registry[Callable[[Wanted], Loaded]] = Registry(
    "data set",
    {
        **{name: partial(_torchvision, name) for name in ("cifar10", "cifar100", "svhn")},
        "imagenet16_120": _imagenet16,
        "digits": _digits,
        "folder": _folder,
    },
    lambda loader: check_arguments(loader, "wanted"),
)


def split(data: ImageSet, portion: float, seed: int | None) -> tuple[ImageSet, ImageSet]:
    """Split the images of a bilevel search: a `portion` for the weights, the rest for alpha.

    Args:
        seed: Seed of a random split. None takes the first images for the weights, without shuffling.
    """
    order = torch.arange(len(data)) if seed is None else shuffled(len(data), seed)
    cut = math.floor(portion * len(data))
    return data.subset(order[:cut].to(data.labels.device)), data.subset(order[cut:].to(data.labels.device))


def benchmark_halves(data: ImageSet, path: Path) -> tuple[ImageSet, ImageSet]:
    """The fixed halves of NAS-Bench-201's searches (cifar-split.txt): one for the weights, one for alpha.

    Args:
        data: The training images, in the data set's own order.
        path: JSON {"train": ["int", ["0", "5", ...]], "valid": ["int", ["1", ...]]} with the indices of the images.

    Returns:
        The images of "train" and those of "valid", each in the order of `data`.

    Raises:
        ValueError: The file does not have that form, or does not divide these images.
        OSError: The file cannot be read.
    """
    lists = read_json(path)
    try:
        train, valid = (sorted(map(int, lists[name][1])) for name in ("train", "valid"))
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: expected {{"train": ["int", ["0", ...]], "valid": ["int", ["1", ...]]}}') from error
    if sorted(train + valid) != list(range(len(data))):
        raise ValueError(f"{path}: expected each of the {len(data)} training images exactly once in the two halves")
    device = data.labels.device
    return data.subset(torch.tensor(train, device=device)), data.subset(torch.tensor(valid, device=device))
