"""A search from its command line to its run folder."""

import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

import cli
import data
from analysis.curves import plot_search
from analysis.draw import draw_genotype
from cli import InputError, blaming
from files import write_atomically
from genotypes import Genotype
from search.bilevel import Search, make_fabric, schedule
from search.perturbation import select_by_perturbation
from search.settings import CommonSettings, Resolved
from utils import Checkpoints, StepProgress, provenance, write_config


def _summary(row: Mapping[str, Any], epochs: int) -> str:
    alignment = row["valid_alignment"]
    return (
        f"epoch {row['epoch']}/{epochs}"
        f"  train loss {row['train_loss']:.3f} accuracy {100 * row['train_accuracy']:.1f} %"
        f"  valid accuracy {100 * row['valid_accuracy']:.1f} %"
        + ("" if alignment is None else f"  alignment {alignment:.3f}")
        + f"  skips {' + '.join(str(row[name]) for name in row if name.startswith('skip_connect'))}"
        + (f"  table {row['table_test_accuracy']:.2f} % rank {row['table_rank']}" if row.get("table_rank") else "")
        + f"  {row['seconds']:.1f} s"
    )


def open_search(settings: CommonSettings, kind: type[Search] = Search) -> Search:
    """A search at its beginning, with its data.

    Args:
        kind: the search in the settings' space.

    Raises:
        InputError: the settings do not fit the data, the supernet or the machine.
    """
    fabric = make_fabric(settings.device, settings.precision, settings.tf32)
    with blaming(f"--data: {settings.dataset}"):
        dataset = data.load(settings.dataset, settings.data, settings.image_size, settings.download, settings.images)
    return kind(settings, dataset, fabric)


def search(resolved: Resolved, kind: type[Search] = Search, whole: Path | None = None) -> None:
    """Search a cell and leave a run folder, or go on with the one that is there.

    Args:
        kind: the search in the settings' space.
        whole: what --resume goes on with, where this run is a part of it.
    """
    settings, run = resolved.settings, resolved.run
    state = open_search(settings, kind)
    if resolved.resumed:
        with blaming("--resume"):
            checkpoints = Checkpoints(run / "checkpoints", settings.keep_checkpoints)
            checkpoint = checkpoints.load()
            if checkpoint:
                state.restore(*checkpoint)
                state.write_logs(run)
    else:
        cli.new_folder(run, "--save")
        origin = {**provenance(cli.command_line(), str(state.fabric.device)), "settings_from": resolved.sources}
        write_config(run, {**asdict(settings), "save": str(run)}, origin)
        checkpoints = Checkpoints(run / "checkpoints", settings.keep_checkpoints)

    first = len(state.rows)
    given = [name for source in ("command line", "config file") for name in resolved.sources.get(source, [])]
    values = {name: getattr(settings, name) for name in given if name != "method"}
    changes = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
    print(f"settings of {settings.method}{f'; but {changes}' if changes else ''}")
    print(f"run {run}: {settings.epochs - first} epochs on {state.fabric.device}", flush=True)
    goes_on = f"go on with: python {resolved.script.path} --resume {shlex.quote(str(whole or run))}"
    try:
        run_epochs(state, run, checkpoints)
        plot_search(run)
        if settings.selection == "perturbation":
            genotype = select_by_perturbation(state, settings.finetune_epochs, run / "perturbation", goes_on)
        else:
            genotype = state.genotype()
            refuse_missing_cell(genotype, state, run)
        draw_genotype(genotype, run / "cells")
        write_atomically(run / "genotype.json", genotype.to_json())
    except KeyboardInterrupt as stop:
        done = f"after {len(state.rows)} of {settings.epochs} epochs; {goes_on}"
        raise KeyboardInterrupt(str(stop) or done) from None
    print(f"found {genotype}{_known(state.measure(genotype))}\nrun folder {run}", flush=True)


def run_epochs(state: Search, run: Path, checkpoints: Checkpoints) -> None:
    """The epochs that are left of a search, each with a checkpoint, a row in the logs, and a line."""
    settings, first = state.settings, len(state.rows)
    steps = len(state.batches(0)[0])
    with (
        SummaryWriter(run / "tensorboard", purge_step=first + 1) as board,
        StepProgress("run", settings.epochs * steps, first * steps) as progress,
    ):
        for epoch in range(first, settings.epochs):
            start, now = time.perf_counter(), schedule(settings, epoch)
            log = state.run_epoch(epoch, now, progress, f"epoch {epoch + 1}")
            state.record(now, log, start)
            checkpoints.save(epoch + 1, *state.snapshot())
            state.write_logs(run)
            for name, value in state.rows[-1].items():
                if value is not None and name != "epoch":
                    board.add_scalar(name, value, epoch + 1)
            progress.line(_summary(state.rows[-1], settings.epochs))


def _known(measured: Mapping[str, float | None]) -> str:
    """What is known of a cell, to be added to the line that says which it is."""
    figures = [f"{name} {value:.2f}".removesuffix(".00") for name, value in measured.items() if value is not None]
    return f"\n{', '.join(figures)}" if figures else ""


def select_again(settings: CommonSettings, run: Path, folder: Path, goes_on: str, kind: type[Search] = Search) -> None:
    """Derive a cell from the last checkpoint of a search, by the rule of `settings`, and leave it in `folder`.

    Args:
        goes_on: what an interruption of the perturbation rule says.
        kind: the search in the settings' space.

    Raises:
        InputError: there is no checkpoint yet, it does not fit, or the rule leaves no cell.
    """
    state = open_search(settings, kind)
    with blaming("run"):
        checkpoint = Checkpoints(run / "checkpoints", settings.keep_checkpoints).load()
        if checkpoint is None:
            raise ValueError(f"{run} has no checkpoint; expected a search of one epoch or more")
        state.restore(*checkpoint)
    print(f"search {run} after {len(state.rows)} of {settings.epochs} epochs, {settings.selection}", flush=True)
    if settings.selection == "perturbation":
        with blaming("--save"):
            folder.mkdir(parents=True, exist_ok=True)
        genotype = select_by_perturbation(state, settings.finetune_epochs, folder, goes_on)
    else:
        genotype = state.genotype()
        refuse_missing_cell(genotype, state, run)
        cli.new_folder(folder, "--save")
    draw_genotype(genotype, folder / "cells")
    write_atomically(folder / "genotype.json", genotype.to_json())
    print(f"found {genotype}{_known(state.measure(genotype))}\nfolder {folder}", flush=True)


def refuse_missing_cell(genotype: Genotype, state: Search, run: Path) -> None:
    """Say so where a threshold leaves a cell without any operation that its inputs reach.

    Raises:
        InputError: it names the threshold, and the largest gates.
    """
    kind = state.missing_cell(genotype)
    if kind:
        largest = state.architecture.mixing_weights()[kind].max().item()
        raise InputError(
            f"--threshold: {state.settings.threshold:g} leaves no path through the {kind} cell, whose largest gate is "
            f"{largest:.3f}; expected less: python search/select.py {shlex.quote(str(run))} --threshold ..."
        )
