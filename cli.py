"""Command lines and settings files from typed dataclasses, and one line on stderr for input that cannot be used.

Nothing here imports torch, so every script answers `--help` and a wrong flag at once.
"""

import argparse
import dataclasses
import difflib
import math
import os
import shlex
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import jsonargparse

from files import hold, is_passing, is_utf8, read_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


class Limit(NamedTuple):
    """The numbers that an option accepts, in words and as a test."""

    text: str
    accepts: Callable[[float], bool]


PositiveInt = Annotated[int, Limit("1 or more", lambda n: n >= 1)]
NonNegativeInt = Annotated[int, Limit("0 or more", lambda n: n >= 0)]
AtLeastTwo = Annotated[int, Limit("2 or more", lambda n: n >= 2)]
Seed = NonNegativeInt
Channels = Annotated[int, Limit("2 to 4096", lambda n: 2 <= n <= 4096)]
Layers = Annotated[int, Limit("1 to 1000", lambda n: 1 <= n <= 1000)]
ImageSize = Annotated[int, Limit("1 to 4096", lambda n: 1 <= n <= 4096)]
ImageSizeOrOwn = Annotated[int, Limit("0 to 4096", lambda n: 0 <= n <= 4096)]
Workers = Annotated[int, Limit("-1 to 1024", lambda n: -1 <= n <= 1024)]
PositiveFloat = Annotated[float, Limit("above 0", lambda x: x > 0)]
NonNegativeFloat = Annotated[float, Limit("0 or more", lambda x: x >= 0)]
Probability = Annotated[float, Limit("0 to below 1", lambda x: 0 <= x < 1)]
Fraction = Annotated[float, Limit("between 0 and 1", lambda x: 0 < x < 1)]
Gate = Annotated[float, Limit("0 to 1", lambda x: 0 <= x <= 1)]


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


class Need(NamedTuple):
    """The settings without which nothing reads an option, in words and as a test."""

    text: str
    holds: Callable[[Any], bool]


def option(default: Any, help: str, group: str = "settings", need: Need | None = None) -> Any:
    """A field of a settings dataclass.

    Args:
        help: One or two sentences for `--help`.
        group: The heading under which `--help` lists the option.
        need: Without these settings the flag has no effect, and is rejected.
    """
    return dataclasses.field(default=default, metadata={"help": help, "group": group, "need": need})


def argument(help: str) -> Any:
    """A field of a settings dataclass that is a positional argument."""
    return dataclasses.field(default="", metadata={"help": help})


def read_value(kind: Any, value: Any) -> Any:
    """The value of an option.

    Args:
        kind: The type of the field: bool, int, float, str, a Literal, a number with a Limit, or a list of these.
        value: A word of the command line, or a value of a settings file.

    Raises:
        ValueError: The value is not of that type. The message begins with the value.
    """
    if NoneType in get_args(kind):
        return None if value is None else read_value(get_args(kind)[0], value)
    base, *limits = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(base) is list:
        if not isinstance(value, list):
            raise ValueError(f"{value!r}, expected a list, such as [1, 2]")
        return [read_value(get_args(base)[0], item) for item in value]
    if get_origin(base) is Literal:
        if value not in get_args(base):
            raise ValueError(f"{value!r}, expected one of {', '.join(map(repr, get_args(base)))}")
        return value
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    expected = f"expected {names[base]}" + "".join(f", {limit.text}" for limit in limits)
    if base in (bool, str):
        if not isinstance(value, base):
            raise ValueError(f"{value!r}, {expected}")
        return value
    try:
        if isinstance(value, bool | NoneType | list | dict) or (base is int and isinstance(value, float)):
            raise TypeError
        number = base(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r}, {expected}") from None
    if not all(limit.accepts(number) for limit in limits):
        raise ValueError(f"{value}, {expected}")
    _check_size(value, number)
    return number


def _check_size(value: Any, number: float) -> None:
    """Reject whole numbers over 2^31 and numbers that float32 cannot hold."""
    if isinstance(number, int):
        if abs(number) >= 2**31:
            raise ValueError(f"{value}, expected a whole number below 2147483648")
        return
    try:
        single = struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        single = math.inf
    if not math.isfinite(single) or (single == 0) != (number == 0):
        raise ValueError(f"{value}, expected a number that float32 can hold")


class Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are InputErrors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if isinstance(ex, argparse.ArgumentError) and ex.argument_name:
            message = f"{ex.argument_name}: {ex.message}"
        raise InputError(message) from ex


