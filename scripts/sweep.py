"""The runs of a table on the machines of a Ray cluster, each a process of its own in a folder of its own.

The folders are all there is to know: a run is begun where it has none, gone on with from its checkpoint where it is
there, and left alone where it is finished. A process that dies, or whose machine does, is started again elsewhere. All
machines must see the table's folder and this repository under the same paths.
"""

import ctypes
import fcntl
import json
import os
import re
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
from typing import Any, NamedTuple

from cli import InputError, blaming
from files import read_json, write_atomically
from scripts.grid import Step, Unit, arguments

ROOT = Path(__file__).resolve().parents[1]
#: what a step leaves in its folder last of all
LEAVES = {"search": "genotype.json", "retrain": "model_card.md"}
#: seconds that a script has to stop: a retraining saves after the step under way
STOPPING = 120
#: seconds between two looks at what a process or a lock does
PAUSE = 0.2
#: variables by which a launcher tells processes that they belong together, which a table's do not
LAUNCHERS = re.compile("SLURM_|TORCHELASTIC_|MASTER_|(GROUP_|LOCAL_|NODE_)?RANK$|(LOCAL_)?WORLD_SIZE$")
#: times that a step may lose its process without an epoch in between
TRIES = 5


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[int]:
    """Hold a file's lock, and give its descriptor; a process that inherits that holds the lock too, until it dies.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is off.
    """
    with open(path, "ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    raise
            time.sleep(PAUSE)  # and not within flock, where Ray's cancelling does not reach
        yield file.fileno()


def progress_of(folder: Path) -> tuple[int, float]:
    """Epochs that a run has behind it, and the seconds they took."""
    try:
        head, *rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
        column = head.split(",").index("seconds")
        return len(rows), sum(float(row.split(",")[column]) for row in rows)
    except (OSError, ValueError, IndexError):
        return 0, 0.0


def published_for(unit: Unit, table: Mapping[str, Any]) -> dict[str, Any]:
    """Whose published figures may stand beside a unit: space, data set and method; nothing beside a variant of one.

    A folder of images stands for the data set that the table names.
    """
    parts = (table, table["columns"][unit.column], table["methods"][unit.method])
    own = {name: flag for part in parts for name, flag in part.get("search", {}).items()}
    if not set(own) <= {"space", "dataset", "method"}:
        return {}
    search, last = unit.steps[0], unit.steps[-1]
    dataset = search.flags.get("dataset", "cifar10")
    if dataset == "folder":
        dataset = own.get("dataset", "cifar10")
    space = "nasbench201" if search.script.startswith("nasbench201") else search.flags.get("space", "s5")
    if last.flags.get("dataset", "cifar10") != search.flags.get("dataset", "cifar10"):
        dataset = "other"
    if last.script == "imagenet/train.py":
        dataset = "imagenet" if last.flags.get("classes") == 1000 else "other"
    return {"space": space, "dataset": dataset, "method": search.flags.get("method", "lambda-darts")}


def open_unit(out: Path, unit: Unit, table: Mapping[str, Any], note: str = "") -> None:
    """Make a unit's folder, or see that what is begun there is the same.

    Args:
        note: what the report says of the unit's settings.

    Raises:
        InputError: it was begun with other settings.
    """
    path = out / unit.folder / "unit.json"
    about = {
        "table": table["title"],
        "source": table.get("source", ""),
        **{name: getattr(unit, name) for name in ("column", "method", "seed")},
        "published_for": published_for(unit, table),
        "note": note,
        "scored": bool(score_command(unit, out / unit.folder)),
        "steps": {step.name: step.made_by() for step in unit.steps},
    }
    with blaming("--out"):
        text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
            return
        try:
            before = read_json(path)
            stored = before["steps"]
            for name, made_by in about["steps"].items():
                if not (path.parent / name / "config.yaml").exists():
                    continue
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
        if about != before:
            write_atomically(path, text)


def from_root(path: Path) -> str:
    """A path as a command has it, which runs in the root of this repository."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def command(step: Step, folder: Path) -> list[str]:
    """The command that begins a step, or goes on with it."""
    run = folder / step.name
    if (run / "config.yaml").exists():
        places = ("data", "table", "device") if step.name == "search" else ("data", "devices", "num_nodes", "device")
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
        return [last.scored_by, from_root(folder / "retrain"), *data]
    if "table" in last.flags:
        return ["nasbench201/table.py", "query", str(last.flags["table"]), from_root(folder / "search"), "--json"]
    return []


class Lost(NamedTuple):
    """A script's process was ended from outside: killed, or told to stop."""

    how: str


def run_step(unit: Unit, number: int, out: str, threads: int) -> str | Lost:
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


def _run_step(unit: Unit, number: int, folder: Path, threads: int) -> str | Lost:
    step = unit.steps[number]
    run = folder / step.name
    with locked(folder / ".lock", wait=True) as lock:
        if not (run / LEAVES[step.name]).exists():
            if run.exists() and not (run / "config.yaml").exists():
                if (run / "checkpoints").exists():
                    return f"{run} has checkpoints and no config.yaml; expected both, or no such folder"
                shutil.rmtree(run)  # of a process that died while it made the folder
            said = _process(command(step, folder), folder / f"{step.name}.log", threads, lock)
            if said:
                return said
            if not (run / LEAVES[step.name]).exists():
                return f"{step.script} left no {run / LEAVES[step.name]}"
        if number == len(unit.steps) - 1 and not (folder / "score.json").exists():
            line = score_command(unit, folder)
            if line:
                said = _process(line, folder / "score.log", threads, lock)
                if said:
                    return said
                printed = _last_line(folder / "score.log")
                try:
                    score = json.loads(printed)
                except ValueError:
                    return f"{line[0]} printed no JSON: {printed[:200]}"
                write_atomically(folder / "score.json", json.dumps({"command": _shown(line), **score}, indent=1) + "\n")
    return ""


def _shown(line: list[str]) -> str:
    return shlex.join(["python", *line])


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _environment(threads: int) -> dict[str, str]:
    """This process's environment, but that the script stands alone and finds the modules here."""
    own = {name: value for name, value in os.environ.items() if not LAUNCHERS.match(name)}
    paths = [str(ROOT), *filter(None, [own.get("PYTHONPATH")])]
    return {**own, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}


def _process(line: list[str], log: Path, threads: int, lock: int) -> str | Lost:
    """Run a script of this repository; "" where it ends well, else the last line that it wrote."""
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
            env=_environment(threads),
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            preexec_fn=die_with_parent,
        )
        try:
            while (status := child.poll()) is None:
                time.sleep(PAUSE)  # and not within wait, where Ray's cancelling does not reach
        except BaseException:
            child.terminate()
            try:
                child.wait(timeout=STOPPING)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise
    if status < 0 or status == 130:
        return Lost(f"killed by {signal.Signals(-status).name}" if status < 0 else "told to stop")
    return f"exit status {status}: {_last_line(log)}" if status else ""


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
        from ray.exceptions import RayError, RayTaskError

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

        def outcome(task: Any) -> str | Lost:
            """What run_step returned, or why it could not."""
            try:
                return ray.get(task)
            except RayTaskError as error:  # such as another version of this repository on its machine
                return " ".join(str(error.cause or error).split())[:300]
            except RayError as error:
                return Lost(type(error).__name__)

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
                    said = outcome(task)
                    if not said and self.next_step(unit) == number:
                        said = f"it ended well and left no {LEAVES[step.name]}, or no score"
                    if isinstance(said, Lost):
                        times, at = lost.get((unit, number), (0, -1))
                        times = times + 1 if at == done else 1
                        lost[unit, number] = (times, done)
                        if times < TRIES:
                            self.report(
                                f"{unit.name}: {step.name} lost its process ({said.how}) after {done} epochs; again"
                            )
                            waiting.appendleft(unit)
                            continue
                        said = f"its process was lost {times} times ({said.how}) without an epoch in between"
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
            ray.wait(list(running), num_returns=len(running), timeout=STOPPING + 10)
            raise
