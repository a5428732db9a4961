"""Time to open the accuracies of NAS-Bench-201: the table against a .pth in the official layout through its package.

    python benchmarks/nasbench201_table.py

Each opening is a new process. The script prints the seconds from the start of the imports to the first accuracy, and
the memory added to the bare interpreter at its peak (from /proc, Linux only): medians over the rounds, with the files
in the system's cache. The .pth is made here with random figures, one seed of each training and --recorded epochs of it.
The official file has 12 and 200 epochs and up to three seeds, so the figures of the .pth are lower bounds.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cli
from lib import options
from lib.options import Limit, PositiveInt, option
from nasbench201.cells import all_cells

PROG = "nasbench201_table.py"
#: the images that each training is evaluated on
SETS = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("x-valid", "x-test", "ori-test"),
}
MEASURE = """
import re, sys, time
def peak():
    return int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, begin = peak(), time.perf_counter()
{imports}
imported = time.perf_counter()
{opening}
end = time.perf_counter()
print(end - begin, end - imported, peak() - before)
"""
TABLE = MEASURE.format(
    imports="from nasbench201.table import open_table",
    opening='open_table(sys.argv[1]).accuracy(0, "cifar10", "test")',
)
PACKAGE = MEASURE.format(
    imports="from nas_201_api import NASBench201API",
    opening='NASBench201API(sys.argv[1], verbose=False).get_more_info(0, "cifar10", hp="200", is_random=False)',
)
WRITE = (
    "import sys; from pathlib import Path; from benchmarks.nasbench201_table import write_official; "
    "write_official(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
)


Cells = Annotated[int, Limit("1 to 15625", lambda n: 1 <= n <= 15625)]


@dataclass
class Settings:
    """benchmark"""

    cells: Cells = option(15625, "Number of cells in the .pth.")
    recorded: PositiveInt = option(12, "Largest number of epochs that the .pth has of each training.")
    rounds: PositiveInt = option(
        5, "Openings of the table, of which the median is printed. For the .pth a fifth of them."
    )


def write_official(path: Path, cells: int, recorded: int) -> None:
    """Write a .pth of random figures in the official layout, with one seed of each training."""
    import random

    import torch

    generator = random.Random(0)

    def figures(keys: list) -> dict:
        return OrderedDict((key, generator.uniform(10, 95)) for key in keys)

    def trial(dataset: str, arch: str, epochs: int) -> dict:
        train, evaluated = list(range(epochs)), [f"{name}@{epoch}" for name in SETS[dataset] for epoch in range(epochs)]
        return {
            "name": dataset,
            "net_state_dict": None,
            **{name: figures(train) for name in ("train_acc1es", "train_acc5es", "train_losses", "train_times")},
            **{name: figures(evaluated) for name in ("eval_acc1es", "eval_times", "eval_losses")},
            "eval_names": list(SETS[dataset]),
            "arch_config": {"channel": 16, "num_cells": 5, "arch_str": arch, "class_num": 10},
            "params": 0.5,
            "flop": 80.0,
            "seed": 777,
            "epochs": epochs,
            "latency": [0.01],
        }

    def results(index: int, epochs: int) -> dict:
        return {
            "arch_index": index,
            "arch_str": archs[index],
            "all_results": {(dataset, 777): trial(dataset, archs[index], min(epochs, recorded)) for dataset in SETS},
            "dataset_seed": {dataset: [777] for dataset in SETS},
            "clear_net_done": True,
        }

    archs = [cell.arch for cell in all_cells()][:cells]
    infos = {index: {"less": results(index, 12), "full": results(index, 200)} for index in range(cells)}
    torch.save({"meta_archs": archs, "arch2infos": infos, "evaluated_indexes": list(infos)}, path)


def measure(code: str, path: Path, rounds: int) -> list[float]:
    """Medians of the seconds, of the seconds without the imports, and of the MiB added."""
    command = [sys.executable, "-c", code, str(path)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(rounds)]
    return [statistics.median(values) for values in zip(*(map(float, run.split()) for run in runs), strict=True)]


def main() -> None:
    settings = options.parse(Settings, PROG, __doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as folder:
        table, official = Path(folder, "table.safetensors"), Path(folder, "official.pth")
        size = str(settings.cells), str(settings.recorded)
        subprocess.run([sys.executable, "-c", WRITE, str(official), *size], check=True)
        begin = time.perf_counter()
        subprocess.run([sys.executable, "nasbench201/table.py", "build", str(official), str(table)], check=True)
        print(f"built in {time.perf_counter() - begin:.1f} s")
        print("| file | cells | size [MB] | imports and opening [s] | opening [s] | memory added [MiB] |")
        print("|---|---|---|---|---|---|")
        package = f".pth, {settings.recorded} epochs recorded, nas_201_api"
        for name, path, code, rounds in (
            ("table, `open_table`", table, TABLE, settings.rounds),
            (package, official, PACKAGE, -(-settings.rounds // 5)),
        ):
            seconds, opening, memory = measure(code, path, rounds)
            megabytes = path.stat().st_size / 1e6
            figures = f"{megabytes:,.1f} | {seconds:.3f} | {opening:.4f} | {memory:,.0f}"
            print(f"| {name} | {settings.cells:,} | {figures} |", flush=True)


if __name__ == "__main__":
    cli.run(main, PROG)
