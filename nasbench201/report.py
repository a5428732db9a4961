"""The table of the papers: what searches with several seeds found, beside the published figures, as Markdown.

python nasbench201/report.py runs/nasbench201/darts runs/nasbench201/lambda-darts

Deviations are those of samples (n - 1).
"""

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

import cli
from cli import InputError
from nasbench201.cells import load_cell
from nasbench201.settings import SearchSettings
from nasbench201.table import column_name, open_table

PROG = "report.py"

#: data sets and splits of the papers' tables
COLUMNS = tuple(itertools.product(("cifar10", "cifar100", "imagenet16_120"), ("valid", "test")))

#: accuracies in percent that were read in their source; of all other methods the report says "not available"
PUBLISHED = {
    "idarts": {
        "source": "iDARTS (ICML 2021)",
        "cifar10_valid_200": "89.86",
        "cifar10_test_200": "93.58",
        "cifar100_valid_200": "70.57",
        "cifar100_test_200": "70.83",
        "imagenet16_120_test_200": "40.89",
    },
}
#: of the table itself (Dong and Yang, ICLR 2020)
REFERENCES = {
    "best cell": {"cifar10_test_200": "94.37", "cifar100_test_200": "73.51", "imagenet16_120_test_200": "47.31"},
    "all skip connections": {
        "cifar10_test_200": "54.30",
        "cifar100_test_200": "15.61",
        "imagenet16_120_test_200": "16.32",
    },
}


def score(run: Path, settings: SearchSettings) -> dict[str, Any]:
    """The cell of a finished run, and its accuracies in percent, named as the table names them: cifar10_test_200."""
    cell = load_cell(str(run))
    row: dict[str, Any] = {
        "seed": settings.seed,
        "arch": cell.arch,
        "skip_connects": sum(operation == "skip_connect" for operation in cell.operations),
    }
    if settings.table:
        with cli.blaming("--table"):
            table = open_table(Path(settings.table))
            index = table.index(cell)
        for asked in table.available():
            accuracy = table.accuracy(index, *asked)
            if asked[:2] in COLUMNS and not math.isnan(accuracy):
                row[column_name(*asked)] = accuracy
    return row


def shown(cells: list[dict[str, Any]]) -> dict[str, str]:
    """What a table shows of these cells: heading -> name, of each column the longer training where that is known."""
    names = {}
    for dataset, split in COLUMNS:
        for epochs in (200, 12):
            name = column_name(dataset, split, epochs)
            if all(name in cell for cell in cells):
                names[f"{dataset} {split}" + ("" if epochs == 200 else f", {epochs} epochs")] = name
                break
    return names


def mean_and_deviation(values: list[float]) -> str:
    """As the papers print it: 93.76 ± 0.12; the mean alone of a single value."""
    mean = statistics.mean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def show(cells: list[dict[str, Any]]) -> None:
    """Print the cells, and the mean over the seeds."""
    names = shown(cells)
    grid = Grid("seed", *names, "skips")
    for cell in cells:
        grid.add_row(str(cell["seed"]), *(f"{cell[name]:.2f}" for name in names.values()), str(cell["skip_connects"]))
    grid.add_section()
    grid.add_row("mean", *(mean_and_deviation([c[name] for c in cells]) for name in (*names.values(), "skip_connects")))
    Console().print(grid)
    for cell in cells:
        print(f"seed {cell['seed']}: {cell['arch']}")


def report(runs: list[Path]) -> str:
    """A row for each run of --seeds, one for what its paper published, and the table's own marks.

    Raises:
        ValueError: a folder has no results.json of a finished run with --seeds.
        OSError: it cannot be read.
    """
    results = {run: _results(run) for run in runs}
    names = shown([cell for _, cells in results.values() for cell in cells])
    lines = [f"| method | seeds | {''.join(f'{name} | ' for name in names)}skips |", "|---" * (len(names) + 3) + "|"]

    def line(label: str, seeds: int | str, figures: list[str], skips: str) -> None:
        lines.append(f"| {label} | {seeds} | {''.join(f'{figure} | ' for figure in figures)}{skips} |")

    for run, (method, cells) in results.items():
        *means, skips = [mean_and_deviation([c[name] for c in cells]) for name in (*names.values(), "skip_connects")]
        line(f"{run.name}, measured", len(cells), means, skips)
        published = PUBLISHED.get(method, {"source": "not available"})
        label = f"{method}, published: {published['source']}"
        line(label, "", [published.get(name, "") for name in names.values()], "")
    for label, figures in REFERENCES.items():
        line(f"{label}, of the table", "", [figures.get(name, "") for name in names.values()], "")
    return "\n".join(lines)


def _results(run: Path) -> tuple[str, list[dict[str, Any]]]:
    """The method and the cells of a run with --seeds."""
    path = run / "results.json"
    if not path.is_file():
        raise ValueError(f"{run} has no results.json; expected a finished run of train_search.py with --seeds")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        method, cells = content["method"], content["cells"]
        figures = [value for cell in cells for name, value in cell.items() if name not in ("arch", "seed")]
        numbers = all(isinstance(figure, int | float) for figure in figures)
        if not isinstance(method, str) or not cells or not numbers or any("skip_connects" not in c for c in cells):
            raise ValueError("no figures")
        return method, cells
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, expected what train_search.py --seeds leaves") from error


def main() -> None:
    parser = cli.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=str, nargs="+", help="run folders of nasbench201/train_search.py --seeds")
    runs = [Path(run) for run in parser.parse_args().runs]
    if len({run.resolve() for run in runs}) < len(runs):
        raise InputError("runs: a folder is given twice; expected different ones")
    with cli.blaming("runs"):
        text = report(runs)
    print(text)


if __name__ == "__main__":
    cli.run(main, PROG)
