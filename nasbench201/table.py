"""Look up the accuracies of the cells of NAS-Bench-201, or build a table of them.

python nasbench201/table.py query 1462
python nasbench201/table.py best --dataset cifar100 --count 5
python nasbench201/table.py rank runs/nasbench201-... 1835
python nasbench201/table.py plot table.png runs/nasbench201-...
python nasbench201/table.py build NAS-Bench-201-v1_1-096897.pth official.npz
python nasbench201/table.py query 1462 --table official.npz

The default table is nasbench201/accuracies.npz, which comes with the project. It has the figures of NAS-Bench-201 v1.1
(Dong and Yang, "NAS-Bench-201: Extending the scope of reproducible neural architecture search", ICLR 2020; MIT
licence): test accuracies after 12 and 200 epochs on three data sets, and valid accuracies after 12 epochs. They are
rounded to 1/600 of a percent, or to 1/900 on ImageNet16-120, which changes no rank. Parameters and multiply-adds are
those of Network201, as analysis/size.py counts them.

Accuracies are in percent, after the last epoch, averaged over the seeds. Each belongs to a data set, a split and a
training budget of 12 or 200 epochs. From the official file, `build` takes:

    cifar10          train, test: train and ori-test of cifar10, trained on all 50,000 images (of cifar10-valid if the
                     file has no such runs, as v1_0 after 12 epochs); valid: x-valid of cifar10-valid
    cifar10-valid    train, valid, test: train, x-valid and ori-test of cifar10-valid, trained on half of the images
    cifar100         train, valid, test: train, x-valid and x-test
    imagenet16_120   train, valid, test: train, x-valid and x-test of ImageNet16-120
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from lib import cli, options
from lib.cli import blaming
from lib.files import PICTURES, check_new_file
from nasbench201.accuracies import SHIPPED, SPACE, Table, describe, open_table
from nasbench201.cells import EDGES, OPERATIONS, load_cell
from nasbench201.sources import COSTS, Dataset, Epochs, Split, build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROG = "table.py"
SKIP = OPERATIONS.index("skip_connect")


def find(table: Table, spec: str) -> int:
    """Return the index of a cell that is given by its index, its string, a file with the string or a finished run.

    Raises:
        ValueError: `spec` is none of these, or the table does not have the cell.
        OSError: The file cannot be read.
    """
    return table.index(table.cell(int(spec)) if spec.isdecimal() else load_cell(spec))


def _known(value: float) -> float | None:
    """A figure for JSON, rounded to 4 digits as in the sources; None for NaN."""
    return None if np.isnan(value) else round(float(value), 4)


def standing(table: Table, index: int, asked: tuple[str, str, int]) -> dict[str, Any]:
    """The accuracy of a cell, its rank and its regret; None if unknown."""
    accuracy = _known(table.accuracy(index, *asked))
    return {
        "accuracy": accuracy,
        "rank": None if accuracy is None else table.rank(index, *asked),
        "of": int((~np.isnan(table.column(*asked))).sum()),
        "regret": _known(table.regret(index, *asked)),
    }


def query(table: Table, index: int) -> dict[str, Any]:
    """Return all figures of a cell in the table; None if unknown."""
    twins = table.isomorphic(index)
    rows = []
    for asked in table.available():
        of_twins = table.column(*asked)[twins]
        spread = None if np.isnan(of_twins).all() else _known(np.nanmax(of_twins) - np.nanmin(of_twins))
        names = dict(zip(("dataset", "split", "epochs"), asked, strict=True))
        seeds = {seed: _known(accuracy) for seed, accuracy in table.seeds(index, *asked).items()}
        rows.append({**names, **standing(table, index, asked), "isomorphic_spread": spread, "seeds": seeds})
    costs = {n: _known(values[index]) for n, values in table.columns.items() if n.endswith(COSTS)}
    cell = {"index": index, "of": len(table), "arch": table.cell(index).arch}
    return {**cell, "costs": costs, "isomorphic": twins, "accuracies": rows}


def _shown(value: Any) -> str:
    """A value as text. A mapping from seeds is written as 777: 93.10, 888: 93.40."""
    if isinstance(value, dict):
        return ", ".join(f"{seed}: {_shown(accuracy)}" for seed, accuracy in value.items())
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _print_aligned(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print columns of rows; `columns` maps their names to headers."""
    lines = [list(columns.values())]
    for row in rows:
        values = [row[name] for name in columns]
        lines.append([_shown(value) for value in values])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _print_standings(table: Table, indices: Sequence[int], asked: tuple[str, str, int], as_json: bool) -> None:
    about = dict(zip(("dataset", "split", "epochs"), asked, strict=True))
    rows = [{"index": i, **about, **standing(table, i, asked), "arch": table.cell(i).arch} for i in indices]
    if as_json:
        print(json.dumps(rows))
        return
    print(describe(*asked))
    headers = {"rank": f"rank of {rows[0]['of']:,}", "index": "index", "accuracy": "accuracy [%]"}
    _print_aligned({**headers, "regret": "regret [points]", "arch": "cell"}, rows)


