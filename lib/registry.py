"""Registries of named entries, to which users can add their own."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

from lib.cli import InputError

Entry = TypeVar("Entry")
#: the end of messages about an unknown name
OWN_NAMES = "(--plugin FILE.py adds names of your own)"


class EntryError(ValueError):
    """An entry of a registry cannot be used. The message is one line."""


class Registry(MutableMapping[str, Entry]):
    """Entries of one kind by name. `registry[name] = entry` adds an entry under a new name.

    Args:
        kind: The word for an entry in messages, such as "operation".
        entries: The entries of the project.
        check: Raises a ValueError if an entry cannot be used. The project's entries are not checked.
        reserved: Names that flags accept but entries cannot have, such as "none".
    """

    def __init__(
        self, kind: str, entries: Mapping[str, Entry], check: Callable[[Entry], object], reserved: Sequence[str] = ()
    ) -> None:
        self.kind, self.check, self.reserved = kind, check, reserved
        self.data = dict(entries)

    def __getitem__(self, name: str) -> Entry:
        return self.data[name]

    def __setitem__(self, name: str, entry: Entry) -> None:
        """Add an entry.

        Raises:
            EntryError: The name is taken, or the entry cannot be used.
        """
        if name in (*self.data, *self.reserved):
            raise EntryError(f"{self.kind} {name!r}: this name is taken; choose another")
        if not isinstance(name, str) or not name:
            raise EntryError(f"{self.kind} {name!r}: expected a string as its name")
        try:
            self.check(entry)
        except ValueError as error:
            raise EntryError(f"{self.kind} {name!r}: {error}") from error
        self.data[name] = entry

    def __delitem__(self, name: str) -> None:
        del self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def choose(self, name: str, flag: str) -> None:
        """Check that the value of a flag is the name of an entry or a reserved name.

        Raises:
            InputError: There is no such entry.
        """
        names = [*self.reserved, *self.data]
        if name not in names:
            raise InputError(f"{flag}: {name!r}, {nearest(name, names)} {OWN_NAMES}")

    def find(self, name: str) -> Entry:
        """The entry with this name.

        Raises:
            ValueError: There is no such entry; the message suggests others.
        """
        if name not in self.data:
            raise ValueError(f"unknown {self.kind} {name!r}; {nearest(name, self.data)}")
        return self.data[name]


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: all names, or only the nearest ones if there are many."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=2) if len(names) > 12 else []
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(names)}"


def check_arguments(function: Callable[..., object], *names: str) -> None:
    """Check that a function can be called with these positional arguments.

    Raises:
        ValueError: The function takes other arguments, or is not a function.
    """
    expected = f"expected a function of ({', '.join(names)})"
    if not callable(function):
        raise ValueError(f"{function!r}; {expected}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin may have none
        return
    try:
        signature.bind(*names)
    except TypeError as error:
        raise ValueError(f"{getattr(function, '__name__', function)}{signature}; {expected}") from error


def check_instance(kind: type) -> Callable[[Any], None]:
    """A check that an entry is an instance of a class."""

    def check(entry: Any) -> None:
        if not isinstance(entry, kind):
            raise ValueError(f"{entry!r}; expected a {kind.__name__}")

    return check
