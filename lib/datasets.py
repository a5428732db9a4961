"""Data sets as uint8 tensors, and their splits."""

import hashlib
import itertools
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lib.cli import blaming
from lib.files import IMAGE_SUFFIXES, is_picture, is_utf8, read_json
from lib.seeds import shuffled

#: the formats of files.IMAGE_SUFFIXES. Pillow hands some others to other programs, such as PostScript to Ghostscript
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")

#: channel means and standard deviations the papers normalize with; other data sets use their training images' own
STATISTICS = {
    "cifar10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet16-120": ((122.68 / 255, 116.66 / 255, 104.01 / 255), (63.22 / 255, 61.26 / 255, 65.09 / 255)),
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
    """A data set with its held-out test images, and what augmentation needs to know of it."""

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool  # whether a mirror image is an image of the same class

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.images.shape[2]


def load(name: str, root: str = "data", image_size: int = 0, download: bool = False, images: int = 0) -> DataSet:
    """Load a data set.

    Args:
        name: cifar10, cifar100, svhn (torchvision's files in `root`), imagenet16-120 (NAS-Bench-201's files in `root`
            or root/ImageNet16), digits (embedded in scikit-learn), or folder (root/train/<class>/*,
            root/test/<class>/*).
        root: where the files lie.
        image_size: height and width in pixels; 0 keeps the images' own (an image folder: its first image's).
        download: fetch the files of cifar10, cifar100 or svhn where they are missing.
        images: take the first so many training and test images only, of each class alike; 0 takes all.

    Raises:
        ValueError: the files are not what is expected; the message names them. Or `download` with imagenet16-120.
        OSError: a file cannot be read.
    """
    if name == "digits":
        train, test, classes = _digits(image_size)
    elif name == "folder":
        train, test, classes = _folder(Path(root), image_size)
    elif name == "imagenet16-120":
        train, test, classes = _imagenet16(Path(root), image_size, download)
    else:
        train, test, classes = _torchvision(name, root, image_size, download)
    if images:
        train, test = (_first(part, images, len(classes)) for part in (train, test))
    mean, std = STATISTICS.get(name) or _statistics(train.images)
    return DataSet(train, test, classes, mean, std, flip=name != "digits")


def load_dataset(settings: Any) -> DataSet:
    """The data set that the flags of `ImageSettings` name.

    Raises:
        InputError: its files are missing or damaged.
    """
    s = settings
    with blaming(f"--data: {s.dataset}"):
        return load(s.dataset, s.data, s.image_size, s.download, s.images)


def _first(part: ImageSet, images: int, classes: int) -> ImageSet:
    """The first images of each class, as many of each, `images` of them at most.

    Raises:
        ValueError: they are not one for each class.
    """
    if images < classes:
        raise ValueError(f"--images {images} is less than one for each of {classes} classes")
    chosen = [(part.labels == label).nonzero()[: images // classes, 0] for label in range(classes)]
    return part.subset(torch.cat(chosen).sort().values)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # float64 sums of uint8 values, in chunks: exact, whatever the number of images
    chunks = images.split(1024)
    total = torch.stack([chunk.double().sum(dim=(0, 2, 3)) for chunk in chunks]).sum(dim=0)
    squares = torch.stack([chunk.double().square().sum(dim=(0, 2, 3)) for chunk in chunks]).sum(dim=0)
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


def _digits(image_size: int) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """scikit-learn's 1,797 handwritten digits, 8x8; a fixed fifth of each class is held out for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=digits.target)
    whole = ImageSet(_resize(images, image_size), labels)
    names = tuple(str(name) for name in digits.target_names)
    return whole.subset(torch.from_numpy(train)), whole.subset(torch.from_numpy(test)), names


def _torchvision(name: str, root: str, image_size: int, download: bool) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    from torchvision import datasets

    existed = Path(root).exists()
    try:
        if name == "svhn":
            parts = [datasets.SVHN(root, split=split, download=download) for split in ("train", "test")]
            arrays = [torch.from_numpy(part.data) for part in parts]
            labels = [torch.from_numpy(part.labels.astype(np.int64)) for part in parts]
            classes = tuple(str(digit) for digit in range(10))
        else:
            maker = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
            parts = [maker(root, train=train, download=download) for train in (True, False)]
            arrays = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
            labels = [torch.tensor(part.targets) for part in parts]
            classes = tuple(parts[0].classes)
    except (RuntimeError, OSError) as error:
        if not existed and Path(root).is_dir() and not any(Path(root).iterdir()):
            Path(root).rmdir()  # torchvision's, made for a download that failed
        if isinstance(error, OSError):
            raise
        raise ValueError(f"no complete {name} files in {root!r}; --download fetches them") from error
    train, test = (ImageSet(_resize(a, image_size), b) for a, b in zip(arrays, labels, strict=True))
    return train, test, classes


def _imagenet16(root: Path, image_size: int, download: bool) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    from lib import imagenet16

    if download:
        raise ValueError(f"imagenet16-120 cannot be downloaded from here; {imagenet16.SOURCE}")
    train, test = (ImageSet(_resize(images, image_size), labels) for images, labels in imagenet16.load(root))
    return train, test, tuple(str(number) for number in range(imagenet16.CLASSES))


def _folder(root: Path, image_size: int) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    files: dict[str, list[tuple[Path, int]]] = {}
    classes: tuple[str, ...] = ()
    for split in ("train", "test"):
        folder = root / split
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}; expected {root}/train/<class>/* and {root}/test/<class>/*")
        names = class_folders(folder)
        if split == "train":
            classes = names
            if len(classes) < 2:
                raise ValueError(f"{folder} has {len(classes)} class folder(s); expected two or more")
        elif names != classes:
            differing = sorted(set(names) ^ set(classes))
            raise ValueError(f"{folder} and {root / 'train'} differ in their classes: {', '.join(differing[:5])}")
        files[split] = []
        for label, name in enumerate(classes):
            found = pictures(folder / name)
            if not found:
                raise ValueError(f"no images in {folder / name}; expected {', '.join(sorted(IMAGE_SUFFIXES))} files")
            files[split] += [(path, label) for path in found]
    size = image_size or min(read_picture(files["train"][0][0]).size)
    gray = all(read_picture(path).mode in ("1", "L") for path, _ in files["train"])

    def decode(path: Path) -> np.ndarray:
        image = read_picture(path, "L" if gray else "RGB")
        if image.size != (size, size):
            # the shorter side to `size`, then the centre: an image that is not square keeps its proportions
            scale = size / min(image.size)
            image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
            left, top = ((side - size) // 2 for side in image.size)
            image = image.crop((left, top, left + size, top + size))
        pixels = np.asarray(image)
        return pixels[None] if gray else pixels.transpose(2, 0, 1)

    sets = []
    with ThreadPoolExecutor() as pool:
        for split in ("train", "test"):
            images = torch.empty(len(files[split]), 1 if gray else 3, size, size, dtype=torch.uint8)
            for index, pixels in enumerate(pool.map(decode, [path for path, _ in files[split]])):
                images[index] = torch.from_numpy(pixels.copy())
            sets.append(ImageSet(images, torch.tensor([label for _, label in files[split]])))
    return sets[0], sets[1], classes


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders in a folder, sorted.

    Raises:
        ValueError: one is not UTF-8, which a run's files could not record.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        if not is_utf8(name):
            raise ValueError(f"{folder / name}: its name is not UTF-8; expected a name of text")
    return tuple(names)


def pictures(folder: Path) -> list[Path]:
    """The image files in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if is_picture(path))


def read_picture(path: Path, mode: str = "") -> Image.Image:
    """A picture, decoded.

    Args:
        mode: to convert it to, such as RGB.

    Raises:
        ValueError: it is damaged, of another kind, or larger than Pillow allows.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a channel, mode {image.mode}; expected 8")
            image.load()
            return image.convert(mode) if mode else image
    except Exception as error:  # a damaged file raises almost any
        raise ValueError(f"{path} cannot be read as an image ({error})") from error


def split(data: ImageSet, portion: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """The two halves of the bilevel search: a random `portion` for the weights, the rest for alpha.

    The order of the images is drawn from `seed`, so that a set sorted by class splits evenly too.
    """
    order = shuffled(len(data), seed)
    cut = math.floor(portion * len(data))
    return data.subset(order[:cut].to(data.labels.device)), data.subset(order[cut:].to(data.labels.device))


def benchmark_halves(data: ImageSet, path: Path) -> tuple[ImageSet, ImageSet]:
    """The fixed halves of NAS-Bench-201's searches (its file cifar-split.txt): one for the weights, one for alpha.

    Args:
        data: the training images, in the data set's own order.
        path: JSON {"train": ["int", ["0", "5", ...]], "valid": ["int", ["1", ...]]}: each image's number once.

    Returns:
        the images of "train" and those of "valid", each in the order of `data`.

    Raises:
        ValueError: the file is not of that form, or does not divide these images; the message names it.
        OSError: the file cannot be read.
    """
    lists = read_json(path)
    halves = {}
    for name in ("train", "valid"):
        match lists.get(name) if isinstance(lists, dict) else None:
            # nine digits: any image's number, and no text too long to convert
            case ["int", [_, *_] as texts] if all(isinstance(t, str) and re.fullmatch("[0-9]{1,9}", t) for t in texts):
                halves[name] = sorted(int(text) for text in texts)
            case _:
                raise ValueError(f'{path} has no "{name}" of the form ["int", ["0", "5", ...]], image numbers as text')
    numbers = sorted(halves["train"] + halves["valid"])
    if numbers[-1] >= len(data):
        raise ValueError(f"{path} lists image {numbers[-1]}; expected 0 to {len(data) - 1}, the images of the set")
    twice = [first for first, second in itertools.pairwise(numbers) if first == second]
    if twice:
        raise ValueError(f"{path} lists image {twice[0]} twice; expected each image in one of the halves, once")
    if len(numbers) != len(data):
        raise ValueError(f"{path} lists {len(numbers)} images; expected all {len(data)} of the set")
    train, valid = (data.subset(torch.tensor(half, device=data.labels.device)) for half in halves.values())
    return train, valid
