"""Command lines and settings files for typed dataclasses, with jsonargparse. Nothing here imports torch."""

import argparse
import dataclasses
import difflib
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import jsonargparse

from lib import plugins
from lib.cli import InputError, blaming
from lib.files import check_regular, read_yaml, seeds_hint
from lib.parser import Parser, load_plugins, read_first
from lib.registry import OWN_NAMES, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


class Limit(NamedTuple):
    """A condition on the value of a numeric option: its description and its test."""

    text: str
    accepts: Callable[[float], bool]


class NameOf(NamedTuple):
    """The condition that an option is the name of an entry of a registry. Plugins may add names later."""

    names: Callable[[], Iterable[str]]


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


class Need(NamedTuple):
    """The condition under which an option has an effect: its description and its test."""

    text: str
    holds: Callable[[Any], bool]


def option(default: Any, help: str | Callable[[], str], group: str = "settings", need: Need | None = None) -> Any:
    """A field of a settings dataclass.

    Args:
        help: One or two sentences for `--help`, or a function that returns them.
        group: The heading under which `--help` lists the option.
        need: Condition without which the flag is rejected.
    """
    return dataclasses.field(default=default, metadata={"help": help, "group": group, "need": need})


def argument(help: str) -> Any:
    """A field of a settings dataclass that is a positional argument."""
    return dataclasses.field(default="", metadata={"help": help})


def _parts(kind: Any) -> tuple[Any, list[Limit], bool]:
    """The type of one value of an option (or its NameOf), its limits, and True if the option takes a list."""
    kind = get_args(kind)[0] if NoneType in get_args(kind) else kind
    several = get_origin(kind) is list
    kind = get_args(kind)[0] if several else kind
    base, *limits = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    return (limits[0], [], several) if limits and isinstance(limits[0], NameOf) else (base, limits, several)


def read_value(kind: Any, value: Any) -> Any:
    """Convert and check the value of an option.

    Args:
        kind: The type of the field: bool, int, float, str, a Literal, a number with a Limit, a text with NameOf, or a
            list of these.
        value: A word of the command line, or a value of a settings file.

    Raises:
        ValueError: The value does not have this type. The message begins with the value.
    """
    base, limits, several = _parts(kind)
    if value is None and NoneType in get_args(kind):
        return None
    if several:
        if not isinstance(value, list):
            raise ValueError(f"{reprlib.repr(value)}, expected a list, such as [1, 2]")
        return [_read_single(base, limits, item) for item in value]
    return _read_single(base, limits, value)


def _spelled(choice: object) -> str:
    """A choice with `_` for each `-`, to compare names in either spelling."""
    return str(choice).replace("-", "_")


def _read_single(base: Any, limits: Sequence[Limit], value: Any) -> Any:
    if get_origin(base) is Literal:
        for choice in get_args(base):
            if value in (choice, str(choice)) or _spelled(value) == _spelled(choice):
                return choice
        raise ValueError(f"{reprlib.repr(value)}, expected one of {', '.join(map(repr, get_args(base)))}")
    if isinstance(base, NameOf):
        names = list(base.names())
        if value in names:
            return value
        for name in names:
            if _spelled(value) == _spelled(name):
                return name
        raise ValueError(f"{reprlib.repr(value)}, {nearest(str(value), names)} {OWN_NAMES}")
    words = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    expected = ", ".join([f"expected {words[base]}", *(limit.text for limit in limits)])
    numeric = base in (int, float)
    if not isinstance(value, (base, str, int) if numeric else base) or (numeric and isinstance(value, bool)):
        raise ValueError(f"{reprlib.repr(value)}, {expected}")
    try:
        result = base(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r}, {expected}") from None
    if not all(limit.accepts(result) for limit in limits):
        raise ValueError(f"{value}, {expected}")
    if numeric and not math.isfinite(result):
        raise ValueError(f"{value}, expected a finite number")
    return result


