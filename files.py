"""Files that are whole or not there. Light: nothing here imports torch."""

import csv
import io
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: under another name, synced, then renamed.

    Raises:
        OSError: it cannot be written, such as on a full disk; what was there under its name stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_new_file(path: Path) -> None:
    """Refuse a file that is there already, or in a folder that is not.

    Raises:
        ValueError: it names the file.
    """
    if path.exists():
        raise ValueError(f"{path} exists; name a new file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not be there yet, whole or not at all.

    Raises:
        ValueError: it is there by now.
    """
    check_new_file(path)
    write_atomically(path, content)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows under the columns of the first; a value of None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
