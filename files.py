"""Files that are whole or not there. Light: nothing here imports torch."""

import csv
import errno
import fcntl
import io
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: file of a folder by which the process that writes there keeps others out
LOCK = ".lock"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


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
