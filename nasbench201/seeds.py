"""Searches with several seeds, one after another, in folders of one run."""

import json
from dataclasses import asdict, replace

import cli
from files import write_atomically
from nasbench201.report import score, show
from nasbench201.search201 import Search201
from search.bilevel import make_fabric
from search.loop import search
from search.settings import Resolved
from utils import provenance, write_config


def search_seeds(resolved: Resolved) -> None:
    """Search with each seed, in RUN/seed-N, and leave RUN/results.json; goes on with what is there.

    Raises:
        InputError: a folder or the settings cannot be used.
    """
    settings, run = resolved.settings, resolved.run
    if not resolved.resumed:
        device = str(make_fabric(settings.device, settings.precision).device)
        cli.new_folder(run, "--save")
        write_config(run, {**asdict(settings), "save": str(run)}, provenance(cli.command_line(), device))
    for number, seed in enumerate(settings.seeds, start=1):
        folder = run / f"seed-{seed}"
        print(f"seed {seed}, {number} of {len(settings.seeds)}", flush=True)
        if not (folder / "genotype.json").exists():
            own = replace(settings, seed=seed, seeds=None)
            resumed = (folder / "config.yaml").exists()
            search(replace(resolved, settings=own, run=folder, resumed=resumed), Search201, whole=run)
    results = {
        "method": settings.method,
        "cells": [score(run / f"seed-{seed}", seed, settings.table) for seed in settings.seeds],
    }
    write_atomically(run / "results.json", json.dumps(results, indent=1) + "\n")
    show(results["cells"])
    print(f"run folder {run}", flush=True)