def _print_query(found: dict[str, Any]) -> None:
    print(f"cell {found['index']} of {found['of']:,}: {found['arch']}")
    for name, cost in found["costs"].items():
        dataset, _, kind = name.rpartition("_")
        print(f"{dataset}: {'-' if cost is None else cost} M {'parameters' if kind == 'params' else 'multiply-adds'}")
    twins = found["isomorphic"]
    listed = ", ".join(map(str, twins[:12])) + (f" and {len(twins) - 12} more" if len(twins) > 12 else "")
    print(f"isomorphic cells: {len(twins)}, {listed}\n" if len(twins) > 1 else "isomorphic cells: no other\n")
    names = {"dataset": "data set", "split": "split", "epochs": "epochs", "accuracy": "accuracy [%]", "rank": "rank"}
    spread = {"regret": "regret [points]", "isomorphic_spread": "spread of isomorphic [points]"}
    single = {"seeds": "by seed"} if any(row["seeds"] for row in found["accuracies"]) else {}
    _print_aligned({**names, **spread, **single}, found["accuracies"])


def figure(table: Table, asked: tuple[str, str, int], given: Sequence[int] = ()) -> "Figure":
    """Plot all cells by rank and by number of skip connections, and mark the best, the all-skip and the given cells.

    Raises:
        ValueError: The accuracy of a given cell is unknown.
    """
    from matplotlib.figure import Figure

    accuracies = table.column(*asked)
    known = np.flatnonzero(~np.isnan(accuracies))
    skips = (table.cells == SKIP).sum(axis=1)
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    figure.suptitle(f"{len(known):,} cells of NAS-Bench-201: {describe(*asked)}")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)

    left.plot(np.arange(1, len(known) + 1), np.sort(accuracies[known])[::-1], linewidth=2)
    left.set(xlabel="rank", ylabel="accuracy [%]", xscale="log")  # cells that searches find have low ranks
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.xaxis.set_minor_formatter("")
    counts = np.arange(len(EDGES) + 1)
    x = skips + np.random.default_rng(0).uniform(-0.3, 0.3, len(table))  # jitter, to separate points
    right.scatter(x[known], accuracies[known], c=skips[known], s=5, alpha=0.35, linewidths=0)
    groups = [accuracies[known][skips[known] == count] for count in counts]
    medians = [np.median(group) if len(group) else np.nan for group in groups]
    right.hlines(medians, counts - 0.4, counts + 0.4, color="black", linewidth=2.2, label="median")
    right.set(xlabel="skip connections in the cell, of 6", xticks=counts)

    marked = [("best", int(np.nanargmax(accuracies)), "*", "#d55e00")]
    all_skip = np.flatnonzero(skips == len(EDGES))
    marked += [("skip connections only", int(index), "s", "black") for index in all_skip if index in known]
    marked += [("given", index, "D^vPXh"[i % 6], f"C{1 + i % 9}") for i, index in enumerate(given)]
    for name, index, marker, color in marked:
        look = {"marker": marker, "color": color, "s": 130, "edgecolors": "white", "clip_on": False}
        look["zorder"] = 3 if name == "given" else 4
        rank = table.rank(index, *asked)
        label = f"{name}: cell {index}, {accuracies[index]:.2f} %, rank {rank:,}"
        left.scatter(rank, accuracies[index], label=label, **look)
        right.scatter(x[index], accuracies[index], **look)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _open(given: Any) -> Table:
    with blaming("--table"):
        return open_table(given.table or SHIPPED)


def _open_column(given: Any) -> tuple[Table, tuple[str, str, int]]:
    """Open the table, and return it with the data set, split and training budget that the flags name."""
    table = _open(given)
    budgets = [epochs for *found, epochs in table.available() if found == [given.dataset, given.split]]
    asked = given.dataset, given.split, given.epochs or max(budgets, default=200)
    with blaming("--dataset, --split, --epochs"):
        table.column(*asked)
    return table, asked


def _find_all(table: Table, specs: Sequence[str]) -> list[int]:
    with blaming("CELL"):
        return [find(table, spec) for spec in specs]


