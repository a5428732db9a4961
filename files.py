"""Files that are whole or not there. Light: nothing here imports torch."""

import csv
import errno
import fcntl
import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

#: file of a folder by which the process that writes there keeps others out
LOCK = ".lock"
#: largest text file that is read, in bytes; NAS-Bench-201's list of halves has 0.6 MB
LARGEST_TEXT = 1 << 24
#: largest YAML file that is read, in bytes: safe_load takes a second for 100 kB
LARGEST_YAML = 1 << 18
#: the file that each kind of run writes last
RESULTS = {"search": "genotype.json", "retrain": "result.json"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


def is_finished(run: Path, kind: Literal["search", "retrain"]) -> bool:
    """Whether a search or a retraining has written its result."""
    return (run / RESULTS[kind]).is_file()


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """A file's text.

    Raises:
        ValueError: The file has more than `largest` bytes or is not UTF-8.
        OSError: The file cannot be read.
    """
    if path.stat().st_size > largest:
        raise ValueError(f"{path} has more than {largest:,} bytes; expected a smaller file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: The file is not JSON, or `read_text` rejects it.
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
        ValueError: The file is not plain YAML, or `read_text` rejects it.
        OSError: The file cannot be read.
    """
    return parse_yaml(read_text(path, LARGEST_YAML), str(path))


def parse_yaml(text: str, source: str) -> Any:
    """The plain value of a YAML text. `source` (a file or a flag) begins the message of an error.

    Raises:
        ValueError: The text is not plain YAML, such as one with tags.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-99-99
        raise ValueError(f"{source} is not plain YAML ({' '.join(str(error).split())})") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: under another name, synced, then renamed.

    Raises:
        OSError: it cannot be written, such as on a full disk. What was there under its name stays, unless all that
            failed is the last step, to make sure of the new file's name.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where its file system can say so of a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def is_passing(path: Path) -> bool:
    """Whether a file is a lock, or what an interrupted `write_atomically` left: nothing that anybody misses."""
    return path.name == LOCK or (path.name.startswith(".") and path.suffix == ".tmp")


def is_picture(path: Path) -> bool:
    """Whether a file is an image by its suffix, in lower or upper case, and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def is_utf8(name: str) -> bool:
    """Whether a name that the system gave is text; a file that records another cannot be read again."""
    return name == name.encode(errors="replace").decode()


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the only process that writes a folder; what an interrupted write left there goes.

    The lock is the process's own, which its children do not inherit, and ends with it, however it ends.

    Raises:
        OSError: another process holds it, or it cannot be written.
    """
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise BlockingIOError(f"{folder} is in use by {file.read(200).strip() or 'another process'}") from error
        except OSError as error:  # a file system without locks
            raise OSError(error.errno, error.strerror, str(folder / LOCK)) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for part in ("", "checkpoints", "perturbation", "perturbation/checkpoints"):
            for path in (folder / part).glob(".*.tmp"):
                path.unlink()
        yield


def check_new_file(path: Path) -> None:
    """Refuse a file that is there already, or in a folder that is not.

    Raises:
        ValueError: it names the file.
    """
    if path.exists():
        raise ValueError(f"{path} exists; name a new file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not be there yet, whole or not at all.

    Raises:
        ValueError: it is there by now.
    """
    check_new_file(path)
    write_atomically(path, content)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows under the columns of all; what is None, or of other rows only, is an empty cell."""
    text = io.StringIO(newline="")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
