"""Kill runs at random moments, resume them, and compare them bit for bit with undisturbed runs.

    bash tools/kill_drill.sh                                      # 120 kills, 10 for each kind of run
    python tools/kill_drill.py --kills 30 --only retraining table --seed 7

SIGKILL, SIGTERM or Ctrl-C stops a run after a random time, or the run dies in the middle of a write (die_in_write.py).
Then the run is resumed. The comparison covers all weights, optimizer states, alphas, metrics, genotypes, scores,
settings and file names. The script writes the counts to kill_drill.json. The exit status is 1 if runs differ.
"""

import csv
import json
import logging
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lib import cli, options
from lib.cli import InputError, blaming
from lib.files import LOCK, write_atomically
from lib.options import PositiveInt, Seed, option

PROG = "kill_drill.py"
ROOT = Path(__file__).resolve().parents[1]
#: time limits in seconds: for a process to stop after a signal, and for an undisturbed process to end
STOPPING, ENDING = 120, 900
#: values that depend on the clock, the machine or the name of the folder
OF_THE_MACHINE = {"seconds", "peak_memory_mib", "save", "resume"}
#: suffixes of drawings and logs; their contents are not compared
DRAWINGS_AND_LOGS = {".png", ".svg", ".gv", ".pdf", ".md", ".html", ".log", ""}

DIGITS = "--dataset digits --init_channels 2 --batch_size 64 --device cpu"
CELLS = f"{DIGITS} --space s2 --layers 4 --arch_learning_rate 0.1"
TABLE = {
    "title": "Digits",
    "scripts": {"search": "search/train_search.py", "retrain": "train/train.py"},
    "search": {"dataset": "digits", "layers": 4, "init_channels": 2, "batch_size": 64, "epochs": 2},
    "retrain": {"dataset": "digits", "layers": 3, "init_channels": 2, "batch_size": 128, "epochs": 2},
    "columns": {"S2": {"search": {"space": "s2"}}},
    "methods": {name: {"search": {"method": name.lower()}} for name in ("DARTS", "DARTS-minus")},
    "scales": {"tiny": {"seeds": 1}},
}


#: kind of run -> script and flags
KINDS = {
    "darts": f"search/train_search.py --method darts {CELLS} --epochs 4",
    "darts-2nd": f"search/train_search.py --method darts-2nd {CELLS} --epochs 3",
    "lambda-darts": f"search/train_search.py --method lambda-darts {CELLS} --epochs 3",
    "lambda-darts-exact": f"search/train_search.py --method lambda-darts-exact {CELLS} --epochs 3",
    "darts-minus": f"search/train_search.py --method darts-minus {CELLS} --epochs 4",
    "fair-darts": f"search/train_search.py --method fair-darts --threshold 0.5 {CELLS} --epochs 4",
    "idarts": f"search/train_search.py --method idarts {CELLS} --epochs 3",
    "darts-pt": f"search/train_search.py --method darts-pt --finetune_epochs 0 {CELLS} --epochs 2",
    "nasbench201": (f"nasbench201/train_search.py --seeds 0 1 --cells_per_stage 1 {DIGITS} --epochs 2"),
    "retraining": (
        "train/train.py --arch DARTS_V2 --dataset digits --layers 3 --init_channels 2 --batch_size 128 --epochs 3"
        " --checkpoint_steps 4 --cutout --cutout_length 2 --device cpu"
    ),
    "imagenet": (
        "imagenet/train.py --arch DARTS_V2 --data {pictures} --image_size 32 --layers 3 --init_channels 4"
        " --no_auxiliary --batch_size 8 --epochs 3 --checkpoint_steps 2 --workers 2 --device cpu"
    ),
    "table": "scripts/reproduce.py --scale tiny",
}