def _build_command(given: Any) -> None:
    build(given.sources, given.out, given.epochs, given.trust, cli.command_line())
    table = open_table(given.out)
    cells = "cells, all of the space" if len(table) == SPACE else f"cells of {SPACE:,}"
    print(f"{given.out}: {len(table):,} {cells}, accuracies per cell: {len(table.available())}")


def _query_command(given: Any) -> None:
    table = _open(given)
    found = query(table, *_find_all(table, [given.cell]))
    print(json.dumps(found)) if given.json else _print_query(found)


def _best_command(given: Any) -> None:
    table, asked = _open_column(given)
    order = np.argsort(-table.column(*asked), kind="stable")  # NaN sorts last
    _print_standings(table, order[: given.count].tolist(), asked, given.json)


def _rank_command(given: Any) -> None:
    table, asked = _open_column(given)
    _print_standings(table, _find_all(table, given.cells), asked, given.json)


def _plot_command(given: Any) -> None:
    from analysis.curves import save  # imports Matplotlib

    (table, asked), out = _open_column(given), Path(given.picture)
    indices = _find_all(table, given.cells)
    with blaming("OUT"):
        check_new_file(out, PICTURES)
    with blaming("CELL"):
        picture = figure(table, asked, indices)
    with blaming("OUT"):
        save(picture, out)
    print(out)


COUNT = options.reader(options.PositiveInt)
CELL = "Cell, given by its index, string, genotype file or run folder."


def _choice(kind: Any, default: Any, help: str) -> dict[str, Any]:
    """The keywords of add_argument for a flag that takes one of the values of a Literal."""
    shown = f" (default: {default})" if default else ""
    metavar = f"{{{','.join(map(str, get_args(kind)))}}}"
    return {"type": options.reader(kind), "default": default, "metavar": metavar, "help": f"{help}{shown}."}


#: the arguments of the commands
ARGUMENTS: dict[str, dict[str, Any]] = {
    "sources": {"nargs": "+", "metavar": "SOURCE", "help": "The official .pth, or .csv or .csv.gz files."},
    "out": {"metavar": "OUT", "help": "New file for the table."},
    "picture": {"metavar": "OUT", "help": "New picture, whose name ends in .png, .svg or .pdf."},
    "cell": {"metavar": "CELL", "help": CELL},
    "cells": {"nargs": "+", "metavar": "CELL", "help": CELL},
    "--table": {
        "metavar": "FILE",
        "default": "",
        "help": "Table made by build. By default, the table that comes with the project.",
    },
    "--dataset": _choice(Dataset, "cifar10", "Data set of the accuracies"),
    "--split": _choice(Split, "test", "Split of the data set on which accuracies are measured"),
    "--epochs": _choice(Epochs, None, "Training budget in epochs (default: 200, or 12 if there is no other)"),
    "--count": {"type": COUNT, "default": 10, "metavar": "N", "help": "Number of cells to print (default: 10)."},
    "--json": {"action": "store_true", "help": "Print the result as JSON."},
    "--trust": {"action": "store_true", "help": "Unpickle the .pth, which runs any code in it."},
}
ACCURACY = ("--dataset", "--split", "--epochs", "--table")
COMMANDS = {
    "build": (_build_command, "Make a table from the official .pth or from CSV files.", ("sources", "out", "--trust")),
    "query": (_query_command, "Print all figures of a cell in the table.", ("cell", "--table", "--json")),
    "best": (_best_command, "Print the best cells.", (*ACCURACY, "--count", "--json")),
    "rank": (_rank_command, "Print the ranks of cells among all cells.", ("cells", *ACCURACY, "--json")),
    "plot": (_plot_command, "Plot all cells and mark some of them.", ("picture", *ACCURACY)),
}


def main() -> None:
    parser = options.Parser(prog=PROG, description=__doc__.splitlines()[0], usage=f"{PROG} COMMAND ...")
    subcommands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for command, (_, help, names) in COMMANDS.items():
        subparser = options.Parser(description=help)
        for name in names:
            subparser.add_argument(name, **ARGUMENTS[name])
        if command == "build":
            budgets = _choice(
                Epochs, [], "Training budget of each CSV file, in the order of the files; put this flag after OUT"
            )
            subparser.add_argument("--epochs", nargs="+", **budgets)
        if command == "plot":
            subparser.add_argument("cells", metavar="CELL", nargs="*", default=[], help=CELL)
        subcommands.add_subcommand(command, subparser, help=help)
        subparser.prog = f"{PROG} {command}"
    given = parser.parse_args()
    with blaming(given.command):
        COMMANDS[given.command][0](given[given.command])


if __name__ == "__main__":
    cli.run(main, PROG)
