"""How the cost of a search step grows with channels, cells, batch and operations, as one picture.

    python benchmarks/scaling.py --method lambda-darts --out docs/scaling.png

Each point is a process of its own: seconds of a step, the median of its rounds, and the peak memory.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks.search_step import Method, check_operations, make_step
from benchmarks.search_step import Settings as StepSettings
from benchmarks.turns import take_turns
from lib import cli, options
from lib.cli import InputError, blaming
from lib.files import check_new_file, write_atomically
from lib.options import Channels, ImageSize, Layers, PositiveInt, Seed, option

PROG = "scaling.py"
#: what is varied, and its name in the picture
AXES = {
    "init_channels": "channels C",
    "layers": "cells L",
    "batch_size": "images of a batch",
    "operations": "operations of an edge",
}


@dataclass
class Settings:
    """benchmark"""

    method: Method = option("lambda-darts", "Method, as in --method of train_search.py.")
    space: Literal["s1", "s2", "s3", "s4", "s5"] = option("s5", "Search space.")
    init_channels: list[Channels] | None = option(
        None, "Channels to measure (by default 8 4 16 32). The first is used while others vary."
    )
    layers: list[Layers] | None = option(
        None, "Numbers of cells to measure (by default 5 4 8 11). The first is used while others vary."
    )
    batch_size: list[PositiveInt] | None = option(
        None, "Batch sizes to measure (by default 32 16 64 128). The first is used while others vary."
    )
    operations: list[PositiveInt] | None = option(
        None,
        "Numbers of candidates to measure (by default 7 2 3 5). The first is used while others vary.",
    )
    image_size: ImageSize = option(32, "Height and width of the random images in pixels.")
    rounds: PositiveInt = option(3, "Timings of each, of which the median is printed.")
    seed: Seed = option(0, "Seed of the weights and the images.")
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1 (the second GPU) or mps.")
    out: str = option("docs/scaling.png", "Picture to write. A JSON file is written beside it.")


def main() -> None:
    settings = options.parse(Settings, PROG, __doc__.splitlines()[0])
    out = Path(settings.out)
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--out: {settings.out!r}, expected a name that ends in .png, .svg or .pdf")
    for path in (out, out.with_suffix(".json")):
        with blaming("--out"):
            check_new_file(path)
    given = {"init_channels": [8, 4, 16, 32], "layers": [5, 4, 8, 11], "batch_size": [32, 16, 64, 128]}
    given["operations"] = [7, 2, 3, 5]
    given = {name: getattr(settings, name) or values for name, values in given.items()}
    common = {name: getattr(settings, name) for name in ("space", "image_size", "seed", "device")}
    base = StepSettings(**common, **{name: values[0] for name, values in given.items()})
    for value in given["operations"]:
        check_operations(replace(base, operations=value))
    points = {name: {} for name in AXES}
    for name, values in given.items():
        for value in sorted(values):
            place = replace(base, **{name: value})
            timing = take_turns({"": (make_step, (place, settings.method, "auto"))}, settings.rounds)[""]
            points[name][value] = {"seconds": timing.median, "peak_memory_mib": timing.peak_memory_mib}
            print(f"{name} {value}: {timing.median:.3f} s, {timing.peak_memory_mib:.0f} MiB", flush=True)
    content = {**asdict(settings), "command": cli.command_line(), "points": points}
    write_atomically(out.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    draw(points, {name: values[0] for name, values in given.items()}, out)


def draw(points: dict[str, dict[int, dict[str, float]]], base: dict[str, int], out: Path) -> None:
    """Time above and memory below, a column for each of the axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    rows = (("seconds", "seconds of a step", "#0072B2"), ("peak_memory_mib", "peak memory [MiB]", "#D55E00"))
    for row, panels in enumerate(figure.subplots(2, len(AXES), sharey="row")):
        key, label, color = rows[row]
        for axes, (name, title) in zip(panels, AXES.items(), strict=True):
            values = sorted(points[name])
            axes.plot(values, [points[name][value][key] for value in values], "o-", color=color)
            axes.axvline(base[name], color="0.85", zorder=0)
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            if row:
                axes.set_xlabel(title)
        panels[0].set_ylabel(label)
    fixed = ", ".join(f"{AXES[name]} {value}" for name, value in base.items())
    figure.suptitle(f"A search step; elsewhere {fixed} (grey lines)")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    cli.run(main, PROG)
