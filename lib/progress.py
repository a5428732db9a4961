"""Progress bars."""

from collections.abc import Iterator
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
Produced = TypeVar("Produced", covariant=True)


class SizedIterable(Protocol[Produced]):
    """An iterable with a length, such as the batches of an epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Produced]: ...


class StepProgress:
    """Progress bars of a run and of its current part. Without a terminal, only `line` prints.

    Args:
        whole: Name of the run.
        total: Number of its steps.
        done: Number of completed steps.
    """

    def __init__(self, whole: str, total: int, done: int) -> None:
        self._console = Console(highlight=False)
        self._bar = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("remaining"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._whole = self._bar.add_task(whole, total=total, completed=done)
        self._part = self._bar.add_task("", total=None)

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def start(self, name: str, steps: int, done: int = 0) -> None:
        """Begin a part of `steps` steps, of which `done` are completed."""
        self._bar.reset(self._part, total=steps, completed=done, description=name)

    def advance(self) -> None:
        """Count a step."""
        self._bar.advance(self._part)
        self._bar.advance(self._whole)

    def track(self, name: str, items: SizedIterable[Item]) -> Iterator[Item]:
        """Iterate over the steps of a part and advance the bars."""
        self.start(name, len(items))
        for item in items:
            yield item
            self.advance()

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False, soft_wrap=True)
