"""Time a search step of each method in one space, and compare it with first-order DARTS.

    python benchmarks/methods.py --data DIR --space s2

A step is a weight step and its share of an alpha step, with the full weight of the regularizer. The methods take turns
in one process. The script prints medians.
"""

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.results import check_out, write_results
from benchmarks.search_step import step_of
from lib import cli, options
from lib.options import Channels, ImageSizeOrOwn, Layers, PositiveInt, Seed, option
from search.methods import METHODS
from search.settings import SCRIPT, SpaceName

PROG = "methods.py"
#: methods with the same steps as darts, and as lambda-darts with --derivatives exact
NOT_TIMED = ("darts-pt", "lambda-darts-exact")
TIMED = [name for name in METHODS if name not in NOT_TIMED]
#: methods that are also timed with --derivatives exact
SECOND_ORDER = ("darts-2nd", "lambda-darts", "idarts")


@dataclass
class MethodsSettings:
    """The settings of this benchmark."""

    data: str = option("data", "Folder of images, DATA/train/<class>/* and DATA/test/<class>/*.")
    space: SpaceName = option("s2", "Search space of the supernet.")
    image_size: ImageSizeOrOwn = option(0, "Height and width of the images in pixels. 0 keeps their own size.")
    init_channels: Channels = option(4, "Channels C of the first cells.")
    layers: Layers = option(5, "Number of cells in the supernet.")
    batch_size: PositiveInt = option(64, "Number of images per step, for all methods.")
    rounds: PositiveInt = option(7, "Number of timings of each method. Their median is printed.")
    seed: Seed = option(0, "Seed of all random numbers.")
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1 (the second GPU) or mps.")
    out: str = option("", "JSON file for the results. By default none is written.")


def time_steps(settings: MethodsSettings) -> dict[str, tuple[float, float]]:
    """method -> (seconds per step, ratio to first-order DARTS), medians over the rounds."""
    import torch

    from search.state import open_search

    common: dict[str, Any] = {"dataset": "folder", **asdict(settings)}
    del common["rounds"], common["out"]
    contenders = {method: SCRIPT.settings_of(method, **common) for method in TIMED}
    contenders |= {f"{name}, exact": SCRIPT.settings_of(name, **common, derivatives="exact") for name in SECOND_ORDER}
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
            if turn:  # the first round is a warm-up
                seconds[name].append((time.perf_counter() - start) / inner)
    ratios = {name: [a / b for a, b in zip(own, seconds["darts"], strict=True)] for name, own in seconds.items()}
    return {name: (statistics.median(seconds[name]), statistics.median(ratios[name])) for name in seconds}


def main() -> None:
    settings = options.parse(MethodsSettings, PROG, __doc__.splitlines()[0])
    check_out(settings.out)
    timed = time_steps(settings)
    print("| method | s/step | of DARTS |\n|---|---|---|")
    for name, (seconds, ratio) in timed.items():
        print(f"| {name} | {seconds:.2f} | {ratio:.2f} |")
    write_results(settings, settings.out, command=cli.command_line(), seconds_and_ratio=timed)


if __name__ == "__main__":
    cli.run(main, PROG)
