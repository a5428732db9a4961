"""How runs are made, running averages and progress: nothing here knows of architecture search."""

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

Item = TypeVar("Item")
Produced = TypeVar("Produced", covariant=True)


class Averages:
    """Weighted running means of scalars and vectors, kept on the device: adding waits for nothing."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor, weight: float = 1) -> None:
        """Count `value` (a tensor of any shape, the same each time) `weight` times."""
        value = value.detach() * weight
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._weights[name] = self._weights.get(name, 0) + weight

    def compute(self) -> dict[str, Any]:
        """The means so far, as numbers and lists."""
        return {name: (total / self._weights[name]).tolist() for name, total in self._sums.items()}


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the batch whose largest logit is the label's, a scalar in [0, 1]."""
    return (logits.argmax(dim=1) == labels).float().mean()


class Board:
    """TensorBoard's events of a run, a step an epoch, in a file for each time that the run was begun or gone on with.

    TensorBoard reads the files in the order of their names, which the clock, that may be set back, does not assure.

    Args:
        run: the folder.
        rows: of the epochs so far; the last one's events are written anew, for a death may have come before them.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(self, run: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        folder, prefix = run / "tensorboard", "events.out.tfevents."
        folder.mkdir(exist_ok=True)
        numbers = (path.name.removeprefix(prefix).split(".")[0] for path in folder.glob(f"{prefix}*"))
        latest = max((int(number) for number in numbers if number.isdecimal()), default=0)
        self._path = folder / f"{prefix}{max(int(time.time()), latest + 1):010d}.{socket.gethostname()}"
        # What earlier files have from this step on does not count.
        start = SessionLog(status=SessionLog.START)
        self._write(Event(file_version="brain.Event:2"), Event(step=max(1, len(rows)), session_log=start))
        if rows:
            self.add(rows[-1])

    def add(self, row: Mapping[str, Any]) -> None:
        """Write an epoch's row, but for what it has not measured."""
        measured = {name: value for name, value in row.items() if value is not None and name != "epoch"}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in measured.items()]
        self._write(Event(step=row["epoch"], summary=Summary(value=values)))

    def _write(self, *events: Event) -> None:
        """Add to the file, at once: TensorBoard's own writer has a thread, whose errors nobody could catch."""
        with open(self._path, "ab") as file:
            for event in events:
                event.wall_time = time.time()
                RecordWriter(file).write(event.SerializeToString())
