"""A search from its command line to its run folder."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.draw import draw_genotype
from genotypes import AnyCell
from lib import checkpoints, cli
from lib.cli import InputError, blaming, open_folder, saving
from lib.datasets import load_dataset
from lib.devices import prepare_device
from lib.files import is_finished, write_atomically
from lib.progress import StepProgress
from lib.provenance import provenance, write_config
from search.bilevel import Search, schedule
from search.perturbation import select_by_perturbation
from search.settings import CommonSettings, Resolved
from utils import Board


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
    device = prepare_device(settings.device, settings.tf32, settings.deterministic)
    dataset = load_dataset(settings)
    return kind(settings, dataset, device)


def search(resolved: Resolved, kind: type[Search] = Search, whole: Path | None = None) -> None:
    """Search a cell and leave a run folder, or go on with the one that is there.

    Args:
        kind: the search in the settings' space.
        whole: what --resume goes on with, where this run is a part of it.
    """
    settings, run = resolved.settings, resolved.run
    if resolved.resumed and is_finished(run, "search"):
        print(f"run {run} is finished")
        return
    state = open_search(settings, kind)
    flag = "--resume" if resolved.resumed else "--save"
    with open_folder(run, flag, new=not resolved.resumed):
        with blaming(flag):
            if resolved.resumed:
                checkpoints.prune(run / "checkpoints", settings.keep_checkpoints)
                last = checkpoints.load_last(run / "checkpoints")
                if last:
                    state.restore(last[1])
                    state.write_logs(run)
            else:
                origin = {**provenance(cli.command_line(), str(state.device)), "settings_from": resolved.sources}
                write_config(run, asdict(settings), resolved.origin or origin)
        _search(state, resolved, f"python {resolved.script.path} --resume {shlex.quote(str(whole or run))}")


def _search(state: Search, resolved: Resolved, command: str) -> None:
    """Run the remaining epochs of a search and derive its cell; `command` resumes the run."""
    settings, run = resolved.settings, resolved.run
    first = len(state.rows)
    given = [name for source in ("command line", "config file") for name in resolved.sources.get(source, [])]
    values = {name: getattr(settings, name) for name in given if name != "method"}
    changes = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
    print(f"settings of {settings.method}{f'; but {changes}' if changes else ''}")
    print(f"run {run}: {settings.epochs - first} epochs on {state.device}", flush=True)
    goes_on = f"go on with: {command}"
    try:
        with saving(run, goes_on):
            run_epochs(state, run)
            if settings.selection == "perturbation":
                genotype = select_by_perturbation(state, settings.finetune_epochs, run / "perturbation", goes_on)
            else:
                genotype = state.genotype()
                refuse_missing_cell(genotype, state, run)
            with cli.warning(f"no figures; python analysis/curves.py {run} draws the curves"):
                from analysis.curves import plot_search  # matplotlib, which the first step does not wait for

                plot_search(run)
                draw_genotype(genotype, run / "cells")
            write_atomically(run / "genotype.json", genotype.to_json())  # last: it marks a finished search
    except KeyboardInterrupt as stop:
        done = f"after {len(state.rows)} of {settings.epochs} epochs; {goes_on}"
        raise KeyboardInterrupt(str(stop) or done) from None
    print(f"found {genotype}{_known(state.measure(genotype))}\nrun folder {run}", flush=True)


def run_epochs(state: Search, run: Path) -> None:
    """The epochs that are left of a search, each with a checkpoint, a row in the logs, and a line."""
    settings, first = state.settings, len(state.rows)
    steps = len(state.batches(0)[0])
    board = Board(run, state.rows)
    with StepProgress("run", settings.epochs * steps, first * steps) as progress:
        for epoch in range(first, settings.epochs):
            start, now = time.perf_counter(), schedule(settings, epoch)
            log = state.run_epoch(epoch, now, progress, f"epoch {epoch + 1}")
            state.record(now, log, start)
            path = run / "checkpoints" / f"epoch_{epoch + 1:05d}.ckpt"
            checkpoints.save(path, state.snapshot(), settings.keep_checkpoints)
            state.write_logs(run)
            board.add(state.rows[-1])
            progress.line(_summary(state.rows[-1], settings.epochs))
            for warning in new_warnings(state.rows):
                progress.line(f"warning: {warning}")


#: gradients below this fraction of the largest layer's count as vanished
VANISHED = 1e-6


def new_warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings about the last row of a search that no earlier row has caused."""
    *before, last = rows
    warnings = []
    for name in last:
        if not name.startswith("saturated_") or last[name] < 0.5 or any(row[name] >= 0.5 for row in before):
            continue
        warnings.append(
            f"alpha is saturated: {100 * last[name]:.0f} % of the edges of the {name.removeprefix('saturated_')} cell "
            f"have mixing weights within 0.01 of 0 or 1, which hardly move any more"
        )
    warned = {layer for row in before for layer in _vanished(row)}
    new = [layer for layer in _vanished(last) if layer not in warned]
    if new:
        warnings.append(
            f"the architecture gradient vanishes in layer {', '.join(new)}: it is less than {VANISHED:g} of the "
            "largest layer's"
        )
    return warnings


def _vanished(row: Mapping[str, Any]) -> list[str]:
    """The layers, counted from 0, whose architecture gradient is nothing beside the largest layer's."""
    norms = {name: row[name] for name in row if name.startswith("gradient_norm_layer_")}
    least = VANISHED * max(norms.values())
    return [name.removeprefix("gradient_norm_layer_") for name, value in norms.items() if value <= least]


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
        last = checkpoints.load_last(run / "checkpoints")
        if last is None:
            raise ValueError(f"{run} has no checkpoint; expected a search of one epoch or more")
        state.restore(last[1])
    print(f"search {run} after {len(state.rows)} of {settings.epochs} epochs, {settings.selection}", flush=True)
    if settings.selection != "perturbation":
        genotype = state.genotype()
        refuse_missing_cell(genotype, state, run)
    with blaming("--save"):
        folder.mkdir(parents=True, exist_ok=True)
    with open_folder(folder, "--save", new=False), blaming("--save"):
        if settings.selection == "perturbation":
            genotype = select_by_perturbation(state, settings.finetune_epochs, folder, goes_on)
        write_atomically(folder / "genotype.json", genotype.to_json())
        with cli.warning("no drawing of the cell"):
            draw_genotype(genotype, folder / "cells")
    print(f"found {genotype}{_known(state.measure(genotype))}\nfolder {folder}", flush=True)


def refuse_missing_cell(genotype: AnyCell, state: Search, run: Path) -> None:
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
