"""How a script runs: one line on stderr for input that cannot be used, run folders, signals.

Nothing here imports torch, so every script answers `--help` and a wrong flag at once.
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from lib.files import hold, is_passing, is_utf8

Arguments = TypeVar("Arguments")


class InputError(Exception):
    """The user's input cannot be used. The message names the flag or file, the value and what was expected."""


@contextmanager
def blaming(flag: str) -> Iterator[None]:
    """Turn the ValueError or OSError of reading a user's input into an InputError that names `flag`."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise InputError(f"{flag}: {reason}") from error
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from error


#: a longer message loses its middle
LONGEST = 600


def one_line(message: object) -> str:
    """The message as one printable line."""
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in " ".join(str(message).split())
    )
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def refuse(prog: str, message: object) -> NoReturn:
    """Print the error in one line on stderr and exit with status 2."""
    sys.stderr.write(f"{prog}: error: {one_line(message)}\n")
    sys.exit(2)


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def command_line() -> str:
    """The command this process was started with, as a shell would take it."""
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


@contextmanager
def _answering(prog: str) -> Iterator[None]:
    """Turn the errors of a script into one line on stderr and an exit status.

    Wrong input gives status 2, numbers that are not finite 1, Ctrl-C and SIGTERM 130.
    """
    try:
        for argument in sys.argv[1:]:
            if not is_utf8(argument):
                raise InputError(f"{argument}: not UTF-8, expected text")
        yield
    except InputError as error:
        refuse(prog, error)
    except FloatingPointError as error:
        sys.stderr.write(f"{prog}: failed: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt as interruption:
        reason = str(interruption)
        sys.stderr.write(f"{prog}: stopped{': ' if reason else ''}{reason}\n")
        sys.exit(130)


def answer(read_arguments: Callable[[], Arguments], prog: str) -> Arguments:
    """Read the command line before slow imports, so that --help and wrong flags are answered at once.

    A signal during these imports ends the process; `run` handles signals again.
    """
    with _answering(prog):
        arguments = read_arguments()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    return arguments


def run(main: Callable[[], None], prog: str) -> NoReturn:
    """Run a script's main function; an expected error is one line on stderr."""

    def stop(signum: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    with _answering(prog):
        main()
    sys.exit(0)


def check_new_folder(path: Path, flag: str) -> None:
    """Reject a path that is a file or a folder with content, so that no run overwrites another."""
    with blaming(flag):
        if path.exists() and (not path.is_dir() or not all(map(is_passing, path.iterdir()))):
            or_resume = ", or --resume it" if (path / "config.yaml").is_file() else ""
            raise InputError(f"{flag}: {path} exists and is not empty; name a new folder{or_resume}")


def new_folder(path: Path, flag: str) -> None:
    """Make a new folder, with its parents."""
    check_new_folder(path, flag)
    with blaming(flag):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def open_folder(path: Path, flag: str, new: bool) -> Iterator[None]:
    """Make a new folder, with its parents, or take one that is there, and be the only process that writes it.

    Raises:
        InputError: it is not new, in use, or cannot be written; `flag` names it.
    """
    with ExitStack() as opened:
        with blaming(flag):
            if new:
                new_folder(path, flag)
            opened.enter_context(hold(path))
            if new:
                check_new_folder(path, flag)  # another process may have been quicker
        yield


@contextmanager
def warning(what: str) -> Iterator[None]:
    """Turn an error of what is not essential, such as a figure, into a warning on stderr."""
    try:
        yield
    except Exception as error:
        print(f"warning: {what} ({type(error).__name__}: {one_line(error)})", file=sys.stderr, flush=True)


@contextmanager
def saving(run: Path, goes_on: str) -> Iterator[None]:
    """Say in one line what of a run cannot be written, such as on a full disk.

    Args:
        goes_on: how to go on from the last checkpoint.
    """
    try:
        yield
    except OSError as error:
        if not (run / "config.yaml").exists():
            raise InputError(f"{run} is gone or moved; expected it to stay while the run goes on") from error
        where, what = error.filename or run, error.strerror or error
        raise InputError(f"{where}: {what}; the run's last checkpoint is whole, {goes_on}") from error