def parser_for(kind: type, prog: str, description: str) -> Parser:
    """A parser with one flag for each field of the dataclass `kind`. `--help` lists inherited fields last."""
    by_name = {field.name: field for field in dataclasses.fields(kind)}
    flags = {name for name, field in by_name.items() if "group" in field.metadata}
    parser = Parser(
        prog=prog,
        usage=" ".join(["%(prog)s [--FLAG VALUE ...]", *(name.upper() for name in by_name if name not in flags)]),
        description=description,
    )
    parser.add_argument("--config", action="config", metavar="FILE.yaml", help="Read settings from this file.")
    kinds, groups = get_type_hints(kind, include_extras=True), {}
    own_first = [name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})]
    for field in (by_name[name] for name in dict.fromkeys(own_first)):
        help, name = field.metadata["help"], field.name
        if name not in flags:
            parser.add_argument(name, type=str, metavar=name.upper(), help=help)
            continue
        group, help = field.metadata["group"], help() if callable(help) else help
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        details, keywords = _of_flag(kinds[name], field.default)
        groups[group].add_argument(f"--{name}", default=field.default, help=f"{help} {details}".strip(), **keywords)
    return parser


def reader(kind: Any) -> Callable[[Any], Any]:
    """The argument `type` of add_argument for options of this type."""
    base, limits, _ = _parts(kind)

    def read(word: Any) -> Any:
        try:
            return _read_single(base, limits, word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _of_flag(kind: Any, default: Any) -> tuple[str, dict[str, Any]]:
    """The text that `--help` adds for a flag, and the keywords of its add_argument."""
    if kind is bool:
        return "(default: yes)" if default else "", {"action": jsonargparse.ActionYesNo(no_prefix="no_")}
    base, limits, several = _parts(kind)
    choices = base.names() if isinstance(base, NameOf) else get_args(base) if get_origin(base) is Literal else ()
    metavar = f"{{{','.join(choices)}}}" if choices else {str: "TEXT", int: "N", float: "X"}[base]

    shown = [] if default in (None, "") else ["default: %(default)s"]
    details = "; ".join([*(limit.text for limit in limits), *shown])
    keywords = {"type": reader(kind), "metavar": metavar, **({"nargs": "+", "action": "extend"} if several else {})}
    return f"({details})" if details else "", keywords


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
        preset: Maps --method, --space and --released, if they are given, to the defaults that they imply.

    Raises:
        InputError: A flag or a value cannot be used, or a flag has no effect.
    """
    kinds = get_type_hints(kind, include_extras=True)
    known = {*kinds, *(f"no_{name}" for name in kinds if kinds[name] is bool), "config", "print_config", "help"}
    words = load_plugins(arguments)
    flags = _flags(words, known)
    chosen, rest = read_first(words, config="store", method="store", space="store")
    config = {}
    if chosen.config is not None:
        config = _read_values(_read_mapping(Path(chosen.config), "--config"), kinds, f"--config: {chosen.config}")
    first: dict[str, Any] = {name: config[name] for name in ("method", "space", "released") if name in config}
    first |= {"released": "released" in flags} if {"released", "no_released"} & flags else {}
    for name, value in vars(chosen).items():
        if name in kinds and value is not None:
            rest.append(f"--{name}={value}")
            with blaming(f"--{name}"):
                first[name] = read_value(kinds[name], value)
    if config.get("resume"):
        raise InputError(f"--config: {chosen.config}: resume: expected --resume on the command line instead")
    parser = parser_for(kind, prog, description)
    given = {name for name in kinds if {name, f"no_{name}"} & flags}
    lists: dict[str, Any] = {
        name: [] for name in given if _parts(kinds[name])[2]
    }  # replaces the default; the parser adds to it
    implied = _read_values(preset(first), kinds, f"--method: {first.get('method')}")
    parser.set_defaults({**implied, **config, **lists})
    namespace = parser.parse_args(rest)
    settings = kind(**{name: getattr(namespace, name) for name in kinds})
    if not getattr(settings, "resume", ""):
        check_needs(settings, given)
    return Parsed(settings, given, config)


def _flags(words: Sequence[str], known: set[str]) -> set[str]:
    """The names of the flags on a command line.

    Raises:
        InputError: A flag is unknown; the message names the nearest ones.
    """
    names = {word[2:].partition("=")[0] for word in words if word.startswith("--") and word != "--"}
    for name in sorted(names - known):
        initials = [other for other in sorted(known) if "".join(part[:1] for part in other.split("_")) == name]
        near = [f"--{other}" for other in (*initials, *difflib.get_close_matches(name, sorted(known)))]
        meant = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "--help lists all flags"
        raise InputError(f"--{name}: unknown flag; {meant}")
    return names


def check_needs(settings: Any, names: set[str]) -> None:
    """Reject the named settings that have no effect.

    Raises:
        InputError: A setting has no effect; the message says what it needs.
    """
    for field in dataclasses.fields(settings):
        need = field.metadata.get("need")
        if field.name in names and need and not need.holds(settings):
            raise InputError(f"--{field.name}: this flag has no effect here; it needs {need.text}")


def _read_mapping(path: Path, flag: str, expected: str = "a YAML file of settings") -> dict[str, Any]:
    """The content of the YAML file of settings that `flag` names."""
    with blaming(flag):
        check_regular(path)
        if not path.is_file():
            raise ValueError(f"there is no file {path}; expected {expected}{seeds_hint(path.parent)}")
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected names of settings and their values")
    return content


def _read_values(content: Mapping[str, Any], kinds: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values of settings, without the provenance in the config.yaml of a run."""
    values = {}
    for name, value in content.items():
        if name == "provenance":
            continue
        if name not in kinds:
            raise InputError(f"{source}: {name}: unknown setting; --help lists all settings")
        with blaming(f"{source}: {name}"):
            values[name] = read_value(kinds[name], value)
    return values


def load_settings(kind: type[Settings], prog: str, run: Path, flag: str) -> Settings:
    """The settings of the run that `flag` names.

    Raises:
        InputError: The folder is not a run of `prog`, its config.yaml is invalid, or one of its plugins is not loaded.
    """
    kinds, stored = get_type_hints(kind, include_extras=True), stored_settings(run, flag)
    with blaming(flag):
        plugins.check_config(stored, run)
    source = f"{flag}: {run / 'config.yaml'}"
    missing = sorted(kinds.keys() - {"save", "resume"} - stored.keys())
    if missing:
        raise InputError(
            f"{source} lacks {', '.join(missing[:5])}; expected a run of {prog} by this version of the project"
        )
    return kind(**_read_values(stored, kinds, source))


def stored_settings(run: Path, flag: str) -> dict[str, Any]:
    """The content of config.yaml of the run that `flag` names.

    Raises:
        InputError: The folder is not a run folder.
    """
    return _read_mapping(run / "config.yaml", flag, "a run folder")


def resume(given: Parsed, prog: str, movable: Sequence[str] = ()) -> Any:
    """The settings of the run that --resume names.

    Args:
        movable: Settings that, like --device, may be given together with --resume, such as the data folder.

    Raises:
        InputError: Another flag is given, or the folder is not a run of `prog`.
    """
    others = sorted(given.flags - {"resume", "device", *movable})
    if others:
        flags = ", ".join(f"--{name}" for name in others)
        longer = ""
        if "epochs" in others:
            longer = (
                ". Schedules, such as the learning rate's, end with the last epoch; for more epochs, start a new run "
                f"with --config {given.settings.resume}/config.yaml --epochs {given.settings.epochs}"
            )
        raise InputError(f"--resume: a run keeps its settings, so --resume cannot be combined with {flags}{longer}")
    if given.config:
        raise InputError("--resume: a run keeps its settings, so --resume cannot be combined with --config")
    stored = load_settings(type(given.settings), prog, Path(given.settings.resume), "--resume")
    moved = {name: getattr(given.settings, name) for name in given.flags - {"resume"}}
    settings = dataclasses.replace(stored, **moved)
    check_needs(settings, set(moved))
    return settings
