"""Checkpoints: tensors as safetensors, everything else as JSON in the file's header, with a checksum and a version.

A file is written whole or not at all, and reading it executes nothing. A damaged file is named, and the checkpoint
before it is used. A file of a newer version of this project is refused.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import cluster
from files import write_atomically

#: version of the files that are written, and the newest that is read
FORMAT = 1
#: where a file's digest stands, and what stands there while it is taken
_PLACE = b'"sha256":"%s"'
_BLANK = _PLACE % (b"0" * 64)

#: keys of the state that stand for a tensor, by its name, and for a dictionary whose keys are not all strings
_TENSOR, _ITEMS = "#tensor", "#items"


class DamagedError(ValueError):
    """A file is no checkpoint, or no longer the one that was written."""


class NewerError(ValueError):
    """A checkpoint is of a format that this version does not know."""


def write(path: Path, tensors: Mapping[str, Tensor], state: Any) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        tensors: on any device, by name.
        state: plain values, as JSON has them.

    Raises:
        OSError: it cannot be written; what was there under its name stays.
    """
    channels_last = [name for name, tensor in tensors.items() if _channels_last(tensor)]
    metadata = {
        "version": str(FORMAT),
        "state": json.dumps(state),
        "channels_last": json.dumps(channels_last),
        "sha256": "0" * 64,
    }
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    place = content.index(_BLANK)
    digest = _PLACE % hashlib.sha256(content).hexdigest().encode()
    write_atomically(path, content[:place] + digest + content[place + len(digest) :])


def read(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors, on the CPU, and the state of a checkpoint.

    Raises:
        DamagedError: its checksum is wrong, or it is none.
        NewerError: it is of a newer format.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file, safe_open(path, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            if _digest(file, metadata["sha256"].encode()) != metadata["sha256"]:  # in its place in every format
                raise DamagedError(f"{path} is damaged: its checksum is not that of its content")
            version = int(metadata["version"])
            if version > FORMAT:
                raise NewerError(
                    f"{path} has format {version}, of a newer version of this project, which must read it; "
                    f"expected {FORMAT} at most"
                )
            formats = dict.fromkeys(json.loads(metadata["channels_last"]), torch.channels_last)
            content = {
                name: tensors.get_tensor(name).contiguous(memory_format=formats.get(name, torch.contiguous_format))
                for name in tensors.keys()  # noqa: SIM118 (no iterator)
            }
            return content, json.loads(metadata["state"])
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise DamagedError(f"{path} is damaged or no checkpoint ({error})") from error


def _channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _digest(file: BinaryIO, claimed: bytes) -> str:
    """The digest of a file's content, in which `claimed` is left out."""
    length = file.read(8)
    header = file.read(int.from_bytes(length, "little"))
    digest = hashlib.sha256(length + header.replace(_PLACE % claimed, _BLANK, 1))
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def flatten(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """A tree of dictionaries, lists, plain values and tensors as what `write` takes; tuples become lists.

    Raises:
        TypeError: something else is in it.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {_TENSOR: name}
        if isinstance(value, Mapping):
            if all(isinstance(key, str) for key in value):
                return {key: plain(item, f"{name}/{key}") for key, item in value.items()}
            return {_ITEMS: [[key, plain(item, f"{name}/{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return [plain(item, f"{name}/{index}") for index, item in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{name}: a checkpoint holds tensors and plain values, not a {type(value).__name__}")

    return tensors, plain(tree, "")


def unflatten(tensors: Mapping[str, Tensor], state: Any) -> Any:
    """The tree that `flatten` took apart."""
    if isinstance(state, list):
        return [unflatten(tensors, item) for item in state]
    if not isinstance(state, dict):
        return state
    if _TENSOR in state:
        return tensors[state[_TENSOR]]
    items = state[_ITEMS] if _ITEMS in state else state.items()
    return {key: unflatten(tensors, item) for key, item in items}


def reason(error: Exception) -> str:
    """Why a checkpoint does not fit a run, in one line."""
    return " ".join(str(error).split())[:200]


class Checkpoints:
    """The last checkpoints of a run, in files numbered by how far it had got.

    Args:
        folder: where they lie; `save` makes it where it is missing, in a run folder that is there.
        keep: how many to keep; the oldest go first.
        unit: what is counted, which begins the files' names.
    """

    def __init__(self, folder: Path, keep: int = 2, unit: str = "epoch") -> None:
        self.folder, self.keep, self.unit = folder, keep, unit

    @property
    def numbers(self) -> list[int]:
        """How far the run had got at each checkpoint that is kept, in order."""
        names = (path.stem.removeprefix(f"{self.unit}_") for path in self.folder.glob(f"{self.unit}_*.safetensors"))
        return sorted(int(name) for name in names if name.isdecimal())

    def path(self, number: int) -> Path:
        """Where a checkpoint lies."""
        return self.folder / f"{self.unit}_{number:05d}.safetensors"

    def save(self, number: int, tensors: Mapping[str, Tensor], state: Any) -> None:
        """Save when the run has got so far. Of what is there, later ones go: they are what could not be gone on from.

        Raises:
            OSError: it cannot be written; the checkpoint before it is whole.
        """
        self.folder.mkdir(exist_ok=True)
        write(self.path(number), tensors, state)
        for other in self.numbers:
            if other > number:
                self.path(other).unlink()
        self.prune()

    def prune(self) -> None:
        """Remove all but the last ones: those that a run which died in `save` has one too many of, too."""
        for number in self.numbers[: -self.keep]:
            self.path(number).unlink()

    def load(self) -> tuple[dict[str, Tensor], Any] | None:
        """Tensors and state of the last checkpoint that is whole; None where there is none at all.

        A damaged one before which there is another is named on stderr.

        Raises:
            DamagedError: none of them is whole.
            NewerError: the last is of a newer version of this project.
            OSError: it cannot be read.
        """
        damaged: DamagedError | None = None
        for candidate in reversed(self.numbers):
            if damaged and cluster.is_first():
                print(f"{damaged}; going on from {self.path(candidate).name}", file=sys.stderr, flush=True)
            try:
                return read(self.path(candidate))
            except DamagedError as error:
                damaged = error
        if damaged:
            raise damaged
        return None
