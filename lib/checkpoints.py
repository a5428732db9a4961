"""Checkpoint files: written whole or not at all, and checked when they are read. A folder keeps the last few.

A file is what `torch.save` writes: tensors, numbers, text, lists and dictionaries. Its name ends in how far the run had
come, such as epoch_00012.ckpt or step_01250.ckpt.
"""

import io
import pickle
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from lib.files import write_atomically

#: errors of zipfile, zlib and torch.load while they read a file of any content
UNREADABLE = (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError)


class CorruptError(ValueError):
    """A file is not a checkpoint, or has changed since it was written."""


def save(path: Path, state: Any, keep: int = 2) -> None:
    """Write a checkpoint, then remove all but the last `keep` of its folder.

    Checkpoints of later steps are removed too: the run could not be resumed from them.

    Raises:
        OSError: the file cannot be written; the earlier checkpoints are intact.
    """
    content = io.BytesIO()
    torch.save(state, content)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content.getvalue())
    for other in paths(path.parent):
        if number(other) > number(path):
            other.unlink()
    prune(path.parent, keep)


def load(path: Path) -> Any:
    """The content of a checkpoint, with its tensors on the CPU.

    Raises:
        CorruptError: the file was cut or changed, or is not a checkpoint.
        OSError: the file cannot be read.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        archive = zipfile.ZipFile(content)
        # torch.load does not compare the checksums, and reads nothing of a member whose attributes say it is a folder.
        changed = archive.testzip() or next((m.filename for m in archive.infolist() if m.external_attr), None)
        if changed is None:
            content.seek(0)
            return torch.load(content, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptError(f"{path} is corrupt or not a checkpoint ({reason[:100]})") from error
    raise CorruptError(f"{path} is corrupt: {changed} has changed since it was written")


def load_last(folder: Path, tell: bool = True) -> tuple[Path, Any] | None:
    """The last intact checkpoint of a folder and its content; None if the folder has no checkpoints.

    Args:
        tell: name each corrupt checkpoint on stderr.

    Raises:
        CorruptError: all checkpoints are corrupt.
    """
    corrupt: CorruptError | None = None
    for path in reversed(paths(folder)):
        if corrupt and tell:
            print(f"{corrupt}; going on from {path.name}", file=sys.stderr, flush=True)
        try:
            return path, load(path)
        except CorruptError as error:
            corrupt = error
    if corrupt:
        raise corrupt
    return None


def paths(folder: Path) -> list[Path]:
    """The checkpoints of a folder, in the order of their numbers."""
    return sorted((path for path in folder.glob("*_*.ckpt") if not path.name.startswith(".")), key=number)


def number(path: Path) -> int:
    """How far the run had come: epochs of a search, steps of a retraining."""
    return int(path.stem.rpartition("_")[2])


def prune(folder: Path, keep: int = 2) -> None:
    """Remove all but the last `keep` checkpoints; a process that was killed in `save` leaves one too many."""
    for path in paths(folder)[:-keep]:
        path.unlink()
