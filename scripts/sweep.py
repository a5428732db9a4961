"""The runs of a table on the machines of a Ray cluster, each a process of its own in a folder of its own.

The folders are all there is to know: a run is begun where it has none, gone on with from its checkpoint where it is
there, and left alone where it is finished. A process that dies, or whose machine does, is started again elsewhere. All
machines must see the table's folder and this repository under the same paths.
"""

import ctypes
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli import InputError, blaming
from files import write_atomically
from scripts.grid import Step, Unit, arguments

ROOT = Path(__file__).resolve().parents[1]
#: what a finished step leaves in its folder
LEAVES = {"search": "genotype.json", "retrain": "result.json"}
#: who scores what a script leaves
SCORES = {
    "train/train.py": "train/test.py",
    "nasbench201/train.py": "train/test.py",
    "imagenet/train.py": "imagenet/test.py",
}
#: times that a step may lose its process without an epoch in between
TRIES = 5


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[int]:
    """Hold a file's lock, and give its descriptor; a process that inherits that holds the lock too, until it dies.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is off.
    """
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file.fileno()


def progress_of(folder: Path) -> tuple[int, float]:
    """Epochs that a run has behind it, and the seconds they took."""
    try:
        head, *rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
        column = head.split(",").index("seconds")
        return len(rows), sum(float(row.split(",")[column]) for row in rows)
    except (OSError, ValueError, IndexError):
        return 0, 0.0


def open_unit(out: Path, unit: Unit, table: Mapping[str, Any]) -> None:
    """Make a unit's folder, or see that the one there is the same.

    Raises:
        InputError: it was begun with other settings.
    """
    path = out / unit.folder / "unit.json"
    about = {
        "table": table["title"],
        "source": table.get("source", ""),
        **{name: getattr(unit, name) for name in ("column", "method", "seed")},
        "published_for": {
            **table["columns"][unit.column].get("search", {}),
            **table["methods"][unit.method].get("search", {}),
        },
        "steps": {step.name: step.made_by() for step in unit.steps},
    }
    with blaming("--out"):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))["steps"]
            for name, made_by in about["steps"].items():
                begun = stored.get(name, made_by)
                other = sorted(flag for flag in {*begun, *made_by} if begun.get(flag) != made_by.get(flag))
                if other:
                    was, now = begun.get(other[0], "not given"), made_by.get(other[0], "not given")
                    raise InputError(
                        f"--out: {path.parent} was begun with {other[0]} {was}, and the table says {now}; "
                        "expected the same, or another folder"
                    )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged; expected what this script leaves") from error


