"""Check and write the JSON file of a benchmark."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.cli import blaming
from lib.files import check_new_file, write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check_out(out: str) -> None:
    """Raise an InputError if --out exists or if its folder does not exist."""
    if out:
        with blaming("--out"):
            check_new_file(Path(out))


def write_results(settings: "DataclassInstance", out: str, **results: Any) -> None:
    """Write the settings and the results to a JSON file, if --out is given."""
    if out:
        with blaming("--out"):
            write_atomically(Path(out), json.dumps({**asdict(settings), **results}, indent=1) + "\n")
