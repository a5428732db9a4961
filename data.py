"""Data sets as uint8 tensors on the device, their splits, and batched augmentation there.

Everything random is a function of (seed, epoch): an interrupted run that starts an epoch again sees the same batches.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from files import IMAGE_SUFFIXES, is_picture, is_utf8, read_json

#: the formats of files.IMAGE_SUFFIXES. Pillow hands some others to other programs, such as PostScript to Ghostscript
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")

#: channel means and standard deviations the papers normalize with; other data sets use their training images' own
STATISTICS = {
    "cifar10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet16-120": ((122.68 / 255, 116.66 / 255, 104.01 / 255), (63.22 / 255, 61.26 / 255, 65.09 / 255)),
}


class Batch(NamedTuple):
    """A mini-batch, and the seed of whatever is random in the network (`noise`, drop path) when it passes.

    All passes over one batch see the same noise: a difference between two of them is then one of the same function.
    """

    images: Tensor  # (B, channels, H, W)
    labels: Tensor  # (B,)
    seed: int = 0
    weight: float = 1.0  # of its mean loss, where several batches make a step


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
    import imagenet16

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


def random_numbers(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator whose stream is a function of the numbers in `key`."""
    return torch.Generator(device).manual_seed(mix(*key))


def shuffled(count: int, *key: int) -> Tensor:
    """The numbers from 0 to `count` - 1 in a random order that is a function of `key`."""
    return torch.randperm(count, generator=random_numbers("cpu", *key))


def mix(*key: int) -> int:
    """A seed that is a function of the numbers in `key`; keys of one length and other numbers give other seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def on_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value for each channel, (1, channels, 1, 1), filled on the device: a copy from the host would wait for it."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])[None]


@dataclass(frozen=True)
class Augmentation:
    """Crop, flip, normalize and cut out a batch of uint8 images, each image its own draw.

    Attributes:
        mean, std: of the channels, in units of the full range.
        padding: zeros around the image before a random crop of its own size; 0 for no crop.
        flip: mirror half of the images.
        cutout_length: side of the square set to the mean (Cutout, DeVries and Taylor, 2017), rounded down to even as in
            DARTS's code; 0 for none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    flip: bool = False
    cutout_length: int = 0

    @classmethod
    def training(cls, data: DataSet, cutout_length: int = 0) -> "Augmentation":
        """The papers' for 32 pixels: crop with padding 4, flip, cutout of 16; the padding grows with the image.

        Raises:
            ValueError: the cutout is as large as the image, or empty.
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
        """uint8 (B, channels, H, W) to float32, channels last in memory."""
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
    """The batches of one epoch: a shuffled pass over a set, augmented on its device.

    The last batch may be smaller; one of a single image is left out, for batch norm cannot normalize it.

    Attributes:
        key: numbers whose function the order and the augmentation are, such as (seed, epoch).
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
    """`count` batches, with a new shuffle for each further pass over the set."""
    repeat = 0
    while count > 0:
        for batch in Batches(batches.data, batches.batch_size, batches.augmentation, (*batches.key, repeat)):
            yield batch
            count -= 1
            if count == 0:
                return
        repeat += 1


class Share(NamedTuple):
    """One process's images of one pass through the network."""

    indices: Tensor
    weight: float  # of their mean loss; see `shares`


def shares(
    order: Tensor, batch_size: int, rank: int = 0, world: int = 1, accumulate: int = 1, begin: int = 0
) -> list[Share]:
    """What one of several processes does in an epoch: the images of each of its passes.

    A step takes the next `batch_size` images of the order, whatever the number of processes; `accumulate` passes make a
    step, each with an equal part of its images, and of those every process takes its part. The last step is smaller,
    and takes fewer passes where that leaves them whole. If it had fewer than two images for each process, which batch
    norm needs, the step before takes these too.

    Weighted means of the losses of a step's passes, added up over its passes, divided by `accumulate` and averaged over
    the processes, are the mean over the step's images: that is what Lightning makes of them.

    Args:
        order: of all images, (N,).
        accumulate: at most `batch_size` // (2 * `world`).
        begin: leave out so many passes, which are done already.
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
