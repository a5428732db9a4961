"""Reproduce a table of the papers: search, retrain and score every entry with every seed, on one machine or a cluster.

    python scripts/reproduce.py --table nasbench201 --nasbench_table table.safetensors --download
    python scripts/reproduce.py --table robust --scale small --seeds 2 --set dataset=folder --data CIFAR
    python scripts/reproduce.py --table robust --address auto --gpus_per_run 0.25    # on a Ray cluster that is up
    python scripts/reproduce.py --table mine.yaml --dry_run                          # the commands alone
    python analysis/report.py runs/robust-small report.html                          # what came of it

Stopped, or struck by the death of a process or a machine, the same command goes on: what is finished is not run again.
The tables are files in scripts/tables/, explained in scripts/grid.py; the runs are processes of their own, see
scripts/sweep.py.
"""

import os
import shlex
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import cli
from cli import InputError, NonNegativeFloat, blaming, option
from files import write_atomically
from scripts.grid import RESERVED, Unit, arguments, expand, load_table
from scripts.sweep import Sweep, command, from_root, locked, open_unit, score_command

PROG = "reproduce.py"
#: flags whose value is a path
PATHS = ("data", "table", "halves")


@dataclass
class TableSettings:
    """table"""

    table: str = option("", "a table in scripts/tables/ by its name, or a file FILE.yaml of your own")
    scale: str = option("paper", "the size of everything: paper, small, or another that the table has")
    seeds: NonNegativeInt = option(0, "how many seeds, from 0; 0: as the scale says")
    columns: list[str] = option(None, "these columns alone")
    methods: list[str] = option(None, "these methods alone")
    set: list[str] = option(
        None,
        "other flags of the scripts, such as images=2000 for all runs, or search.epochs=10 for the searches alone",
    )


@dataclass
class PlaceSettings:
    """place"""

    out: str = option("", "folder of all runs; by default runs/<table>-<scale>")
    data: str = option("", "folder of the data sets' files")
    download: bool = option(False, "fetch the files of cifar10, cifar100 or svhn where they are missing")
    nasbench_table: str = option(
        "", "accuracy table made by nasbench201/table.py, which scores the cells of that space"
    )


@dataclass
class ClusterSettings:
    """machines"""

    address: str = option("", "of a Ray cluster, such as auto or HOST:6379; by default one is started on this machine")
    cpus_per_run: PositiveInt = option(1, "CPU cores, and threads, of each run")
    gpus_per_run: NonNegativeFloat = option(
        None, "GPUs of each run; 0.25 lets four share one. By default 1 where there are any, else 0"
    )
    dry_run: bool = option(False, "print the commands and run nothing")


@dataclass
class Settings(ClusterSettings, PlaceSettings, TableSettings):
    """All settings."""


