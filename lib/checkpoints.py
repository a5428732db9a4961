"""Checkpoint files: written whole or not at all, and checked when they are read. A folder keeps the last few.

A file is what `torch.save` writes: tensors, numbers, text, lists and dictionaries. Its name ends in the number of
epochs or steps that are done, such as epoch_00012.ckpt or step_01250.ckpt.
"""

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from lib.files import read_bytes, seeds_hint, write_atomically

#: what the checkpoint of a retraining says of its network, see `lib.trainer.make_module`
ABOUT = {"network", "settings", "genotype", "classes", "preprocessing"}


class CorruptError(ValueError):
    """A file is not a checkpoint, or has changed since it was written."""


def save(path: Path, state: Any, keep: int = 2) -> None:
    """Write a checkpoint, then remove all but the last `keep` of its folder.

    Checkpoints of later steps are removed too, as this run will write them again.

    Raises:
        OSError: The file cannot be written. The earlier checkpoints are intact.
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
        CorruptError: The file was cut or changed, or is not a checkpoint.
        OSError: The file cannot be read.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        changed = zipfile.ZipFile(content).testzip()  # torch.load does not compare the checksums
        if not changed:
            content.seek(0)
            return torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise many kinds of errors for a corrupt file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptError(f"{path} is corrupt or not a checkpoint ({reason[:100]})") from error
    raise CorruptError(f"{path} is corrupt: {changed} has changed since it was written")


def load_last(folder: Path, tell: bool = True) -> tuple[Path, Any] | None:
    """The last intact checkpoint of a folder and its content. None if the folder has no checkpoints.

    Args:
        tell: Name each corrupt checkpoint on stderr.

    Raises:
        CorruptError: All checkpoints are corrupt.
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


def open_retraining(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of a retraining: of a file, or of the last intact one of a run folder.

    Raises:
        ValueError: There is none, it is corrupt, or it is not one of a retraining.
        OSError: The file cannot be read.
    """
    if not path.is_dir():
        checkpoint = load(path)
    elif last := load_last(path / "checkpoints"):
        path, checkpoint = last
    else:
        raise ValueError(f"{path} has none; expected a checkpoint, or a run folder that has one{seeds_hint(path)}")
    about = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not (isinstance(about, dict) and about.keys() >= ABOUT and "state_dict" in checkpoint):
        raise ValueError(f"{path} is not one of a retraining by this version of the project")
    return checkpoint


def unnamed_classes(count: int) -> list[str]:
    """Stand-ins for the names of classes, for imported weights whose file has none."""
    return [f"class {number}" for number in range(count)]


def paths(folder: Path) -> list[Path]:
    """The checkpoints of a folder, in the order of their numbers."""
    return sorted((path for path in folder.glob("*_*.ckpt") if not path.name.startswith(".")), key=number)


def number(path: Path) -> int:
    """The number of epochs (of a search) or steps (of a retraining) that are done."""
    return int(path.stem.rpartition("_")[2])


def prune(folder: Path, keep: int = 2) -> None:
    """Remove all but the last `keep` checkpoints. (A process that is killed in `save` leaves one too many.)"""
    for path in paths(folder)[:-keep]:
        path.unlink()
