"""The table of the papers: what searches with several seeds found, beside the published figures, as Markdown.

python nasbench201/report.py runs/nasbench201/darts runs/nasbench201/lambda-darts

Deviations are those of samples (n - 1).
"""

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

import cli
from cli import InputError
from nasbench201.cells import load_cell
from nasbench201.table import open_table

PROG = "report.py"

#: the columns of the papers' tables
COLUMNS = tuple(itertools.product(("cifar10", "cifar100", "imagenet16_120"), ("valid", "test")))
#: accuracies in percent that were read in their source; of all other methods the report says "not available"
PUBLISHED = {
    "idarts": {
        "source": "iDARTS (ICML 2021)",
        "cifar10_valid": "89.86",
        "cifar10_test": "93.58",
        "cifar100_valid": "70.57",
        "cifar100_test": "70.83",
        "imagenet16_120_test": "40.89",
    },
}
#: of the table itself (Dong and Yang, ICLR 2020)
REFERENCES = {
    "best cell": {"cifar10_test": "94.37", "cifar100_test": "73.51", "imagenet16_120_test": "47.31"},
    "all skip connections": {"cifar10_test": "54.30", "cifar100_test": "15.61", "imagenet16_120_test": "16.32"},
}


def score(run: Path, seed: int, table_path: str) -> dict[str, Any]:
    """The cell of a finished run, and what the table knows of it, in percent: of each column the longer training's."""
    cell = load_cell(str(run))
    row: dict[str, Any] = {
        "seed": seed,
        "arch": cell.arch,
        "skip_connects": sum(operation == "skip_connect" for operation in cell.operations),
    }
    if table_path:
        with cli.blaming("--table"):
            table = open_table(Path(table_path))
            index = table.index(cell)
        for dataset, split in COLUMNS:
            for epochs in (12, 200):
                if f"{dataset}_{split}_{epochs}" in table.columns:
                    row[f"{dataset}_{split}"] = table.accuracy(index, dataset, split, epochs)
    return row


def mean_and_deviation(values: list[float]) -> str:
    """As the papers print it: 93.76 ± 0.12; the mean alone of a single value."""
    mean = statistics.mean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def show(cells: list[dict[str, Any]]) -> None:
    """Print the cells, and the mean over the seeds."""
    known = [f"{dataset}_{split}" for dataset, split in COLUMNS if f"{dataset}_{split}" in cells[0]]
    grid = Grid("seed", *known, "skips", "cell")
    for cell in cells:
        grid.add_row(
            str(cell["seed"]), *(f"{cell[name]:.2f}" for name in known), str(cell["skip_connects"]), cell["arch"]
        )
    grid.add_section()
    skips = mean_and_deviation([cell["skip_connects"] for cell in cells])
    grid.add_row("mean", *(mean_and_deviation([cell[name] for cell in cells]) for name in known), skips, "")
    console = Console(width=None if Console().is_terminal else 200)
    console.print(grid)


def report(runs: list[Path]) -> str:
    """A row for each run of --seeds, one for what its paper published, and the table's own marks.

    Raises:
        ValueError: a folder has no results.json of a finished run with --seeds.
        OSError: it cannot be read.
    """
    columns = [f"{dataset}_{split}" for dataset, split in COLUMNS]
    lines = ["| method | seeds | " + " | ".join(columns) + " | skips |", "|---" * (len(columns) + 3) + "|"]
    for run in runs:
        path = run / "results.json"
        if not path.is_file():
            raise ValueError(f"{run} has no results.json; expected a finished run of train_search.py with --seeds")
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            cells, method = results["cells"], results["method"]
            values = {name: [cell[name] for cell in cells if name in cell] for name in (*columns, "skip_connects")}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged, expected what train_search.py --seeds leaves") from error
        shown = [mean_and_deviation(values[name]) if values[name] else "" for name in (*columns, "skip_connects")]
        lines.append(f"| {run.name}, measured | {len(cells)} | {' | '.join(shown)} |")
        published = PUBLISHED.get(method, {"source": "not available"})
        figures = [published.get(name, "") for name in columns]
        lines.append(f"| {method}, published: {published['source']} | | {' | '.join(figures)} | |")
    for name, figures in REFERENCES.items():
        lines.append(f"| {name}, of the table | | {' | '.join(figures.get(column, '') for column in columns)} | |")
    return "\n".join(lines)


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
