"""Searches with several seeds, one after another, in folders of one run."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import cli
from cli import InputError, blaming
from files import write_atomically
from nasbench201.cells import load_cell
from nasbench201.scores import score, show
from nasbench201.search201 import Search201
from nasbench201.settings import SCRIPT, SearchSettings
from search.loop import open_search, search
from search.settings import Resolved, load_settings
from utils import provenance, write_config


def search_seeds(resolved: Resolved) -> None:
    """Search with each seed, in RUN/seed-N, and leave RUN/results.json; goes on with what is there.

    Raises:
        InputError: a folder or the settings cannot be used.
    """
    settings, run = resolved.settings, resolved.run
    singles = [replace(settings, seed=seed, seeds=None) for seed in settings.seeds]
    folders = [run / f"seed-{seed}" for seed in settings.seeds]
    if not resolved.resumed:
        # What is wrong is refused before there is a folder.
        device = open_search(singles[0], Search201).fabric.device
        cli.new_folder(run, "--save")
        origin = provenance(cli.command_line(), str(device))
        write_config(run, {**asdict(settings), "save": str(run)}, origin)
    done = [_done(folder, single) for folder, single in zip(folders, singles, strict=True)]
    try:
        for number, (folder, single) in enumerate(zip(folders, singles, strict=True)):
            print(f"seed {single.seed}, {number + 1} of {len(singles)}", flush=True)
            if not done[number]:
                resumed = (folder / "config.yaml").exists()
                search(replace(resolved, settings=single, run=folder, resumed=resumed), Search201, whole=run)
    except KeyboardInterrupt as stop:
        goes_on = f"go on with: python {resolved.script.path} --resume {shlex.quote(str(run))}"
        raise KeyboardInterrupt(str(stop) or goes_on) from None
    cells = [score(folder, single) for folder, single in zip(folders, singles, strict=True)]
    write_atomically(run / "results.json", json.dumps({"method": settings.method, "cells": cells}, indent=1) + "\n")
    show(cells)
    print(f"run folder {run}", flush=True)


def _done(folder: Path, settings: SearchSettings) -> bool:
    """Whether a seed's search is finished.

    Raises:
        InputError: its folder holds another search, or a damaged one.
    """
    if not (folder / "config.yaml").exists():
        return False
    stored, here = asdict(load_settings(folder, "--resume", SCRIPT)), {"save", "resume", "device", *SCRIPT.movable}
    differing = sorted(name for name, value in asdict(settings).items() if name not in here and stored[name] != value)
    if differing:
        raise InputError(f"--resume: {folder} is of a search with other {', '.join(differing)}; expected the run's")
    if not (folder / "genotype.json").exists():
        return False
    with blaming("--resume"):
        load_cell(str(folder))
    return True