def overrides(settings: Settings, scripts: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The flags that the command line gives each step of a table.

    Raises:
        InputError: a --set is not as expected, or a file is missing.
    """
    flags: dict[str, dict[str, Any]] = {step: {} for step in scripts}
    if settings.data:
        if not Path(settings.data).is_dir():
            raise InputError(f"--data: {settings.data!r}, expected a folder")
        for own in flags.values():
            own["data"] = from_root(Path(settings.data))
    if settings.download:
        for step, script in scripts.items():
            if script != "imagenet/train.py":
                flags[step]["download"] = True
    if scripts["search"].startswith("nasbench201"):
        if not Path(settings.nasbench_table).is_file():
            raise InputError(
                f"--nasbench_table: {settings.nasbench_table!r}, expected a file that nasbench201/table.py build made"
            )
        flags["search"]["table"] = from_root(Path(settings.nasbench_table))
    elif settings.nasbench_table:
        raise InputError("--nasbench_table: nothing reads it in this table; expected it with NAS-Bench-201 only")
    for text in settings.set or []:
        name, equals, value = text.partition("=")
        step, dot, flag = name.rpartition(".")
        if flag in RESERVED:
            raise InputError(f"--set: {text!r}, but --{flag} is what the table itself gives its runs; expected another")
        if not equals or not flag.isidentifier() or (dot and step not in flags):
            raise InputError(f"--set: {text!r}, expected flag=value, or {'.flag=value, or '.join(flags)}.flag=value")
        with blaming(f"--set: {text}"):
            try:
                parsed = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ValueError(" ".join(str(error).split())) from error
        if flag in PATHS:
            if not isinstance(parsed, str):
                raise InputError(f"--set: {text!r}, expected a path")
            parsed = from_root(Path(str(parsed)))
        for own in [flags[step]] if dot else flags.values():
            own[flag] = parsed
    return flags


def reproduce(settings: Settings) -> int:
    """Run a table; 0 where all is finished, else 1."""
    table = load_table(settings.table)
    units = expand(
        table,
        settings.scale,
        settings.seeds,
        settings.columns or (),
        settings.methods or (),
        overrides(settings, table["scripts"]),
    )
    out = Path(settings.out or f"runs/{Path(settings.table).stem}-{settings.scale}").resolve()
    if settings.dry_run:
        for unit in units:
            lines = [command(step, out / unit.folder) for step in unit.steps]
            for line in filter(None, [*lines, score_command(unit, out / unit.folder)]):
                print(shlex.join(["python", *line]))
        return 0
    with ExitStack() as opened:
        new = not out.exists()
        with blaming("--out"):
            _check_out(out, table)
            if not new:
                _hold(out, opened)
        gpus = _join_cluster(settings, units, opened)
        with blaming("--out"):
            if new:
                out.mkdir(parents=True, exist_ok=True)
                _hold(out, opened)
            about = {"made_by": cli.command_line(), "scale": settings.scale, "table": table}
            write_atomically(out / "table.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120))
            for unit in units:
                own = table["scales"][settings.scale].get("override", {}).get(unit.method, {})
                note = "; ".join(f"{step}: {' '.join(arguments(flags))}" for step, flags in own.items())
                open_unit(out, unit, table, note)
        return _run(settings, out, units, gpus)


def _hold(out: Path, opened: ExitStack) -> None:
    """Be the only one at a table's folder until `opened` is closed; ValueError where somebody else is."""
    try:
        opened.enter_context(locked(out / ".lock", wait=False))
    except BlockingIOError:
        raise ValueError(f"{out} is in the hands of another {PROG}; wait for it or name another") from None


def _check_out(out: Path, table: Mapping[str, Any]) -> None:
    """Refuse a folder that is not empty and of no table, or of another: ValueError; a file: OSError."""
    path = out / "table.yaml"
    if not path.is_file():
        if out.exists() and any(child.name not in (".lock", ".table.yaml.tmp") for child in out.iterdir()):
            raise ValueError(f"{out} is not empty and of no table; name a new folder")
        return
    try:
        title = cli.read_yaml(path)["table"]["title"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is damaged; expected what this script leaves") from error
    if title != table["title"]:
        raise ValueError(f"{out} is of the table {title!r}, not {table['title']!r}; name another folder")


def _check_address(address: str) -> None:
    """Refuse a cluster that is out of reach; Ray would end this process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"--address: {address}: {reason}; expected a Ray cluster that is up, HOST:PORT") from error


def _join_cluster(settings: Settings, units: list[Unit], opened: ExitStack) -> float:
    """Start Ray here, or join the cluster of --address.

    Returns:
        GPUs of each run.

    Raises:
        InputError: there is no such cluster, or this machine does not carry a run.
    """
    import logging

    _check_address(settings.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers would stand behind every other process (15 of nice's 19).
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A run that is given no GPU sees none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=settings.address or "local",
            include_dashboard=False if not settings.address else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--address: {settings.address or 'local'}: {reason}; expected a Ray cluster that is up"
        ) from error
    opened.callback(ray.shutdown)
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end this process before its runs
    here = ray.cluster_resources()
    gpus = settings.gpus_per_run if settings.gpus_per_run is not None else float(here.get("GPU", 0) > 0)
    most_of = {
        resource: max((node["Resources"].get(resource, 0) for node in ray.nodes() if node["Alive"]), default=0)
        for resource in ("CPU", "GPU")
    }
    if settings.address:  # a cluster may grow yet
        return gpus
    for flag, each, resource in (("cpus", settings.cpus_per_run, "CPU"), ("gpus", gpus, "GPU")):
        most = most_of[resource]
        if each > most:
            raise InputError(
                f"--{flag}_per_run: {each:g}, but no machine has more than {most:g}; expected at most that"
            )

    for step in (step for unit in units for step in unit.steps if step.flags.get("devices", 0) > 1):
        resource, devices = ("GPU" if gpus else "CPU"), step.flags["devices"]
        most = most_of[resource]
        if devices > most:
            raise InputError(
                f"--table: its {step.name} has devices {devices}, but no machine has more than {most:g} {resource}s; "
                f"expected at most that: --set {step.name}.devices={most:g}"
            )

    return gpus


def _run(settings: Settings, out: Path, units: list[Unit], gpus: float) -> int:
    """Run the units of a table; 0 where all are finished, else 1."""
    import ray

    console = Console(highlight=False, soft_wrap=True)
    bar = Progress(
        TextColumn("{task.fields[finished]} finished, {task.fields[running]} running"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} epochs"),
        TimeElapsedColumn(),
        TextColumn("about {task.fields[remaining]} left"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )

    def finished() -> str:
        return f"{sum(sweep.next_step(unit) is None for unit in units)} of {len(units)}"

    def report(line: str) -> None:
        open_units = sum(sweep.next_step(unit) is not None for unit in units)
        left = sweep.remaining(min(places(), max(1, open_units)))
        console.print(f"[{finished()}] {line}" + (f"; about {cli.duration(left)} left" if left else ""), markup=False)

    def poll(sweep: Sweep, running: int) -> None:
        running = min(running, places())  # one more waits for a place
        done, whole = sweep.epochs()
        left = sweep.remaining(running)
        said = "an unknown time" if left is None else cli.duration(left)
        bar.update(task, completed=done, total=whole, finished=finished(), running=running, remaining=said)

    def places() -> int:
        """How many runs the machines carry at once, as they are now."""
        have = ray.cluster_resources()
        carried = have.get("CPU", 0) // settings.cpus_per_run
        return int(max(1, min(carried, have.get("GPU", 0) // gpus) if gpus else carried))

    sweep = Sweep(out, units, settings.cpus_per_run, gpus, report)
    done, whole = sweep.epochs()
    console.print(
        f"{out}: {finished()} entries finished, {done} of {whole} epochs; {places()} at once "
        f"on {ray.cluster_resources().get('CPU', 0):g} CPU(s) and {ray.cluster_resources().get('GPU', 0):g} GPU(s)",
        markup=False,
    )
    task = bar.add_task("", total=whole, completed=done, finished=finished(), running=0, remaining="an unknown time")
    try:
        with bar:
            sweep.run(places, poll)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{finished()} entries are finished; the same command goes on") from None
    for unit, said in sweep.failed.items():
        logs = out / unit.folder
        print(f"{PROG}: {unit.name}: {said}  (its logs are in {logs})", file=sys.stderr)
    console.print(
        f"{finished()} entries finished; a report: python analysis/report.py {shlex.quote(str(out))} report.html"
    )
    return 1 if sweep.failed else 0


def main() -> None:
    settings = cli.parse(Settings, PROG, __doc__.splitlines()[0])
    status = reproduce(settings)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    cli.run(main, PROG)
