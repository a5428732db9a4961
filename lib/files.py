"""Read files with clear errors, and write them atomically. Nothing here imports torch."""

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

#: the file in a folder that the writing process locks
LOCK = ".lock"
#: the file that each kind of run writes last
RESULTS = {"search": "genotype.json", "retrain": "result.json"}
#: the loader of yaml.safe_load, in C if libyaml is installed: a report reads hundreds of files
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: suffixes of the formats that Pillow reads without other programs
IMAGE_SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".pbm", ".pgm", ".ppm"}
IMAGE_SUFFIXES |= {".pnm", ".tif", ".tiff"}
#: suffixes of the pictures that scripts write
PICTURES = (".png", ".svg", ".pdf")
#: names of the folder of held-out images, in order of preference. The labels of ILSVRC's `test` are not public.
HELD_OUT = {"test": ("test", "val", "valid", "validation"), "val": ("val", "valid", "validation", "test")}


def seeds_hint(folder: Path) -> str:
    """The end of a message about a folder that is not a run: a hint at the runs of several seeds in it, or ""."""
    seeds = sorted(folder.glob("seed-*"))
    return f"; it holds runs of several seeds, such as {seeds[0]}" if seeds else ""


def is_finished(run: Path, kind: Literal["search", "retrain"]) -> bool:
    """True if a search or a retraining has written its result."""
    return (run / RESULTS[kind]).is_file()


def check_regular(path: Path) -> None:
    """Raise a ValueError for a pipe, a socket or a device, which could block or never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is a pipe, a socket or a device; expected a regular file")


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        ValueError: The path is not a regular file.
        OSError: The file cannot be read.
    """
    check_regular(path)
    return path.read_bytes()


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        ValueError: The file is not UTF-8, or not a regular file.
        OSError: The file cannot be read.
    """
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: The file is not JSON.
        OSError: The file cannot be read.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error


def read_yaml(path: Path) -> Any:
    """The content of a YAML file of plain values.

    Raises:
        ValueError: The file is not plain YAML.
        OSError: The file cannot be read.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, source: str) -> Any:
    """The plain value of a YAML text. Error messages begin with `source`, a file or a flag.

    Raises:
        ValueError: The text is not plain YAML; it may have tags, for example.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        raise ValueError(f"{source}{line} is not plain YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-99-99
        raise ValueError(f"{source} is not plain YAML: {error}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, sync it, and rename it.

    Raises:
        OSError: The file cannot be written, for example because the disk is full. The old file is kept.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def is_temporary(path: Path) -> bool:
    """True for a lock, and for the temporary file of an interrupted `write_atomically`."""
    return path.name == LOCK or (path.name.startswith(".") and path.suffix == ".tmp")


def is_picture(path: Path) -> bool:
    """True for a regular file (or a link to one) that has an image suffix and is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def find_split(root: Path, split: Literal["train", "test", "val"]) -> Path:
    """The folder of a split in ILSVRC's layout (root/Data/CLS-LOC/train) or in a plain one (root/train).

    The held-out images ("test" or "val") may also be in `valid` or `validation`.

    Raises:
        ValueError: There is no such folder.
    """
    names = HELD_OUT.get(split, (split,))
    for name in names:
        for folder in (root / "Data" / "CLS-LOC" / name, root / name):
            if folder.is_dir():
                return folder
    others = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
    raise ValueError(
        f"no folder {root / split}; expected {split}/<class>/*{others}, in {root} or in {root / 'Data/CLS-LOC'}"
    )


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes, and remove the temporary files of interrupted writes.

    The POSIX lock is not inherited by forked processes, and is released when this process ends.

    Raises:
        OSError: Another process has locked the folder, or it cannot be written.
    """
    with open(folder / LOCK, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"{folder} is in use by another process") from error
        # Other processes may write the other sub-folders.
        for part in ("", "checkpoints", "perturbation", "perturbation/checkpoints"):
            for path in (folder / part).glob(".*.tmp"):
                path.unlink()
        yield


def check_new_file(path: Path, suffixes: Sequence[str] = ()) -> None:
    """Reject a file that exists and is not empty, or whose folder does not exist.

    Args:
        suffixes: If given, also reject a name that ends in none of them.

    Raises:
        ValueError: The message names the file.
    """
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{path}, expected a name that ends in {', '.join(suffixes[:-1])} or {suffixes[-1]}")
    if path.exists() and not (path.is_file() and path.stat().st_size == 0):  # an earlier write may have failed
        raise ValueError(f"{path} exists; name a new file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, with the union of their columns. None becomes an empty cell."""
    text = io.StringIO(newline="")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
