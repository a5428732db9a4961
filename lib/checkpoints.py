"""Write checkpoint files atomically, and check them when they are read. A folder keeps the last few.

`torch.save` writes the files, which hold tensors, numbers, text, lists and dictionaries. A file's name ends in the
number of completed epochs or steps, such as epoch_00012.ckpt or step_01250.ckpt.
"""

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from lib.files import read_bytes, seeds_hint, write_atomically

#: keys that describe the network in the checkpoint of a retraining, see `lib.trainer.make_module`
NETWORK_KEYS = {"network", "settings", "genotype", "classes", "preprocessing"}


class CorruptError(ValueError):
    """A file is not a checkpoint, or has changed since it was written."""


def save(path: Path, state: Any, keep: int = 2) -> None:
    """Write a checkpoint, then remove all but the last `keep` checkpoints of the folder.

    Checkpoints of later steps are removed too, because this run will write them again.

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
        CorruptError: The file is truncated or changed, or is not a checkpoint.
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
        tell: Report each corrupt checkpoint on stderr.

    Raises:
        CorruptError: All checkpoints are corrupt.
    """
    corrupt: CorruptError | None = None
    for path in reversed(paths(folder)):
        if corrupt and tell:
            print(f"{corrupt}; falling back to {path.name}", file=sys.stderr, flush=True)
        try:
            return path, load(path)
        except CorruptError as error:
            corrupt = error
    if corrupt:
        raise corrupt
    return None


def open_retraining(path: Path) -> dict[str, Any]:
    """Load the checkpoint of a retraining: the given file, or the last intact checkpoint of a run folder.

    Raises:
        ValueError: There is no checkpoint, it is corrupt, or it is not from a retraining.
        OSError: The file cannot be read.
    """
    if not path.is_dir():
        checkpoint = load(path)
    elif last := load_last(path / "checkpoints"):
        path, checkpoint = last
    else:
        raise ValueError(f"{path} has no checkpoint; expected a checkpoint file or a run folder{seeds_hint(path)}")
    about = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not (isinstance(about, dict) and about.keys() >= NETWORK_KEYS and "state_dict" in checkpoint):
        raise ValueError(f"{path} is not a checkpoint of a retraining by this version of the project")
    return checkpoint


def unnamed_classes(count: int) -> list[str]:
    """Placeholders for the names of classes, for imported weights without names."""
    return [f"class {number}" for number in range(count)]


def paths(folder: Path) -> list[Path]:
    """The checkpoints of a folder, in the order of their numbers."""
    return sorted((path for path in folder.glob("*_*.ckpt") if not path.name.startswith(".")), key=number)


def number(path: Path) -> int:
    """The number of completed epochs (search) or steps (retraining)."""
    return int(path.stem.rpartition("_")[2])


def prune(folder: Path, keep: int = 2) -> None:
    """Remove all but the last `keep` checkpoints. (A process that is killed during `save` leaves one too many.)"""
    for path in paths(folder)[:-keep]:
        path.unlink()