def from_root(path: Path) -> str:
    """A path as a command has it, which runs in the root of this repository."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def command(step: Step, folder: Path) -> list[str]:
    """The command that begins a step, or goes on with it."""
    run = folder / step.name
    if (run / "config.yaml").exists():
        places = ("data", "table", "halves") if step.name == "search" else ("data",)
        moved = {name: step.flags[name] for name in places if name in step.flags}
        return [step.script, "--resume", from_root(run), *arguments(moved)]
    given = {**step.flags, "save": from_root(run)}
    if step.name == "retrain":
        given = {"arch": from_root(folder / "search"), **given}
    return [step.script, *arguments(given)]


def score_command(unit: Unit, folder: Path) -> list[str]:
    """The command that scores a unit and prints one JSON object; empty where nothing can."""
    last = unit.steps[-1]
    if last.name == "retrain":
        data = ["--data", str(last.flags["data"])] if "data" in last.flags else []
        return [SCORES[last.script], from_root(folder / "retrain"), *data]
    if "table" in last.flags:
        return ["nasbench201/table.py", "query", str(last.flags["table"]), from_root(folder / "search"), "--json"]
    return []


def run_step(unit: Unit, number: int, out: str, threads: int) -> str:
    """Run a step of a unit to its end, in this process's place of the cluster.

    Returns:
        "" where it is finished; else what the script said.

    Raises:
        KeyboardInterrupt: the table is stopped; the script has been told to stop, and has.
    """
    try:
        return _run_step(unit, number, Path(out) / unit.folder, threads)
    except OSError as error:  # such as a full disk, or a folder that somebody has removed
        return f"{error.filename or out}: {error.strerror or error}"


def _run_step(unit: Unit, number: int, folder: Path, threads: int) -> str:
    step = unit.steps[number]
    run = folder / step.name
    with locked(folder / ".lock", wait=True) as lock:
        if not (run / LEAVES[step.name]).exists():
            if run.exists() and not (run / "config.yaml").exists():
                shutil.rmtree(run)  # of a process that died while it made the folder
            status, said = _process(command(step, folder), folder / f"{step.name}.log", threads, lock)
            if status:
                return said
            if not (run / LEAVES[step.name]).exists():
                return f"{step.script} left no {run / LEAVES[step.name]}"
        if number == len(unit.steps) - 1 and not (folder / "score.json").exists():
            line = score_command(unit, folder)
            if line:
                status, said = _process(line, folder / "score.log", threads, lock)
                if status:
                    return said
                try:
                    score = json.loads(said)
                except ValueError:
                    return f"{line[0]} printed no JSON: {said[:200]}"
                write_atomically(folder / "score.json", json.dumps({"command": _shown(line), **score}, indent=1) + "\n")
    return ""


def _shown(line: list[str]) -> str:
    return shlex.join(["python", *line])


def _process(line: list[str], log: Path, threads: int, lock: int) -> tuple[int, str]:
    """Run a script of this repository; its exit status and the last line that it wrote."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    parent = os.getpid()

    def die_with_parent() -> None:
        """Ask for SIGTERM when the process that starts this one dies (PR_SET_PDEATHSIG)."""
        if libc is not None:
            libc.prctl(1, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    with open(log, "ab") as file:
        file.write(f"$ {_shown(line)}  # {time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()}\n".encode())
        file.flush()
        child = subprocess.Popen(
            [sys.executable, *line],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            preexec_fn=die_with_parent,
        )
        try:
            status = child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(timeout=120)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return status, lines[-1] if lines else ""


@dataclass
class Sweep:
    """The units of a table on their way.

    Args:
        out: the table's folder.
        cpus, gpus: what each run takes of its machine; a GPU may be shared (0.25).
        report: is told what happens, a line at a time.
    """

    out: Path
    units: list[Unit]
    cpus: int
    gpus: float
    report: Callable[[str], None]
    failed: dict[Unit, str] = field(default_factory=dict)
    known: dict[tuple[Unit, int], tuple[int, float]] = field(default_factory=dict)  # epochs done, seconds they took

    def __post_init__(self) -> None:
        for unit in self.units:
            for number in range(len(unit.steps)):
                self.look(unit, number)

    def look(self, unit: Unit, number: int) -> tuple[int, float]:
        """Read how far a step is."""
        state = progress_of(self.out / unit.folder / unit.steps[number].name)
        self.known[unit, number] = state
        return state

    def next_step(self, unit: Unit) -> int | None:
        """The first step of a unit that is not finished; None where all are."""
        folder = self.out / unit.folder
        for number, step in enumerate(unit.steps):
            if not (folder / step.name / LEAVES[step.name]).exists():
                return number
        scored = (folder / "score.json").exists() or not score_command(unit, folder)
        return None if scored else len(unit.steps) - 1

    def resources(self, step: Step) -> tuple[int, float]:
        """CPUs and GPUs of a step: those of every run, or as many as the step has devices."""
        devices = step.flags.get("devices", 0)
        return max(self.cpus, devices), max(self.gpus, devices) if self.gpus else 0

    def epochs(self) -> tuple[int, int]:
        """Epochs done, and all of them."""
        whole = sum(step.epochs for unit in self.units for step in unit.steps)
        return sum(done for done, _ in self.known.values()), whole

    def remaining(self, at_once: int) -> float | None:
        """Seconds that the table takes yet, from those of the epochs so far of the nearest kind; None: not known."""

        def kinds(unit: Unit, number: int) -> tuple[tuple, ...]:
            return (number, unit.method, unit.column), (number, unit.method), (number,), ()

        paces: dict[tuple, list[float]] = {}
        for (unit, number), (done, seconds) in self.known.items():
            if done:
                for kind in kinds(unit, number):
                    epochs, total = paces.get(kind, [0, 0.0])
                    paces[kind] = [epochs + done, total + seconds]
        left = 0.0
        for (unit, number), (done, _) in self.known.items():
            ahead = unit.steps[number].epochs - done
            if ahead > 0 and unit not in self.failed:
                pace = next((paces[kind] for kind in kinds(unit, number) if kind in paces), None)
                if pace is None:
                    return None
                left += ahead * pace[1] / pace[0]
        return left / max(1, at_once)

    def run(self, places: Callable[[], int], poll: Callable[["Sweep", int], None]) -> None:
        """Run what is not finished, all at once that the cluster carries, and again what was lost.

        An entry that is begun goes on before another is begun.

        Args:
            places: how many steps the cluster carries at once, now.
            poll: is called about once a second, with how many are under way.
        """
        import ray
        from ray.exceptions import RayTaskError, TaskCancelledError

        remote = ray.remote(run_step)
        waiting = deque(unit for unit in self.units if self.next_step(unit) is not None)
        running: dict[Any, tuple[Unit, int]] = {}
        lost: dict[tuple[Unit, int], tuple[int, int]] = {}  # times, epochs done then

        def submit(unit: Unit) -> None:
            number = self.next_step(unit)
            cpus, gpus = self.resources(unit.steps[number])
            task = remote.options(
                num_cpus=cpus, num_gpus=gpus, max_retries=0, name=f"{unit.name}: {unit.steps[number].name}"
            ).remote(unit, number, str(self.out), self.cpus)
            running[task] = (unit, number)

        try:
            while waiting or running:
                # One more than there is room for: Ray has it at hand when a place is free.
                while waiting and len(running) <= places():
                    submit(waiting.popleft())
                finished, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                for task in finished:
                    unit, number = running.pop(task)
                    step = unit.steps[number]
                    done, seconds = self.look(unit, number)
                    try:
                        said = ray.get(task)
                    except (RayTaskError, TaskCancelledError):
                        raise
                    except ray.exceptions.RayError as error:
                        times, at = lost.get((unit, number), (0, -1))
                        times = times + 1 if at == done else 1
                        lost[unit, number] = (times, done)
                        kind = type(error).__name__
                        if times >= TRIES:
                            said = f"its process was lost {times} times ({kind}) without an epoch in between"
                        else:
                            self.report(
                                f"{unit.name}: {step.name} lost its process ({kind}) after {done} epochs; again"
                            )
                            waiting.appendleft(unit)
                            continue
                    if said:
                        self.failed[unit] = said
                        self.report(f"{unit.name}: {step.name} failed: {said}")
                    else:
                        self.report(f"{unit.name}: {step.name} finished, {done} epochs, {seconds:.0f} s")
                        if self.next_step(unit) is not None:
                            waiting.appendleft(unit)
                for unit, number in running.values():
                    self.look(unit, number)
                poll(self, len(running))
        except BaseException:
            for task in running:
                ray.cancel(task)
            ray.wait(list(running), num_returns=len(running), timeout=130)
            raise
