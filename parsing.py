"""JSON, YAML and CSV files from elsewhere as plain values. Light: nothing here imports torch.

Whatever is in a file, a reader gives a value or raises a ValueError that names the file. Nothing is executed, and sizes
are bounded before anything is made of them: a file that is packed, nested or full of aliases takes no more than others.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml

#: bytes of the largest JSON and YAML files that are read; the largest known, NAS-Bench-201's list of halves, has 0.6 MB
LARGEST_JSON, LARGEST_YAML = 1 << 22, 1 << 18
#: levels of a value within others
DEEPEST = 50
#: characters of the largest table, unpacked, and of its longest line
LARGEST_TABLE, LONGEST_LINE = 1 << 27, 1 << 20


def read_text(path: Path, largest: int = LARGEST_JSON) -> str:
    """A file's text.

    Raises:
        ValueError: it has more than `largest` bytes, or is not UTF-8.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{path} has more than {largest:,} bytes; expected a smaller file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error


def parse_json(text: str) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: it is none, or more than plain values of the usual size.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is deeper than {DEEPEST} levels") from error
    _check(value, len(text))
    return value


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error


def _construct_mapping(loader: Any, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    """A mapping in which no name stands twice."""
    names = set()
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
        if key.value in names:
            raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
        names.add(key.value)
    return yaml.constructor.SafeConstructor.construct_mapping(loader, node, deep)


#: reads plain values alone, and faster where libyaml is there
_Loader = type("_Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {"construct_mapping": _construct_mapping})


def read_yaml(path: Path) -> Any:
    """What a YAML file says: plain values, nothing that makes objects.

    Raises:
        ValueError: it is none, or has a name twice.
        OSError: it cannot be read.
    """
    text = read_text(path, LARGEST_YAML)
    try:
        value = yaml.load(text, Loader=_Loader)
        _check(value, len(text))
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        raise ValueError(f"{path}{f', line {mark.line + 1}' if mark else ''}: no plain YAML: {problem}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: no plain YAML: too deep") from error
    # what PyYAML makes of a value that does not fit its tag, such as !!int x, raises almost any
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path}: no plain YAML: {error}") from error
    return value


def _check(value: Any, most: int) -> None:
    """Refuse what is nested too deeply, has more than `most` parts or numbers of more than 64 bits, or is not plain.

    A text has no more parts than characters, but for aliases of YAML: each counts as all that it stands for.
    """
    level = [value]
    for _ in range(DEEPEST):
        parts: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                parts += [*part, *part.values()]
            elif isinstance(part, list):
                parts += part
            elif isinstance(part, str):
                part.encode()  # half a pair of surrogates is no text
            elif isinstance(part, int):
                if part.bit_length() > 64:
                    raise ValueError("a number has more than 64 bits")
            elif part is not None and not isinstance(part, float):
                raise ValueError(f"{part!r}, expected text, numbers, lists and mappings; quotes make it text")
            if len(parts) > most:
                raise ValueError("its aliases stand for more than its text")
        if not parts:
            return
        most -= len(parts)
        level = parts
    raise ValueError(f"it is deeper than {DEEPEST} levels")


@contextmanager
def open_csv(path: Path, largest: int = LARGEST_TABLE) -> Iterator[Any]:
    """A reader of the rows of a CSV file, packed with gzip where its name ends in .gz.

    Args:
        largest: characters, unpacked.

    Raises:
        ValueError: it is none or larger, or what is done with it meanwhile raises one; the file is named before that.
        OSError: it cannot be read.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield csv.reader(_lines(file, largest))
    except (ValueError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: {error}") from error


def _lines(file: TextIO, left: int) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE):
        left -= len(line)
        if left < 0 or len(line) == LONGEST_LINE:
            raise ValueError(f"more text than in a table ({'a line' if left >= 0 else 'the file'} is too long)")
        yield line