def parser_for(kind: type, prog: str, description: str) -> Parser:
    """A parser with one flag for each field of the dataclass `kind`; its own fields come first in `--help`."""
    usage = " ".join(["%(prog)s [--FLAG VALUE ...]", *(name.upper() for name in _positional(kind))])
    parser = Parser(
        prog=prog, usage=usage, description=description, allow_abbrev=False, formatter_class=argparse.HelpFormatter
    )
    parser.add_argument("--config", action="config", metavar="FILE.yaml", help="Read settings from this file.")
    kinds, groups = get_type_hints(kind, include_extras=True), {}
    own_first = [name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})]
    by_name = {field.name: field for field in dataclasses.fields(kind)}
    for field in (by_name[name] for name in dict.fromkeys(own_first)):
        help, name = field.metadata["help"], field.name
        if "group" not in field.metadata:
            parser.add_argument(name, type=str, metavar=name.upper(), help=help)
            continue
        group = field.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        details, keywords = _of_flag(kinds[name], field.default)
        groups[group].add_argument(f"--{name}", default=field.default, help=f"{help} {details}".strip(), **keywords)
    return parser


def _positional(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if "group" not in field.metadata]


def _of_flag(kind: Any, default: Any) -> tuple[str, dict[str, Any]]:
    """What `--help` adds to the text of a flag, and the keywords of its add_argument."""
    if kind is bool:
        return "(default: yes)" if default else "", {"action": jsonargparse.ActionYesNo(no_prefix="no_")}
    kind = get_args(kind)[0] if NoneType in get_args(kind) else kind
    keywords: dict[str, Any] = {"nargs": "+"} if get_origin(kind) is list else {}
    kind = get_args(kind)[0] if keywords else kind
    base, *limits = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(base) is Literal:
        keywords["metavar"] = f"{{{','.join(get_args(base))}}}"
    else:
        keywords["metavar"] = {str: "TEXT", int: "N", float: "X"}[base]

    def read(word: Any) -> Any:
        try:
            return read_value(kind, word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    shown = [] if default in (None, "") else ["default: %(default)s"]
    details = "; ".join([*(limit.text for limit in limits), *shown])
    return f"({details})" if details else "", {"type": read, **keywords}


def parse(kind: type[Settings], prog: str, description: str, arguments: list[str] | None = None) -> Settings:
    """Parse the command line (or `arguments`) into an instance of the dataclass `kind`."""
    return parse_given(kind, prog, description, arguments).settings


class Parsed(NamedTuple):
    """The settings of a command line, the names of its flags, and the content of its settings file."""

    settings: Any
    flags: set[str]
    config: dict[str, Any]


def parse_given(
    kind: type,
    prog: str,
    description: str,
    arguments: list[str] | None = None,
    preset: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda chosen: {},
) -> Parsed:
    """Parse a command line. Flags override --config, which overrides the preset, which overrides the defaults.

    Args:
        preset: From --method and --space, where they are given, to the defaults they imply.

    Raises:
        InputError: A flag or a value cannot be used, or nothing reads a flag.
    """
    kinds = get_type_hints(kind, include_extras=True)
    known = {*kinds, *(f"no_{name}" for name in kinds if kinds[name] is bool), "config", "print_config", "help"}
    arguments, flags = _normalize(sys.argv[1:] if arguments is None else arguments, known)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("config", "method", "space"):
        early.add_argument(f"--{name}")
    try:
        chosen, rest = early.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(f"{error.argument_name}: {error.message}") from error
    config = _read_settings(Path(chosen.config), kinds, "--config") if chosen.config is not None else {}
    first = {}
    for name in kinds.keys() & {"method", "space"}:
        value = getattr(chosen, name)
        if value is not None:
            with blaming(f"--{name}"):
                first[name] = read_value(kinds[name], value)
            rest.append(f"--{name}={value}")
        elif name in config:
            first[name] = config[name]
    parser = parser_for(kind, prog, description)
    parser.set_defaults({**preset(first), **config})
    namespace = parser.parse_args(rest)
    given = {name for name in kinds if {name, f"no_{name}"} & flags}
    settings = kind(**{name: getattr(namespace, name) for name in kinds})
    if not getattr(settings, "resume", ""):
        check_needs(settings, given)
    return Parsed(settings, given, config)


def _normalize(arguments: Sequence[str], known: set[str]) -> tuple[list[str], set[str]]:
    """The command line with `_` for `-` in its flags, and the names of its flags.

    Raises:
        InputError: A flag is unknown; the message names the nearest ones.
    """
    words, flags = [], set()
    for word in arguments:
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag != "--":
            name = flag[2:].replace("-", "_")
            if name not in known:
                initials = [other for other in sorted(known) if "".join(p[:1] for p in other.split("_")) == name]
                near = dict.fromkeys([*initials, *difflib.get_close_matches(name, sorted(known))])
                meant = f"; did you mean {' or '.join(f'--{other}' for other in near)}?" if near else ""
                raise InputError(f"{flag}: unknown flag{meant or '; --help lists all flags'}")
            flags.add(name)
            word = f"--{name}{equals}{value}"
        words.append(word)
    return words, flags


def check_needs(settings: Any, names: set[str]) -> None:
    """Reject the named settings that have no effect.

    Raises:
        InputError: Nothing reads one of them; the message says what it needs.
    """
    for field in dataclasses.fields(settings):
        need = field.metadata.get("need")
        if field.name in names and need and not need.holds(settings):
            raise InputError(f"--{field.name}: this flag has no effect here; it needs {need.text}")


def _read_settings(path: Path, kinds: Mapping[str, Any], flag: str) -> dict[str, Any]:
    """The settings in a YAML file. A run's config.yaml also says how the run was made, which is left out.

    Raises:
        InputError: The file or a value in it cannot be used.
    """
    with blaming(flag):
        if not path.is_file():
            raise ValueError(f"no file {str(path)!r}; expected a YAML file of settings")
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected names of settings and their values")
    content.pop("provenance", None)
    unknown = sorted(set(map(str, content)) - set(kinds))
    if unknown:
        raise InputError(f"{flag}: {path}: {', '.join(unknown[:5])}: unknown setting; --help lists all settings")
    values = {}
    for name, value in content.items():
        with blaming(f"{flag}: {path}: {name}"):
            values[name] = read_value(kinds[name], value)
    return values


def load_settings(kind: type[Settings], prog: str, run: Path, flag: str) -> Settings:
    """The settings of an existing run, which `flag` names.

    Raises:
        InputError: The folder is not a run of `prog`, or its config.yaml is not as this project writes it.
    """
    kinds = get_type_hints(kind, include_extras=True)
    missing = sorted(kinds.keys() - {"save", "resume"} - stored_settings(run, flag).keys())
    if missing:
        raise InputError(
            f"{flag}: {run / 'config.yaml'}: not the settings of {prog}: {', '.join(missing[:5])} missing; "
            "expected a run of it, by this version of the project"
        )
    return kind(**_read_settings(run / "config.yaml", kinds, flag))


def stored_settings(run: Path, flag: str) -> dict[str, Any]:
    """The content of the config.yaml of a run, which `flag` names.

    Raises:
        InputError: The folder is not a run folder.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise InputError(f"{flag}: {run} is not a run folder; expected one with a config.yaml")
    with blaming(flag):
        stored = read_yaml(path)
        if not isinstance(stored, dict):
            raise ValueError(f"{path}: expected the settings of a run")
    return stored


def resume(given: Parsed, prog: str, movable: Sequence[str] = ()) -> Any:
    """The settings of the run that --resume names.

    Args:
        movable: Settings that may be given beside --resume and --device, such as where the data lie.

    Raises:
        InputError: Another flag is given, or the folder is not a run of `prog`.
    """
    others = sorted(given.flags - {"resume", "device", *movable})
    if others:
        flags = ", ".join(f"--{name}" for name in others)
        raise InputError(f"--resume: the run keeps its own settings; {flags} cannot be given beside it")
    stored = load_settings(type(given.settings), prog, Path(given.settings.resume), "--resume")
    return dataclasses.replace(stored, **{name: getattr(given.settings, name) for name in given.flags - {"resume"}})


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def command_line() -> str:
    """The command this process was started with, as a shell would take it."""
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def run(main: Callable[[], None], prog: str) -> NoReturn:
    """Run a script's main function.

    Wrong input ends it with one line and status 2, numbers that are not finite with 1, Ctrl-C and SIGTERM with 130.
    """

    def stop(signum: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        for argument in sys.argv[1:]:
            if not is_utf8(argument):
                raise InputError(f"{argument}: not UTF-8, expected text")
        main()
    except InputError as error:
        refuse(prog, error)
    except FloatingPointError as error:
        sys.stderr.write(f"{prog}: failed: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt as interruption:
        reason = str(interruption)
        sys.stderr.write(f"{prog}: stopped{': ' if reason else ''}{reason}\n")
        sys.exit(130)
    sys.exit(0)


def check_new_folder(path: Path, flag: str) -> None:
    """Refuse a folder that holds anything already, so that no run overwrites another's, and one that cannot be made."""
    with blaming(flag):
        if path.exists() and (not path.is_dir() or not all(map(is_passing, path.iterdir()))):
            or_resume = ", or --resume it" if (path / "config.yaml").is_file() else ""
            raise InputError(f"{flag}: {path} exists and is not empty; name a new folder{or_resume}")
        there = next((parent for parent in path.parents if parent.exists()), path)
        if not there.is_dir():
            raise InputError(f"{flag}: {path} would lie in {there}, which is a file; name a new folder")


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
