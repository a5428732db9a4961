"""List and decode pictures in folders, one folder for each class. Nothing here imports torchvision."""

import os
import sys
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lib.files import IMAGE_SUFFIXES, is_picture

#: formats of IMAGE_SUFFIXES. For some other formats, Pillow runs other programs, such as Ghostscript for PostScript
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of one split: a folder for each class.

    Attributes:
        classes: Sorted names of the classes in Unicode's composed form (NFC).
        paths: Paths relative to `root`, as an array of bytes (a worker process would copy a list of a million strings).
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
        return self.root / os.fsdecode(self.paths[number])


def read_tree(root: Path) -> PictureFolder:
    """List the pictures in the class folders of a split and in their sub-folders, in the order of their names.

    Other files are ignored, with a warning that counts them.

    Raises:
        ValueError: There are fewer than two classes, a class has no pictures, or two classes have the same name.
    """
    entries = [path for path in root.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    found = [path for path in entries if path.is_dir()]
    folders = {_composed(path.name): path for path in found}
    if len(folders) < len(found):
        twice = next(name for name, count in Counter(_composed(path.name) for path in found).items() if count > 1)
        raise ValueError(f"{root} has two folders {twice} in different Unicode forms; expected one folder")
    if len(folders) < 2:
        unsorted = any(is_picture(path) for path in root.iterdir())
        hint = "; `python imagenet/prepare.py` sorts its pictures into folders" if unsorted else ""
        raise ValueError(f"{root} has {len(folders)} class folder(s); expected two or more{hint}")
    classes = tuple(sorted(folders))
    paths: list[str] = []
    labels: list[int] = []
    ignored = [path.name for path in entries if not path.is_dir()]
    for label, name in enumerate(classes):
        before = len(paths)
        for entry in sorted(_files(folders[name], (os.path.realpath(root),)), key=lambda entry: entry.path):
            wanted = Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file()
            (paths if wanted else ignored).append(os.path.relpath(entry.path, root))
        if len(paths) == before:
            raise ValueError(f"no images in {folders[name]}; expected {', '.join(sorted(IMAGE_SUFFIXES))} files")
        labels += [label] * (len(paths) - before)
    if ignored:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        print(
            f"warning: {root}: {len(ignored)} file(s) ignored, such as {ignored[0]}; expected regular files with the "
            f"suffix {suffixes}",
            file=sys.stderr,
        )
    return PictureFolder(root, classes, np.array([os.fsencode(path) for path in paths]), torch.tensor(labels))


def _files(folder: str | Path, within: tuple[str, ...] = ()) -> Iterator[os.DirEntry[str]]:
    """The files in a folder and its sub-folders, except hidden ones.

    Links are followed, except to a folder that contains the link.
    """
    real = os.path.realpath(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield entry
            elif os.path.realpath(entry.path) not in (*within, real):
                yield from _files(entry.path, (*within, real))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def same_names(a: Sequence[str], b: Sequence[str]) -> bool:
    """True if two lists of class names are equal, however their accents are encoded."""
    return [*map(_composed, a)] == [*map(_composed, b)]


def check_same_classes(train: PictureFolder, test: PictureFolder) -> None:
    """Raise a ValueError if the two splits have different classes."""
    for here, there in ((train, test), (test, train)):
        if missing := sorted(set(here.classes) - set(there.classes)):
            raise ValueError(f"{there.root} has no class {', '.join(missing[:5])}, which {here.root} has")


def read_picture(path: Path, mode: str = "") -> Image.Image:
    """Read and decode a picture, upright and on a white background.

    Args:
        mode: Mode of the result, such as RGB. "" keeps the picture's mode.

    Raises:
        ValueError: The file is damaged, not a picture, or larger than Pillow allows.
    """
    with _opened(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode} has more than 8 bits per channel; expected 8")
        image.load()
        picture = upright(image)
        return picture.convert(mode) if mode else picture


def read_header(path: Path) -> Image.Image:
    """Open a picture without decoding it, to read its mode and its size.

    Raises:
        ValueError: The file is not a picture.
    """
    with _opened(path) as image:
        return image


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            yield image
    except Exception as error:  # Pillow raises many kinds of errors for a damaged file
        raise ValueError(f"{path} cannot be read as an image ({error})") from error


def upright(picture: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: rotated as its EXIF data say, with transparent parts in white."""
    try:
        picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow raises many kinds of errors for damaged EXIF data; the pixels are intact
        warnings.warn(f"damaged EXIF data ({type(error).__name__})", stacklevel=2)
    if not picture.has_transparency_data:
        return picture
    gray, picture = picture.mode in ("L", "LA", "1"), picture.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return ground.convert("L" if gray else "RGB")


@contextmanager
def counted_warnings(where: Path) -> Iterator[None]:
    """Print each kind of warning of Pillow once, with a count."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message, count in Counter(str(warning.message).split("\n")[0].strip() for warning in caught).items():
        print(f"warning: {where}: {message} ({count} times)", file=sys.stderr)
