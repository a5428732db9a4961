"""Command lines from typed dataclasses, and the one way a script says that its input is wrong.

Light on purpose: nothing here imports torch, so that every script answers `--help` and a wrong flag at once.
"""

import dataclasses
import itertools
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeVar, Union, get_args, get_origin

import jsonargparse
from jsonargparse.typing import restricted_number_type

from files import hold, is_passing, is_utf8, read_json, read_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class RunSettings(DataclassInstance, Protocol):
        """The settings of a run."""

        resume: str
        device: str


Settings = TypeVar("Settings", bound="DataclassInstance")
SomeRunSettings = TypeVar("SomeRunSettings", bound="RunSettings")

PositiveFloat = restricted_number_type("PositiveFinite", float, [(">", 0), ("<", math.inf)])
NonNegativeFloat = restricted_number_type("NonNegativeFinite", float, [(">=", 0), ("<", math.inf)])
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])
# More than these would only fill the memory, or take for ever.
Channels = restricted_number_type("Channels", int, [(">=", 2), ("<=", 4096)])
AtLeastTwo = restricted_number_type("AtLeastTwo", int, [(">=", 2)])
Layers = restricted_number_type("Layers", int, [(">=", 1), ("<=", 1000)])
ImageSize = restricted_number_type("ImageSize", int, [(">=", 1), ("<=", 4096)])
ImageSizeOrOwn = restricted_number_type("ImageSizeOrOwn", int, [(">=", 0), ("<=", 4096)])
Workers = restricted_number_type("Workers", int, [(">=", -1), ("<=", 1024)])
Probability = restricted_number_type("Probability", float, [(">=", 0), ("<", 1)])


class InputError(Exception):
    """What the user gave cannot be used. The message names the flag or file, the value and what was expected."""


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


#: most characters of a message; of a longer one the middle is left out
LONGEST = 600


def one_line(message: object) -> str:
    """A message as one line, whatever names and values are in it."""
    line = "".join(
        # a terminal obeys what it cannot print
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in " ".join(str(message).split())
    )
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def refuse(prog: str, message: object) -> NoReturn:
    """Say what is wrong in one line on stderr, and exit with status 2."""
    sys.stderr.write(f"{prog}: error: {one_line(message)}\n")
    sys.exit(2)


def option(default: Any, help: str) -> Any:
    """A field of a settings dataclass: its default and the line that explains it in `--help`."""
    return dataclasses.field(default=default, metadata={"help": help})


#: what Python, argparse and jsonargparse say, and how all scripts say it: flag, value, what was expected
PHRASES = (
    (r'Parser key "([^"]+)"(?: element \d+)?:', r"--\1:"),
    (r"argument (\S+):", r"\1:"),
    (r"Option '(.*)' is not accepted", r"\1: unknown; --help says what is taken"),
    (r"unrecognized arguments: (.*)", r"\1: unknown; --help says what is taken"),
    (r'expected "command" to be one of \{(.*)\}.*', r"COMMAND: missing, expected one of \1"),
    (r"the following arguments are required: (.*)", r"\1: missing; --help says what is taken"),
    (r"(?:a )?typing\.Literal\[(.*?)\]", r"one of \1"),
    (r"Not of type \w+: ", ""),
    (r"Expected (?:a )?(.*?)\.? Got value: (.*)", r"'\2', expected \1"),
    (r"<class '(?:list|tuple)'>", "a list, such as [1, 2]"),
    (r"invalid choice: (.*?) \(choose from (.*)\)", r"\1, expected one of \2"),
    (r"ignored explicit argument (.*)", r"\1, expected no value"),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1, expected a whole number"),
    (r"Exceeds the limit .*? has (\d+) digits.*", r"a number of \1 digits, expected a smaller one"),
    (r"could not convert string to float: (.*)", r"\1, expected a number"),
    (r"(\S+) does not conform to restriction (.*)", r"\1, expected a number \2"),
    (r"\bv(?=[<>=])", ""),
)


class Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are InputErrors.

    Attributes:
        reading: the flag and the file whose settings are being read, as the head of a message.
    """

    reading = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(str(message).split())
        for theirs, ours in PHRASES:
            line = re.sub(theirs, ours, line)
        raise InputError(self.reading + line) from ex


class SettingsFile(jsonargparse.ActionConfigFile):
    """--config."""

    def __call__(self, parser: Any, namespace: Any, path: Any, flag: str | None = None) -> None:
        with blaming("--config"):
            if not Path(path).is_file():
                raise ValueError(f"no file {path!r}; expected a YAML file of settings")
            settings = read_yaml(Path(path))
            if not isinstance(settings, dict):
                raise ValueError(f"{path}: expected names of settings and their values")
            # a `config` in it would be another file, which jsonargparse would read
            known = {action.dest for action in parser._actions} - {self.dest}
            unknown = sorted(set(map(str, settings)) - known)
            if unknown:
                raise ValueError(f"{path}: {', '.join(unknown[:5])}: unknown; --help says what is taken")
        parser.reading = f"--config: {path}: "
        super().__call__(parser, namespace, path, flag)
        parser.reading = ""


def parser_for(settings: type, prog: str, description: str) -> Parser:
    """A parser with one flag for each field of the dataclass `settings`; each of its bases is a group of `--help`."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", action=SettingsFile, metavar="FILE.yaml", help="read settings from this file")
    # A run's config.yaml also says how the run was made; as --config it is taken with that part unread.
    parser.add_argument("--provenance", type=dict, help=jsonargparse.SUPPRESS)
    for base in reversed(settings.__mro__):
        own = [field for field in dataclasses.fields(settings) if field.name in vars(base).get("__annotations__", {})]
        if not own:
            continue
        group = parser.add_argument_group(str(base.__doc__).splitlines()[0])
        for field in own:
            if field.type is bool:
                kind: dict[str, Any] = {"action": jsonargparse.ActionYesNo(no_prefix="no_")}
            elif get_origin(field.type) is list:  # --seeds 0 1 2
                kind = {"type": get_args(field.type)[0], "nargs": "+"}
            else:
                kind = {"type": _of_value(field.type)}
            group.add_argument(f"--{field.name}", default=field.default, help=field.metadata["help"], **kind)
    return parser


def _of_value(kind: Any) -> Any:
    """The type of a flag's value: int also of `int | None`, where None is a flag that is not given."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return next(part for part in parts if part is not NoneType)


def parse(settings: type[Settings], prog: str, description: str, arguments: list[str] | None = None) -> Settings:
    """Parse the command line (or `arguments`) into an instance of the dataclass `settings`."""
    arguments = _config_first(sys.argv[1:] if arguments is None else arguments)
    return make(settings, parser_for(settings, prog, description).parse_args(arguments))


def _config_first(arguments: list[str]) -> list[str]:
    """The command line with its --config moved to the front: flags win over it wherever they stand."""
    config: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config":
            config += [argument, *itertools.islice(rest, 1)]
        else:
            (config if argument.startswith("--config=") else others).append(argument)
    return config + others


def make(settings: type[Settings], namespace: jsonargparse.Namespace) -> Settings:
    """The settings in what a parser of `parser_for` has read."""
    return settings(**{field.name: _plain(getattr(namespace, field.name)) for field in dataclasses.fields(settings)})


class Given(NamedTuple):
    """What a command line sets."""

    flags: set[str]  # names of the settings with a flag on the line
    config: dict[str, Any]  # what the file of --config says


def parse_with_preset(
    settings: type[Settings],
    prog: str,
    description: str,
    arguments: list[str],
    preset: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> tuple[Settings, Given]:
    """Parse a command line on which some settings stand for defaults of others.

    Args:
        preset: from the settings that are given to the defaults they imply; without any, those that --help shows.

    Returns:
        The settings, and which of them were given: a flag wins over --config, that over the preset, that over the
        defaults of the dataclass.
    """
    arguments = _config_first(arguments)
    own = {field.name: field.default for field in dataclasses.fields(settings)}
    parser = parser_for(settings, prog, description)
    parser.set_defaults(dict(preset({})))
    given = vars(parser.parse_args(arguments, defaults=False))
    parser.set_defaults({**own, **preset(given)})
    named = {flag.removeprefix("--") for flag in flags(arguments)}
    on_line = {name for name in own if {name, f"no_{name}"} & named}
    files = [part for path in given.get("config", []) for part in ("--config", str(path))]
    in_files = {name: value for name, value in vars(parser.parse_args(files, defaults=False)).items() if name in own}
    return make(settings, parser.parse_args(arguments)), Given(on_line, in_files)


def flags(arguments: list[str]) -> set[str]:
    """The flags of a command line, without their values."""
    return {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}


def _plain(value: Any) -> Any:
    """A number of one of the restricted types as the int or float it is, also in a list."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return next((kind(value) for kind in (float, int) if isinstance(value, kind) and type(value) is not bool), value)


