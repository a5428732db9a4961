"""Derive another cell from a finished or interrupted search, by another rule.

    python search/derive.py runs/search-... --selection threshold_edge --threshold 0.7
    python search/derive.py runs/search-... --selection perturbation      # after an interruption, run it again

For a search in NAS-Bench-201, use nasbench201/derive.py.
"""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import cli, options
from lib.cli import InputError
from lib.files import is_temporary
from lib.options import Gate, NonNegativeInt, argument, option
from lib.settings import DEVICE_HELP
from search.command_line import check
from search.settings import SCRIPT, CommonSettings, Script, Selection

if TYPE_CHECKING:
    from search.state import SearchState

PROG = "derive.py"
#: the content of the folder of an interrupted selection
UNFINISHED = {"checkpoints", "cells", "scores.csv"}


@dataclass
class DeriveSettings:
    """The settings of a selection."""

    run: str = argument("Run folder of a search.")
    selection: Selection | None = option(
        None, "Rule that derives the cell, as in train_search.py. By default, the rule of the run."
    )
    threshold: Gate | None = option(
        None, "Smallest gate that the threshold rules keep. By default, the threshold of the run."
    )
    finetune_epochs: NonNegativeInt | None = option(
        None, "Epochs of fine-tuning between two decisions of the perturbation rule. By default, as in the run."
    )
    save: str = option("", "New folder for the cell. By default, RUN/selections/<rule>.")
    data: str = option("", "Folder of the data set's files. By default, the folder that the run used.")
    device: str = option("auto", DEVICE_HELP)


def derive(script: Script, load_class: "Callable[[], type[SearchState]]") -> None:
    """Derive the cell that the command line describes.

    Args:
        script: The script of the search.
        load_class: A function that imports and returns the state class of searches in its space.
    """
    command = options.parse(DeriveSettings, PROG, __doc__.splitlines()[0])
    run, names = Path(command.run), ("selection", "threshold", "finetune_epochs")
    changes = {name: value for name in names if (value := getattr(command, name)) is not None}
    stored = options.load_settings(script.settings, script.path, run, "run")
    moved: dict[str, Any] = {"device": command.device, "data": command.data or stored.data}
    moved |= {"cuda_graphs": False, "compile": False}  # the device may be another one
    table = getattr(stored, "table", "")  # only searches in NAS-Bench-201 have it
    if not Path(table).exists():
        moved["table"] = ""
        print(f"warning: {table} does not exist; the project's own accuracy table is used instead", file=sys.stderr)
    settings = replace(stored, **moved, **changes)
    check(settings)
    options.check_needs(settings, set(changes))
    if "threshold" in changes and not settings.selection.startswith("threshold"):
        raise InputError(f"--threshold: this flag has no effect with --selection {settings.selection}")
    folder = Path(command.save or run / "selections" / _name(settings))
    if (folder / "genotype.json").exists():
        remedy = "expected another folder" if command.save else "choose another folder with --save"
        raise InputError(f"{'--save' if command.save else 'run'}: {folder} already has a cell; {remedy}")
    if not folder.is_dir() or not {path.name for path in folder.iterdir() if not is_temporary(path)} <= UNFINISHED:
        cli.check_new_folder(folder, "--save" if command.save else "run")

    # Imported here, so that --help and wrong flags are answered before torch is loaded.
    from lib import checkpoints
    from search.state import open_search
    from search.train_search import derive_cell, write_cell

    state = open_search(settings, load_class())
    with cli.blaming("run"):
        last = checkpoints.load_last(run / "checkpoints")
        if last is None:
            raise ValueError(f"{run} has no checkpoint; expected a search with one seed and at least one epoch done")
        state.restore(last[1])
    done = len(state.history.rows)
    print(f"deriving a cell of {run} ({done} of {settings.epochs} epochs) by {settings.selection}", flush=True)
    again = f"resume with: python {Path(script.path).with_name(PROG)} {shlex.join(sys.argv[1:])}"
    # The other rules take no time, so they run first: if they fail, no folder is made.
    cell = None if settings.selection == "perturbation" else derive_cell(state, run, folder, again)
    with cli.blaming("--save"):
        folder.mkdir(parents=True, exist_ok=True)
    with cli.open_folder(folder, "--save", new=False), cli.saving(run, again):
        write_cell(state, cell or derive_cell(state, run, folder, again), folder)


def _name(settings: CommonSettings) -> str:
    """The name of the rule, with its threshold if it has one."""
    threshold = f"-{settings.threshold:g}" if settings.selection.startswith("threshold") else ""
    return settings.selection + threshold


def main() -> None:
    def load_class() -> "type[SearchState]":
        from search.state import SearchState

        return SearchState

    derive(SCRIPT, load_class)


if __name__ == "__main__":
    cli.run(main, PROG)
