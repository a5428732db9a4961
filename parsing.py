"""CSV files from elsewhere. Light: nothing here imports torch."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: largest table that is read, in bytes
LARGEST_TABLE = 1 << 27


@contextmanager
def open_csv(path: Path) -> Iterator[Any]:
    """A reader of the rows of a CSV file, which is unpacked with gzip if its name ends in .gz.

    Raises:
        ValueError: it is not CSV or is too large, or the caller raises one meanwhile; the message names the file.
        OSError: it cannot be read.
    """
    if path.stat().st_size > LARGEST_TABLE:
        raise ValueError(f"{path} has more than {LARGEST_TABLE:,} bytes; expected a smaller file")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield csv.reader(file)
    except (ValueError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: {error}") from error
