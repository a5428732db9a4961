"""JSON, YAML and CSV files from elsewhere as plain values. Light: nothing here imports torch.

A reader returns a value or raises a ValueError that names the file. Nothing in a file is executed.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

#: largest files that are read, in bytes: JSON and other text, YAML, tables. The largest known JSON file,
#: NAS-Bench-201's list of halves, has 0.6 MB.
LARGEST_TEXT, LARGEST_YAML, LARGEST_TABLE = 1 << 24, 1 << 18, 1 << 27


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """A file's text.

    Raises:
        ValueError: it has more than `largest` bytes, or is not UTF-8.
        OSError: it cannot be read.
    """
    _check_size(path, largest)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error


def _check_size(path: Path, largest: int) -> None:
    if path.stat().st_size > largest:
        raise ValueError(f"{path} has more than {largest:,} bytes; expected a smaller file")


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        ValueError: it is not JSON.
        OSError: it cannot be read.
    """
    text = read_text(path)
    try:
        return json.loads(text)
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


#: reads plain values only; uses libyaml, which is faster, where it is installed
_Loader = type("_Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {"construct_mapping": _construct_mapping})


def read_yaml(path: Path) -> Any:
    """The content of a YAML file: plain values, nothing that makes objects.

    Raises:
        ValueError: it is not such a file, or has a name twice.
        OSError: it cannot be read.
    """
    text = read_text(path, LARGEST_YAML)
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        raise ValueError(f"{path}{f', line {mark.line + 1}' if mark else ''}: no plain YAML: {problem}") from error
    except ValueError as error:  # of a date such as 2026-99-99
        raise ValueError(f"{path}: no plain YAML: {error}") from error


@contextmanager
def open_csv(path: Path) -> Iterator[Any]:
    """A reader of the rows of a CSV file, which is unpacked with gzip if its name ends in .gz.

    Raises:
        ValueError: it is not CSV or is too large, or the caller raises one meanwhile; the message names the file.
        OSError: it cannot be read.
    """
    _check_size(path, LARGEST_TABLE)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield csv.reader(file)
    except (ValueError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: {error}") from error
