"""Every method in one space, side by side: seconds per step, peak memory, and the skip connections of its cell.

    python benchmarks/methods.py --data DIR --space s2 --out runs/methods-s2

The steps are timed in one process, the methods in turn, round after round; a step is a weight step with its share of
the alpha steps, the regularizer at full strength. Then each method searches once, with a command of its own.
"""

import csv
import json
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from benchmarks.search_step import Method, step_of
from lib import cli, options
from lib.files import is_finished
from lib.options import Channels, ImageSizeOrOwn, Layers, PositiveInt, Seed, option
from search.settings import SCRIPT

PROG = "methods.py"
METHODS = tuple(method for method in get_args(Method) if method != "lambda-darts-exact")
#: a method's flags beside the common ones: a few steps move no gate to 0.85
FLAGS = {"fair-darts": {"threshold": 0.5}, "darts-pt": {"finetune_epochs": 1}}
#: methods whose second derivatives can be exact; lambda-darts-exact costs what lambda-darts costs then
SECOND_ORDER = ("darts-2nd", "lambda-darts", "idarts")


@dataclass
class Settings:
    """benchmark"""

    data: str = option("data", "Folder of images, DATA/train/<class>/* and DATA/test/<class>/*.")
    space: Literal["s1", "s2", "s3", "s4", "s5"] = option("s2", "Search space.")
    image_size: ImageSizeOrOwn = option(0, "Height and width of the images in pixels. 0 keeps their own size.")
    init_channels: Channels = option(4, "Channels C of the first cells.")
    layers: Layers = option(5, "Number of cells.")
    batch_size: PositiveInt = option(64, "Images per step, for all methods.")
    epochs: PositiveInt = option(2, "Epochs of the searches.")
    rounds: PositiveInt = option(7, "Timings of each method, of which the median is printed.")
    seed: Seed = option(0, "Seed of all random numbers.")
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1 (the second GPU) or mps.")
    out: str = option("", "Folder to make, for the runs and methods.json. By default runs/methods-<space>.")


def time_steps(settings: Settings, common: dict) -> dict[str, tuple[float, float]]:
    """Seconds per step of each method, and its ratio to first-order DARTS: medians over the rounds."""
    import torch

    from search.state import open_search

    contenders = {method: SCRIPT.settings_of(method, **common) for method in METHODS if method != "darts-pt"}
    contenders |= {
        f"{method}, exact": SCRIPT.settings_of(method, **common, derivatives="exact") for method in SECOND_ORDER
    }
    searches = {name: open_search(contender) for name, contender in contenders.items()}
    steps = {name: step_of(search) for name, search in searches.items()}
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    for turn in range(settings.rounds + 1):
        for name, search in searches.items():
            inner = search.settings.inner_steps
            train, valid = (iter(batches) for batches in search.batches(turn))
            batches, valid_batch = [next(train) for _ in range(inner)], next(valid)
            start = time.perf_counter()
            steps[name](batches, valid_batch)
            if search.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / inner)
    return {
        name: (
            statistics.median(values),
            statistics.median(value / plain for value, plain in zip(values, seconds["darts"], strict=True)),
        )
        for name, values in seconds.items()
    }


def run_search(method: str, common: dict, run: Path) -> dict:
    """Search with a method, or go on with that: its command, peak memory in MiB and skip connections."""
    given = {"method": method, **common, **FLAGS.get(method, {}), "save": str(run)}
    command = ["search/train_search.py", *(part for name, value in given.items() for part in (f"--{name}", str(value)))]
    if not is_finished(run, "search"):
        resumed = ["search/train_search.py", "--resume", str(run)]
        subprocess.run([sys.executable, *(resumed if run.exists() else command)], check=True)
    with open(run / "metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    genotype = json.loads((run / "genotype.json").read_text())
    skips = {kind: sum(edge[0] == "skip_connect" for edge in genotype[kind]) for kind in ("normal", "reduce")}
    return {
        "command": shlex.join(["python", *command]),
        "peak_memory_mib": round(float(last["peak_memory_mib"])),
        "skips": skips,
        "operations": {kind: len(genotype[kind]) for kind in skips},
    }


def main() -> None:
    settings = options.parse(Settings, PROG, __doc__.splitlines()[0])
    out = Path(settings.out or f"runs/methods-{settings.space}")
    cli.check_new_folder(out, "--out")
    own = {name: value for name, value in asdict(settings).items() if name not in ("rounds", "out")}
    common = {"dataset": "folder", **own}
    timed = time_steps(settings, common)
    cli.new_folder(out, "--out")
    runs = {method: run_search(method, common, out / method) for method in METHODS}
    (out / "methods.json").write_text(
        json.dumps({"command": cli.command_line(), "seconds_and_ratio": timed, "runs": runs}, indent=1) + "\n"
    )
    print("| method | s/step | of DARTS | peak memory [MiB] | skips, normal | skips, reduce | command |")
    print("|---|---|---|---|---|---|---|")
    for name, (seconds, ratio) in timed.items():
        print(f"| {name} | {seconds:.2f} | {ratio:.2f} |", _row(runs[name]) if name in runs else "| | | |")
    print("| darts-pt | as darts | | ", _row(runs["darts-pt"]))


def _row(run: dict) -> str:
    skips = (f"{run['skips'][kind]} of {run['operations'][kind]}" for kind in ("normal", "reduce"))
    return f"{run['peak_memory_mib']} | {' | '.join(skips)} | `{run['command']}` |"


if __name__ == "__main__":
    cli.run(main, PROG)
