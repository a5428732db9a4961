"""The parser of command lines, based on jsonargparse. It also loads plugins. Nothing here imports torch."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jsonargparse

from lib import plugins
from lib.cli import InputError
from lib.registry import EntryError

#: the help of --plugin
PLUGIN_HELP = "Python file of your own that adds operations, spaces, methods and so on. Can be repeated."


def with_underscores(word: str) -> str:
    """A word of the command line, with `_` for each `-` in the name of a flag."""
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word


def load_plugins(arguments: Sequence[str] | None) -> list[str]:
    """Load the plugins of a command line, and return its other words.

    Raises:
        InputError: A plugin is missing, or a registry rejects an entry.
    """
    words = [with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    given, rest = read_first(words, plugin="append")
    try:
        plugins.load(given.plugin or [])
    except EntryError as error:
        raise InputError(f"--plugin: {error}") from error
    return rest


def read_first(words: list[str], **actions: str) -> tuple[argparse.Namespace, list[str]]:
    """Parse only some flags. `actions` maps their names to argparse's actions. Returns their values and the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, action in actions.items():
        parser.add_argument(f"--{name}", action=action)
    try:
        return parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise InputError(f"{error.argument_name}: {error.message}") from error


class Parser(jsonargparse.ArgumentParser):
    """A parser that raises InputErrors and accepts `-` for `_` in flags."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(formatter_class=argparse.HelpFormatter, allow_abbrev=False, **keywords)
        self.add_argument("--plugin", metavar="FILE.py", default=argparse.SUPPRESS, help=PLUGIN_HELP)

    def parse_args(self, args: Sequence[str] | None = None, **keywords: Any) -> Any:  # type: ignore[override]
        return super().parse_args(load_plugins(args), **keywords)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if isinstance(ex, argparse.ArgumentError) and ex.argument_name:
            message = f"{ex.argument_name}: {ex.message}"
        raise InputError(message) from ex
