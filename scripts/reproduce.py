"""Reproduce a table of the papers: search, retrain and score each entry with each seed, on one machine or a cluster.

    python scripts/reproduce.py --table nasbench201 --download
    python scripts/reproduce.py --table robust --scale small --seeds 2 --set dataset=folder --data CIFAR
    python scripts/reproduce.py --table robust --address auto --gpus_per_run 0.25    # on a running Ray cluster
    python scripts/reproduce.py --table mine.yaml --dry_run                          # print the commands
    python analysis/report.py runs/robust-small report.html                          # the results

If the script stops, run the same command again to continue. Finished runs are not repeated. The tables are files in
scripts/tables/; lib/grid.py explains their format, and lib/sweep.py runs them on Ray.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import yaml

from lib import cli, options, plugins
from lib.cli import InputError, blaming
from lib.files import parse_yaml, read_json, read_yaml, write_atomically
from lib.grid import FLAGS, MOVABLE, SCRIPTS, Unit, arguments, check, expand, load_table
from lib.options import NonNegativeFloat, NonNegativeInt, PositiveInt, option
from lib.sweep import ROOT, Job, cluster, run_jobs, shown

PROG = "reproduce.py"
#: flags whose values are paths
PATHS = ("data", "table", "halves")
#: flags that may change when a table continues
MAY_CHANGE = (*MOVABLE, "download", "workers")
STEPS: tuple[Literal["search", "retrain"], ...] = ("search", "retrain")


@dataclass
class TableSettings:
    """The settings of a table."""

    table: str = option("", "Name of a table in scripts/tables/, or your own file FILE.yaml.")
    scale: str = option("paper", "Size of the runs: paper, small, or another scale of the table.")
    seeds: NonNegativeInt = option(0, "Number of seeds, starting with seed 0. 0 takes the number of the scale.")
    columns: list[str] | None = option(None, "Columns of the table to run. By default those of the scale.")
    methods: list[str] | None = option(
        None, "Rows of the table to run, by --method or name in the table. By default those of the scale."
    )
    set: list[str] | None = option(
        None, "Override flags of the scripts: images=2000 for all runs, search.epochs=10 for searches only."
    )
    out: str = option("", "Folder for all runs. By default runs/<table>-<scale>.")
    data: str = option("", "Folder with the files of the data set.")
    download: bool = option(False, "Download the files of cifar10, cifar100 or svhn if they are missing.")
    nasbench_table: str = option("", "Accuracy table of NAS-Bench-201. By default the one in this repository.")
    address: str = option("", "Address of a Ray cluster, auto or HOST:PORT. By default Ray starts on this machine.")
    cpus_per_run: PositiveInt = option(1, "Number of CPU cores and threads per run.")
    gpus_per_run: NonNegativeFloat | None = option(
        None, "Number of GPUs per run. With 0.25, four runs share a GPU. By default 1 if there is a GPU, else 0."
    )
    dry_run: bool = option(False, "Print the commands without running them.")


def check_line(script: str, line: list[str]) -> None:
    """Parse a command line with the parser of the script.

    Raises:
        InputError: The script rejects it.
    """
    module = import_module(script.removesuffix(".py").replace("/", "."))
    if script in SCRIPTS["search"]:
        module.resolve(line, module.SCRIPT)
    else:
        module.parse(line)


def from_root(path: str | Path) -> str:
    """Make a path relative to the root of the repository, where commands run. Paths outside of it become absolute."""
    absolute = Path(path).resolve()
    return str(absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else absolute)


def overrides(settings: TableSettings, scripts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """step of the table -> the flags that the command line sets for it.

    Raises:
        InputError: --set is malformed, or a file is missing.
    """
    flags: dict[str, dict[str, Any]] = {step: {} for step in scripts}
    if settings.data and not Path(settings.data).is_dir():
        raise InputError(f"--data: {settings.data!r}, expected a folder")
    for step, script in scripts.items():
        flags[step] |= {"data": from_root(settings.data)} if settings.data else {}
        flags[step] |= {"download": True} if settings.download and script != "imagenet/train.py" else {}
    if known := settings.nasbench_table:
        if not scripts["search"].startswith("nasbench201"):
            raise InputError("--nasbench_table: this table does not use NAS-Bench-201; remove the flag")
        if not Path(known).is_file():
            raise InputError(f"--nasbench_table: {known!r}, expected a file written by nasbench201/table.py build")
        flags["search"]["table"] = from_root(known)
    for text in settings.set or []:
        name, equals, value = text.partition("=")
        step, dot, flag = name.rpartition(".")
        if not equals or not flag or (dot and step not in flags):
            raise InputError(f"--set: {text!r}, expected flag=value, or {'.flag=value, or '.join(flags)}.flag=value")
        with blaming("--set"):
            own = {flag: parse_yaml(value, text)}
            check(own, FLAGS, text)
        for target in [step] if dot else flags:
            flags[target][flag] = from_root(str(own[flag])) if flag in PATHS else own[flag]
    return flags


def jobs_of(unit: Unit, scripts: Mapping[str, str], out: Path, threads: int, gpus: float) -> list[Job]:
    """The jobs of an entry of a table: its runs and its score."""
    folder = out / unit.folder
    runs = {step: from_root(folder / step) for step in unit.steps}
    own_code = [word for path in plugins.paths() for word in ("--plugin", from_root(path))]
    jobs = []
    for step in (step for step in STEPS if step in unit.steps):
        flags = unit.steps[step]
        cell = {"arch": runs["search"]} if step == "retrain" else {}
        moved = {name: value for name, value in flags.items() if name in MOVABLE}
        begin = [scripts[step], *own_code, *arguments({**cell, **flags, "save": runs[step]})]
        resume = [scripts[step], *own_code, "--resume", runs[step], *arguments(moved)]
        devices = int(flags.get("devices", 0))
        jobs.append(Job(step, folder, begin, resume, threads, max(threads, devices), max(gpus, devices) if gpus else 0))
    if scorer := SCRIPTS[step][scripts[step]]:
        moved = {name: value for name, value in flags.items() if name == "data"}
        score = [scorer, *own_code, runs[step], *arguments(moved)]
    elif scripts[step] == "nasbench201/train_search.py":
        own = arguments({name: value for name, value in flags.items() if name == "table"})
        score = ["nasbench201/table.py", "query", runs[step], "--json", *own]
    else:
        return jobs
    return [*jobs, Job("score", folder, score, score, threads, threads, gpus)]


def write_unit(path: Path, unit: Unit, table: Mapping[str, Any], scored: bool) -> None:
    """Write unit.json for the report.

    Raises:
        ValueError: A run was started with other settings.
    """
    settings = {
        step: {"script": table["scripts"][step], **{name: flags[name] for name in flags if name not in MAY_CHANGE}}
        for step, flags in unit.steps.items()
    }
    about = {
        **{name: getattr(unit, name) for name in ("column", "method", "seed", "published_for", "note")},
        "table": table["title"],
        "source": table.get("source", ""),
        "scored": scored,
        "steps": settings,
    }
    before = read_json(path)["steps"] if path.exists() else {}
    for step, now in settings.items():
        if step not in before or not (path.parent / step / "config.yaml").exists():
            continue
        for name in {**before[step], **now}:
            was, wanted = before[step].get(name, "not given"), now.get(name, "not given")
            if was != wanted:
                raise ValueError(
                    f"{path.parent / step} was started with {name} {was}, but the table has {wanted}; use a new folder"
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def check_out(out: Path, title: str) -> bool:
    """Return True if the folder is new. Raise an InputError if it contains another table or other files."""
    if not (out / "table.yaml").is_file():
        cli.check_new_folder(out, "--out")
        return True
    stored = read_yaml(out / "table.yaml")["table"]["title"]
    if stored != title:
        raise InputError(f"--out: {out} contains the table {stored!r}, not {title!r}; name another folder")
    return False


def check_resources(ray: Any, jobs: list[Job]) -> None:
    """Raise an InputError if no machine has enough resources for a job. Ray would wait forever."""
    for kind, flag in (("CPU", "cpus"), ("GPU", "gpus")):
        most = max(node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"])
        needed = max(getattr(job, flag) for job in jobs)
        if needed > most:
            raise InputError(
                f"--{flag}_per_run, or devices in the table: {needed:g}, expected at most {most:g}, "
                "the largest number on one machine"
            )


def reproduce(settings: TableSettings) -> int:
    """Run a table. Return 0 if all entries finished, else 1."""
    table = load_table(settings.table)
    scripts = table["scripts"]
    own = overrides(settings, scripts)
    chosen = (settings.seeds, settings.columns or (), settings.methods or ())
    units = expand(table, settings.scale, *chosen, own, check_line)
    out = Path(settings.out or f"runs/{Path(settings.table).stem}-{settings.scale}").resolve()
    if settings.dry_run:
        for unit in units:
            for job in jobs_of(unit, scripts, out, settings.cpus_per_run, 0):
                print(shown(job.command()))
        return 0
    new = check_out(out, table["title"])
    with cluster(settings.address) as ray:
        gpus = settings.gpus_per_run
        if gpus is None:
            gpus = float(ray.cluster_resources().get("GPU", 0) > 0)
        entries = {unit: jobs_of(unit, scripts, out, settings.cpus_per_run, gpus) for unit in units}
        if not settings.address:  # a cluster may grow
            check_resources(ray, [job for jobs in entries.values() for job in jobs])
        with cli.open_folder(out, "--out", new):
            with blaming("--out"):
                about = {"made_by": cli.command_line(), "scale": settings.scale, "table": table}
                text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120)
                write_atomically(out / "table.yaml", text)
                for unit, jobs in entries.items():
                    write_unit(out / unit.folder / "unit.json", unit, table, jobs[-1].kind == "score")
            return run(ray, out, entries)


def run(ray: Any, out: Path, entries: Mapping[Unit, list[Job]]) -> int:
    """Run the entries of a table. Return 0 if all of them finished, else 1."""
    names = {out / unit.folder: unit.name for unit in entries}
    todo = [[job for job in jobs if not job.finished()] for jobs in entries.values()]
    failed: dict[Path, str] = {}
    begin, left, ended = time.monotonic(), sum(map(len, todo)), 0

    def finished() -> str:
        whole = sum(all(job.finished() for job in jobs) for jobs in entries.values())
        return f"{whole} of {len(entries)} entries finished"

    def report(job: Job, reason: str) -> None:
        nonlocal ended
        ended += 1
        if job.folder in failed:
            return
        if reason:
            failed[job.folder] = reason
        time_left = cli.duration((time.monotonic() - begin) / ended * (left - ended))
        said = f"failed: {reason}" if reason else "finished"
        print(f"[{finished()}, about {time_left} left] {names[job.folder]}: {job.kind} {said}", flush=True)

    print(f"{out}: {finished()}", flush=True)
    try:
        run_jobs(ray, [jobs for jobs in todo if jobs], report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{finished()}; run the same command again to continue") from None
    for folder, reason in failed.items():
        print(f"{PROG}: {names[folder]}: {reason}  (logs: {folder})", file=sys.stderr)
    print(f"{finished()}; for a report run {shown(['analysis/report.py', str(out), 'report.html'])}{plugins.flags()}")
    return 1 if failed else 0


def main() -> None:
    settings = options.parse(TableSettings, PROG, __doc__.splitlines()[0])
    status = reproduce(settings)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    cli.run(main, PROG)
