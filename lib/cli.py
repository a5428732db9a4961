"""Run scripts: report errors in one line, open run folders, handle signals. Nothing here imports torch."""

import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from lib.files import hold, is_temporary

Arguments = TypeVar("Arguments")


class InputError(Exception):
    """The user's input cannot be used. The message names the flag or file, the value and what was expected."""


@contextmanager
def blaming(flag: str) -> Iterator[None]:
    """Turn a ValueError or OSError about a user's input into an InputError that names `flag`."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise InputError(f"{flag}: {reason}") from error
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from error


def one_line(message: object) -> str:
    """The message on one line."""
    return " ".join(str(message).split())


def refuse(prog: str, message: object) -> NoReturn:
    """Print the error on one line of stderr and exit with status 2."""
    sys.stderr.write(f"{prog}: error: {one_line(message)}\n")
    sys.exit(2)


def duration(seconds: float) -> str:
    """A time in days, hours, minutes or seconds."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def epochs_left(epochs: int, done: int) -> str:
    """The number of remaining epochs in words, such as "2 epochs of 3 left"."""
    left = "1 epoch" if epochs - done == 1 else f"{epochs - done} epochs"
    return f"{left} of {epochs} left" if done else left


def command_line() -> str:
    """The command line of this process, quoted for a shell."""
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


class Failure(Exception):
    """Something outside the script has failed. The message says what, and how to continue."""


class OutputError(Failure):
    """Standard output cannot be written: its device is full, or its reader, such as `head`, has closed it."""


class _Output(io.TextIOWrapper):
    """Standard output that raises OutputErrors and escapes characters that its encoding lacks."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(f"standard output: {error.strerror}") from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError(f"standard output: {error.strerror}") from error


def ignore_signals() -> None:
    """Ignore Ctrl-C and SIGTERM from now on, because a second one would interrupt the clean-up."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def _answering(prog: str) -> Iterator[None]:
    """Turn the errors of a script into one line on stderr and an exit status.

    The status is 2 for wrong input, 1 for numbers that are not finite and other failures, 130 for Ctrl-C and SIGTERM.
    """
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and not isinstance(out, _Output):
        sys.stdout = _Output(
            out.buffer,
            out.encoding,
            "backslashreplace",
            line_buffering=out.line_buffering,
            write_through=out.write_through,
        )
    try:
        try:
            yield
        finally:
            if sys.stdout:  # None if it was closed before the start
                sys.stdout.flush()
    except InputError as error:
        refuse(prog, error)
    except FloatingPointError as error:
        sys.stderr.write(f"{prog}: failed: {error}\n")
        sys.exit(1)
    except Failure as error:
        if isinstance(error, OutputError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard the rest of the output
        sys.stderr.write(f"{prog}: failed: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt as interruption:
        ignore_signals()
        reason = str(interruption)
        sys.stderr.write(f"{prog}: stopped{': ' if reason else ''}{reason}\n")
        sys.exit(130)


def answer(read_arguments: Callable[[], Arguments], prog: str) -> Arguments:
    """Read the command line before slow imports, so that --help and wrong flags are answered at once.

    A signal during these imports ends the process at once, until `run` installs its own handlers.
    """

    def stop(signum: int, frame: object) -> NoReturn:
        sys.stderr.write(f"{prog}: stopped\n")
        os._exit(130)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    with _answering(prog):
        return read_arguments()


def run(main: Callable[[], None], prog: str) -> NoReturn:
    """Run a script's main function, and report an expected error in one line on stderr."""

    def stop(signum: int, frame: object) -> NoReturn:
        ignore_signals()
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    with _answering(prog):
        main()
    sys.exit(0)


def check_new_folder(path: Path, flag: str) -> None:
    """Reject a path that is a file or a folder with content, so that no run overwrites another."""
    with blaming(flag):
        if path.exists() and (not path.is_dir() or not all(map(is_temporary, path.iterdir()))):
            or_resume = ", or --resume it" if (path / "config.yaml").is_file() else ""
            raise InputError(f"{flag}: {path} exists and is not empty; name a new folder{or_resume}")


def new_folder(path: Path, flag: str) -> None:
    """Make a new folder, with its parents."""
    check_new_folder(path, flag)
    with blaming(flag):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def open_folder(path: Path, flag: str, new: bool) -> Iterator[None]:
    """Make a new folder with its parents, or open an existing one, and lock it against other processes.

    Raises:
        InputError: The folder is not new, is in use, or cannot be written.
    """
    with ExitStack() as opened:
        with blaming(flag):
            if new:
                new_folder(path, flag)
            opened.enter_context(hold(path))
            if new:
                check_new_folder(path, flag)  # another process may have filled it meanwhile
        yield


@contextmanager
def warning(what: str) -> Iterator[None]:
    """Turn an error in something that is not essential, such as a figure, into a warning on stderr."""
    try:
        yield
    except Exception as error:
        print(f"warning: {what} ({type(error).__name__}: {one_line(error)})", file=sys.stderr, flush=True)


@contextmanager
def saving(run: Path, resume_hint: str) -> Iterator[None]:
    """Report an error in writing a file of a run, such as a full disk, in one line.

    Args:
        resume_hint: How to continue from the last checkpoint.
    """
    try:
        yield
    except OutputError as error:
        raise OutputError(f"{error}; {resume_hint}") from error
    except OSError as error:
        where, what = error.filename or run, error.strerror or error
        raise InputError(f"{where}: {what}; {resume_hint}") from error
