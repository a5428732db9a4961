"""Registries: entries by name, to which users add their own."""

import difflib
import inspect
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class EntryError(ValueError):
    """An entry of a registry cannot be used. The message is one line."""


class Registry(UserDict[str, Entry]):
    """Entries of one kind by name. `registry[name] = entry` adds an entry under a new name.

    Args:
        kind: The word for an entry in messages, such as "operation".
        entries: The entries of the project.
        check: Raises a ValueError if an entry cannot be used. The project's entries are not checked.
    """

    def __init__(self, kind: str, entries: Mapping[str, Entry], check: Callable[[Entry], object]) -> None:
        super().__init__()
        self.kind, self.check = kind, check
        self.data.update(entries)

    def __setitem__(self, name: str, entry: Entry) -> None:
        """Add an entry.

        Raises:
            EntryError: The name is taken, or the entry cannot be used.
        """
        if not isinstance(name, str) or not name or name in self.data:
            problem = "this name is taken" if name in self.data else "expected a text as its name"
            raise EntryError(f"{self.kind} {name!r}: {problem}")
        try:
            self.check(entry)
        except ValueError as error:
            raise EntryError(f"{self.kind} {name!r}: {error}") from error
        self.data[name] = entry

    def find(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            ValueError: There is none; the message names the nearest one.
        """
        if name not in self.data:
            raise ValueError(f"unknown {self.kind} {name!r}; {nearest(name, self.data)}")
        return self.data[name]


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the names: all of them, or the nearest ones of many."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=2) if len(names) > 12 else []
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(names)}"


def check_arguments(function: Callable[..., object], *names: str) -> None:
    """Check that a function can be called with positional arguments.

    Raises:
        ValueError: It takes other arguments, or is not a function.
    """
    expected = f"expected a function of ({', '.join(names)})"
    if not callable(function):
        raise ValueError(f"{function!r}; {expected}")
    signature = inspect.signature(function)
    try:
        signature.bind(*names)
    except TypeError as error:
        raise ValueError(f"{getattr(function, '__name__', function)}{signature}; {expected}") from error
