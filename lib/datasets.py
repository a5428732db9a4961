"""Data sets as uint8 tensors, and their splits."""

import hashlib
import math
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
from lib.files import IMAGE_SUFFIXES, is_picture, read_json
from lib.seeds import shuffled

#: formats of files.IMAGE_SUFFIXES. Pillow runs other programs to read some others, such as Ghostscript for PostScript
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")

#: channel means and standard deviations of the papers; other data sets are normalized by their training images' own
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
    """A data set with its held-out test images, and what its augmentation needs."""

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool  # True if a mirror image is an image of the same class

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.images.shape[2]


def load(
    name: str, root: str = "data", image_size: int = 0, download: bool = False, images: int = 0, channels: int = 0
) -> DataSet:
    """Load a data set.

    Args:
        name: cifar10, cifar100, svhn (torchvision's files in `root`), imagenet16-120 (NAS-Bench-201's files in `root`
            or root/ImageNet16), digits (embedded in scikit-learn), or folder (root/train/<class>/*,
            root/test/<class>/*).
        root: Folder of the files.
        image_size: Height and width in pixels. 0 keeps the images' own size (in a folder, that of the first image).
        download: Download the files of cifar10, cifar100 or svhn if they are missing.
        images: Use only the first N training and N test images, the same number of each class. 0 uses all.
        channels: Of the images in a folder: 1 for gray, 3 for RGB. 0 takes 1 if all training images are gray.

    Raises:
        ValueError: The files are missing or invalid; the message names them.
        OSError: A file cannot be read.
    """
    if name == "digits":
        train, test, classes = _digits(image_size)
    elif name == "folder":
        train, test, classes = _folder(Path(root), image_size, channels)
    elif name == "imagenet16-120":
        train, test, classes = _imagenet16(Path(root), image_size)
    else:
        train, test, classes = _torchvision(name, root, image_size, download)
    if images:
        train, test = (_first(part, images, len(classes)) for part in (train, test))
    mean, std = STATISTICS.get(name) or _statistics(train.images)
    return DataSet(train, test, classes, mean, std, flip=name != "digits")


def load_dataset(settings: Any) -> DataSet:
    """Load the data set that the flags of `ImageSettings` name.

    Raises:
        InputError: Its files are missing or damaged.
    """
    s = settings
    with blaming(f"--data: {s.dataset}"):
        return load(s.dataset, s.data, s.image_size, s.download, s.images)


def _first(part: ImageSet, images: int, classes: int) -> ImageSet:
    """The first images of each class, the same number of each and at most `images` in all.

    Raises:
        ValueError: There is less than one for each class.
    """
    if images < classes:
        raise ValueError(f"--images {images} is less than one for each of {classes} classes")
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


def _digits(image_size: int) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """scikit-learn's 1,797 handwritten digits, 8x8. A fixed fifth of each class is held out for the test."""
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
        raise ValueError(f"no complete {name} files in {root!r}; --download fetches them") from error
    train, test = (
        ImageSet(_resize(torch.from_numpy(np.ascontiguousarray(pixels)), image_size), torch.as_tensor(numbers).long())
        for pixels, numbers in zip(images, labels, strict=True)
    )
    return train, test, classes


def _imagenet16(root: Path, image_size: int) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    from lib import imagenet16

    train, test = (ImageSet(_resize(images, image_size), labels) for images, labels in imagenet16.load(root))
    return train, test, tuple(str(number) for number in range(imagenet16.CLASSES))


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of one split: a folder for each class.

    Attributes:
        paths: Paths below `root`, as bytes of one length (a worker process would copy a list of a million strings).
        labels: (N,) int64.
    """

    root: Path
    classes: tuple[str, ...]
    paths: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, number: int) -> Path:
        """The path of a picture."""
        return self.root / self.paths[number].decode()


def read_tree(root: Path) -> PictureFolder:
    """List the pictures in the class folders of a split, in the order of their names.

    Raises:
        ValueError: There are fewer than two classes, or one has no pictures.
    """
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(classes) < 2:
        unsorted = any(is_picture(path) for path in root.iterdir())
        hint = "; its pictures are not in folders: `python imagenet/prepare.py` sorts them" if unsorted else ""
        raise ValueError(f"{root} has {len(classes)} class folder(s); expected two or more{hint}")
    found = [sorted(path.name for path in (root / name).iterdir() if is_picture(path)) for name in classes]
    for name, pictures in zip(classes, found, strict=True):
        if not pictures:
            raise ValueError(f"no images in {root / name}; expected {', '.join(sorted(IMAGE_SUFFIXES))} files")
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(pictures) for pictures in found]))
    paths = [f"{name}/{file}".encode() for name, files in zip(classes, found, strict=True) for file in files]
    return PictureFolder(root, classes, np.array(paths), labels)


def check_same_classes(train: PictureFolder, test: PictureFolder) -> None:
    """Raise a ValueError if the two splits have different classes."""
    for here, there in ((train, test), (test, train)):
        if missing := sorted(set(here.classes) - set(there.classes)):
            raise ValueError(f"{there.root} has no class {', '.join(missing[:5])}, which {here.root} has")


def _folder(root: Path, image_size: int, channels: int) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    from torchvision.transforms import v2

    from lib.preprocessing import central_pixels

    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise ValueError(f"no folder {root / split}; expected {root}/train/<class>/* and {root}/test/<class>/*")
    trees = [read_tree(root / split) for split in ("train", "test")]
    check_same_classes(*trees)
    train = trees[0]
    size = image_size or min(read_picture(train.path(0)).size)
    if not channels:
        gray = all(read_picture(train.path(number)).mode in ("1", "L") for number in range(len(train)))
        channels = 1 if gray else 3
    transform = v2.Compose(central_pixels(size, size))

    def decode(path: Path) -> Tensor:
        return transform(read_picture(path, "L" if channels == 1 else "RGB"))

    with ThreadPoolExecutor() as pool:
        images = [torch.stack([*pool.map(decode, map(tree.path, range(len(tree))))]) for tree in trees]
    sets = [ImageSet(pixels, tree.labels) for pixels, tree in zip(images, trees, strict=True)]
    return sets[0], sets[1], train.classes


def read_picture(path: Path, mode: str = "") -> Image.Image:
    """Read and decode a picture.

    Args:
        mode: Mode to convert it to, such as RGB.

    Raises:
        ValueError: The file is damaged, of another kind, or larger than Pillow allows.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a channel, mode {image.mode}; expected 8")
            image.load()
            return image.convert(mode) if mode else image
    except Exception as error:  # Pillow raises many kinds of errors for a damaged file
        raise ValueError(f"{path} cannot be read as an image ({error})") from error


def split(data: ImageSet, portion: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split the images of a bilevel search at random: a `portion` for the weights, the rest for alpha."""
    order = shuffled(len(data), seed)
    cut = math.floor(portion * len(data))
    return data.subset(order[:cut].to(data.labels.device)), data.subset(order[cut:].to(data.labels.device))


def benchmark_halves(data: ImageSet, path: Path) -> tuple[ImageSet, ImageSet]:
    """The fixed halves of NAS-Bench-201's searches (its file cifar-split.txt): one for the weights, one for alpha.

    Args:
        data: The training images, in the data set's own order.
        path: JSON {"train": ["int", ["0", "5", ...]], "valid": ["int", ["1", ...]]} with the number of each image.

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
        raise ValueError(f"{path}: expected each of the {len(data)} images of the set in one of the halves, once")
    device = data.labels.device
    return data.subset(torch.tensor(train, device=device)), data.subset(torch.tensor(valid, device=device))