@dataclass
class DrillSettings:
    """The settings of this script."""

    kills: PositiveInt = option(120, "Number of kills, divided evenly among the kinds of runs.")
    sigkill: bool = option(False, "Kill runs only with SIGKILL, at random times and in the middle of writes.")
    only: list[str] | None = option(None, f"Kinds of runs to kill: {', '.join(KINDS)}. By default all.")
    out: str = option("runs/kill_drill", "New folder for all runs.")
    seed: Seed = option(0, "Seed of the random moments.")


@dataclass
class DrillResult:
    """The number of kills of one kind of run, and the result of the comparison."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0  # compared runs
    files: int = 0  # compared files
    faults: list[str] = field(default_factory=list)


def command(begins: str, run: Path) -> list[str]:
    """The command that starts a run, or resumes it if it was started before."""
    script, *flags = shlex.split(begins)
    if script == "scripts/reproduce.py":
        table = run.with_suffix(".yaml")
        table.write_text(yaml.safe_dump(TABLE), encoding="utf-8")
        return [script, *flags, "--table", str(table), "--out", str(run)]
    return [script, "--resume", str(run)] if (run / "config.yaml").exists() else [script, *flags, "--save", str(run)]


def make_pictures(root: Path) -> None:
    """Write random training and test pictures of three classes for imagenet/train.py."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 4)):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")


def start(line: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a script of this repository in a new process group."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, *line],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def await_end(process: subprocess.Popen[bytes], seconds: int) -> int:
    """Wait for a process and return its exit status.

    Raises:
        TimeoutError: The process takes longer than `seconds`. Its process group is killed.
    """
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise TimeoutError(str(error)) from None


def disturb(begins: str, run: Path, log: Path, whole: float, moments: random.Random, sigkill: bool) -> str:
    """Start or resume a run and kill it. Return how it was killed, or "" if it finished before.

    Args:
        whole: Duration of an undisturbed run in seconds.
        sigkill: Send no signals except SIGKILL.

    Raises:
        ValueError: The run ends with an error.
        TimeoutError: The run hangs.
    """
    how = moments.choice(("SIGKILL", "write") if sigkill else ("SIGKILL", "SIGTERM", "SIGINT", "write", "write"))
    line = command(begins, run)
    if how == "write":
        line = ["tools/die_in_write.py", str(moments.randrange(24)), *line]
    process = start(line, log)
    if how == "write":
        await_end(process, ENDING)
    else:
        try:
            process.wait(timeout=moments.uniform(0.1, 0.9) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.Signals[how])
            await_end(process, STOPPING)
    ended = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130}
    if process.returncode not in {0, *ended}:
        raise ValueError(f"{shlex.join(line)} ended with status {process.returncode} after {how}; see {log}")
    return how if process.returncode in ended else ""


def finish(begins: str, run: Path, log: Path) -> None:
    """Start or resume a run and wait until it ends.

    Raises:
        ValueError: The run ends with an error.
        TimeoutError: The run hangs.
    """
    status = await_end(start(command(begins, run), log), ENDING)
    if status:
        raise ValueError(f"{run} ended with status {status}; see {log}")


def comparable(value: Any, run: Path) -> Any:
    """Remove the parts of a value that depend on the machine, and make paths relative to the run folder."""
    import torch

    if isinstance(value, dict):
        # Lightning's ModelCheckpoint records the paths of its files.
        kept = {name: item for name, item in value.items() if not str(name).startswith("ModelCheckpoint")}
        return {name: comparable(item, run) for name, item in kept.items() if name not in OF_THE_MACHINE}
    if isinstance(value, list | tuple):
        return [comparable(item, run) for item in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    return value.replace(str(run), "") if isinstance(value, str) else value


def read_comparable(path: Path, run: Path) -> Any:
    """Read a file of a run into values that can be compared with ==."""
    import numpy as np

    from lib import checkpoints

    if path.suffix == ".ckpt":
        return comparable(checkpoints.load(path), run)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: (array.shape, array.tobytes()) for name, array in arrays.items()}
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return comparable(list(csv.DictReader(text.splitlines())), run)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return comparable(yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text), run)