def load_settings(settings: type[Settings], prog: str, run: Path, flag: str) -> Settings:
    """The settings of an existing run, which `flag` names.

    Raises:
        InputError: it is no run of `prog`, or its config.yaml is not as this project writes it.
    """
    path, stored = _stored(run, flag)
    missing = sorted({field.name for field in dataclasses.fields(settings)} - {"save", "resume"} - set(stored))
    if missing:
        raise InputError(
            f"{flag}: {path}: not the settings of {prog}: {', '.join(missing[:5])} missing; "
            "expected a run of it, by this version of the project"
        )
    parser = parser_for(settings, prog, "")
    parser.reading = f"{flag}: {path}: "
    return make(settings, parser.parse_object(stored))


def setting(run: Path, flag: str, name: str) -> Any:
    """One setting of an existing run, which `flag` names; None where it has none of that name.

    Raises:
        InputError: it is no run folder.
    """
    return _stored(run, flag)[1].get(name)


def _stored(run: Path, flag: str) -> tuple[Path, dict[str, Any]]:
    """The config.yaml of a run, and what it says."""
    path = run / "config.yaml"
    if not path.is_file():
        raise InputError(f"{flag}: {run} is no run folder; expected one with a config.yaml")
    with blaming(flag):
        stored = read_yaml(path)
        if not isinstance(stored, dict):
            raise ValueError(f"{path}: expected the settings of a run")
    return path, stored


def resume(given: SomeRunSettings, prog: str, arguments: list[str], movable: Sequence[str] = ()) -> SomeRunSettings:
    """The settings of the run that `given.resume` names.

    Args:
        arguments: the command line, on which --device may stand beside --resume, and what is movable.
        movable: settings that say where something lies.
    """
    allowed = {"--resume", "--device", *(f"--{name}" for name in movable)}
    others = sorted(flags(arguments) - allowed)
    if others:
        raise InputError(f"--resume: the run keeps its own settings; {', '.join(others)} cannot be given beside it")
    stored = load_settings(type(given), prog, Path(given.resume), "--resume")
    moved = {name: getattr(given, name) for name in movable if f"--{name}" in flags(arguments)}
    if given.device != "auto":
        moved["device"] = given.device
    return dataclasses.replace(stored, **moved)


def finished(run: Path) -> bool:
    """True if a retraining has its result.json and its model_card.md; the accuracy is printed.

    Raises:
        InputError: it is damaged.
    """
    result = run / "result.json"
    if not (result.exists() and (run / "model_card.md").exists()):
        return False
    with blaming("--resume"):
        content = read_json(result)
        accuracy = content.get("accuracy") if isinstance(content, dict) else None
        if not isinstance(accuracy, int | float):
            raise ValueError(f"{result}: no result of a retraining")
    print(f"run {run} is finished: test accuracy {100 * accuracy:.2f} %")
    return True


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
