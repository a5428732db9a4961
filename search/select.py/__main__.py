"""Derive a cell from a search again, finished or interrupted, by another rule.

    python search/select.py runs/search-... --selection threshold_edge --threshold 0.7
    python search/select.py runs/search-... --selection perturbation       # stopped, the same command goes on

select.py is a folder that Python runs, not a file: a file of this name would stand in the way of the standard library's
`select` for every script of search/.
"""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from lib import cli, options
from lib.cli import InputError
from lib.files import is_passing
from lib.options import Gate, NonNegativeInt, argument, option
from lib.settings import DEVICE_HELP
from nasbench201.settings import SCRIPT as SCRIPT_201
from nasbench201.settings import SearchSettings as SearchSettings201
from search.settings import SCRIPT, CommonSettings, Selection, check_combination, load_settings

PROG = "select.py"
#: what a selection that was stopped leaves in its folder
UNFINISHED = {"checkpoints", "cells", "scores.csv"}


@dataclass
class Settings:
    """The settings of a selection."""

    run: str = argument("Run folder of search/train_search.py or nasbench201/train_search.py.")
    selection: Selection | None = option(
        None, "Rule that derives the cell, as in train_search.py. By default the rule of the run."
    )
    threshold: Gate | None = option(
        None, "Smallest gate of an operation that the threshold rules keep. By default that of the run."
    )
    finetune_epochs: NonNegativeInt | None = option(
        None, "Epochs between two decisions of the perturbation rule. By default that of the run."
    )
    save: str = option("", "Folder to make. By default RUN/selections/<rule>.")
    device: str = option("auto", DEVICE_HELP)


def main() -> None:
    settings = options.parse(Settings, PROG, __doc__.splitlines()[0])
    run = Path(settings.run)
    changes = {
        name: getattr(settings, name)
        for name in ("selection", "threshold", "finetune_epochs")
        if getattr(settings, name) is not None
    }
    of_201 = options.stored_settings(run, "run").get("space") == "nasbench201"
    stored = load_settings(run, "run", SCRIPT_201 if of_201 else SCRIPT)
    if isinstance(stored, SearchSettings201) and not Path(stored.table).exists():
        stored = replace(stored, table="")  # moved since; the selection does without
    search_settings = replace(stored, device=settings.device, **changes)
    check_combination(search_settings)
    options.check_needs(search_settings, set(changes))
    if settings.threshold is not None and not search_settings.selection.startswith("threshold"):
        raise InputError(f"--threshold: this flag has no effect with --selection {search_settings.selection}")
    folder = Path(settings.save or run / "selections" / _name(search_settings))
    if (folder / "genotype.json").exists():
        raise InputError(f"--save: {folder} holds a cell already; expected another folder")
    if not folder.is_dir() or not {path.name for path in folder.iterdir() if not is_passing(path)} <= UNFINISHED:
        cli.check_new_folder(folder, "--save")

    # Imported here: --help and a wrong flag are answered before torch is loaded.
    from search.bilevel import Search
    from search.loop import select_again

    kind: type[Search] = Search
    if of_201:
        from nasbench201.search201 import Search201

        kind = Search201
    goes_on = f"the same command goes on: python search/select.py {shlex.join(sys.argv[1:])}"
    select_again(search_settings, run, folder, goes_on, kind)


def _name(settings: CommonSettings) -> str:
    """The rule, with the threshold where it has one."""
    threshold = f"-{settings.threshold:g}" if settings.selection.startswith("threshold") else ""
    return settings.selection + threshold


if __name__ == "__main__":
    cli.run(main, PROG)