def files_of(run: Path) -> set[Path]:
    """The files of a run folder, except locks and TensorBoard files, whose names contain the time."""
    files = (path.relative_to(run) for path in run.rglob("*") if path.is_file() and path.name != LOCK)
    return {path for path in files if "tensorboard" not in path.parts}


def scalars(run: Path) -> dict[Path, dict[str, list[tuple[int, float]]]]:
    """run -> tag -> (step, value) of each scalar in TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns about killed runs
    shown = {}
    for folder in run.rglob("tensorboard"):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        tags = set(events.Tags()["scalars"]) - OF_THE_MACHINE
        shown[folder.relative_to(run)] = {
            tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags
        }
    return shown


def differences(run: Path, other: Path) -> Iterator[str]:
    """Yield the differences between two run folders, except values that depend on the machine."""
    for name in sorted(files_of(run) ^ files_of(other)):
        yield f"{name} is only in one of {run} and {other}"
    for name in sorted(files_of(run) & files_of(other)):
        if name.suffix in DRAWINGS_AND_LOGS:
            continue
        if read_comparable(run / name, run) != read_comparable(other / name, other):
            yield f"{name} differs in {run} and {other}"
    if scalars(run) != scalars(other):
        yield f"TensorBoard's scalars differ in {run} and {other}"


def kill_repeatedly(name: str, kills: int, out: Path, moments: random.Random, sigkill: bool = False) -> DrillResult:
    """Kill runs of one kind until there are `kills` kills. Compare each run with an undisturbed run."""
    if name == "imagenet":
        make_pictures(out / "pictures")
    begins, figures = KINDS[name].format(pictures=out / "pictures"), DrillResult()
    undisturbed, log = out / f"{name}-undisturbed", out / f"{name}.log"
    try:
        begun = time.monotonic()
        finish(begins, undisturbed, log)
        whole = time.monotonic() - begun
        while figures.kills.total() < kills and not figures.faults:
            run = out / f"{name}-{figures.runs}"
            while figures.kills.total() < kills:
                how = disturb(begins, run, log, whole, moments, sigkill)
                if not how:
                    break
                figures.kills[how] += 1
            finish(begins, run, log)
            figures.runs += 1
            figures.files += sum(name.suffix not in DRAWINGS_AND_LOGS for name in files_of(run))
            figures.faults += differences(undisturbed, run)
    except (ValueError, TimeoutError) as error:
        figures.faults.append(str(error))
    return figures


def main() -> None:
    settings = options.parse(DrillSettings, PROG, __doc__.splitlines()[0])
    kinds = settings.only or list(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"--only: {kind!r}, expected some of {', '.join(KINDS)}")
    out = Path(settings.out).resolve()
    cli.new_folder(out, "--out")
    # Background processes ignore Ctrl-C, and their children inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    moments, results = random.Random(settings.seed), {}
    for number, kind in enumerate(kinds):
        kills = settings.kills // len(kinds) + (number < settings.kills % len(kinds))
        if not kills:
            continue
        print(f"{kind}: {kills} kills, {number + 1} of {len(kinds)} kinds of runs", flush=True)
        begun = time.monotonic()
        results[kind] = figures = kill_repeatedly(kind, kills, out, moments, settings.sigkill)
        how = ", ".join(f"{count} {name}" for name, count in sorted(figures.kills.items()))
        print(
            f"  {how}; compared {figures.runs} runs with {figures.files} files: "
            f"{len(figures.faults)} faults, {cli.duration(time.monotonic() - begun)}",
            flush=True,
        )
        for fault in figures.faults:
            print(f"  {fault}", flush=True)
        with blaming("--out"):
            shown = {name: vars(value) for name, value in results.items()}
            write_atomically(out / "kill_drill.json", json.dumps(shown, indent=1) + "\n")
    faults = sum(len(figures.faults) for figures in results.values())
    kills = sum(figures.kills.total() for figures in results.values())
    print(f"{kills} kills, {faults} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    cli.run(main, PROG)
