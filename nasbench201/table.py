"""The accuracies of all cells of NAS-Bench-201, from its official file or CSV files to one file that opens at once.

python nasbench201/table.py build NAS-Bench-201-v1_1-096897.pth table.safetensors
python nasbench201/table.py build epochs200.csv.gz epochs12.csv.gz table.safetensors --epochs 200 12
python nasbench201/table.py query table.safetensors 1462
python nasbench201/table.py best table.safetensors --dataset cifar100 --count 5
python nasbench201/table.py rank table.safetensors runs/nasbench201-... 1835
python nasbench201/table.py plot table.safetensors table.png runs/nasbench201-...

An accuracy is in percent, after the last epoch, the mean over the seeds, and belongs to a data set, a split and a
training budget of 12 or 200 epochs. What the official file calls x, trained or tested on, is here:

    cifar10          train, test: train and ori-test of cifar10, trained on all 50,000 images (where the file has no
                     such runs, as v1_0 for 12 epochs: of cifar10-valid); valid: x-valid of cifar10-valid
    cifar10-valid    train, valid, test: train, x-valid and ori-test of cifar10-valid, trained on half the images
    cifar100         train, valid, test: train, x-valid and x-test
    imagenet16_120   train, valid, test: train, x-valid and x-test of ImageNet16-120

The file is safetensors: one uint8 for each edge of a cell, in the benchmark's order of cells, a float32 array for each
accuracy, where NaN is not known, and in its header where they come from and a checksum. Reading it takes no torch.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from files import check_new_file, write_new
from nasbench201.cells import EDGES, OPERATIONS, Cell201, load_cell, make_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROG = "table.py"
FORMAT = "nasbench201-table-1"

Dataset = Literal["cifar10", "cifar10-valid", "cifar100", "imagenet16_120"]
Split = Literal["train", "valid", "test"]
Epochs = Literal[12, 200]
DATASETS, SPLITS, EPOCHS = get_args(Dataset), get_args(Split), get_args(Epochs)

#: the space's number of cells
SPACE = len(OPERATIONS) ** len(EDGES)
SKIP = OPERATIONS.index("skip_connect")
ALL_SKIP = make_cell(["skip_connect"] * len(EDGES))
#: a cell's operations times these, summed, is a number of its own, 0 to SPACE - 1
_PLACES = len(OPERATIONS) ** np.arange(len(EDGES))[::-1]


def column_name(dataset: str, split: str, epochs: int) -> str:
    """As "cifar10_test_200"."""
    return f"{dataset}_{split}_{epochs}"


@dataclass(eq=False)
class Table:
    """The accuracies of N cells, N = 15,625 unless its source had fewer."""

    cells: np.ndarray  # (N, 6) uint8: the operation of each edge, an index into OPERATIONS
    columns: dict[str, np.ndarray]  # "cifar10_test_200" and so on -> (N,) float32, in percent; NaN: not known
    costs: dict[str, np.ndarray]  # "cifar10_params", "cifar10_madds" and so on -> (N,) float32, in millions
    about: dict[str, Any]  # "sources", the "origins" of the columns, the "command" that made the table

    def __len__(self) -> int:
        return len(self.cells)

    def index(self, cell: Cell201) -> int:
        """The cell's index in the benchmark's order.

        Raises:
            ValueError: the table has no such cell.
        """
        index = int(self.index_of_code[codes(operations_of([cell]))[0]])
        if index < 0:
            raise ValueError(f"{cell.arch} is not among the {len(self):,} cells of the table")
        return index

    def cell(self, index: int) -> Cell201:
        """The cell of an index.

        Raises:
            ValueError: there is none.
        """
        return make_cell([OPERATIONS[operation] for operation in self.cells[self._checked(index)]])

    def column(self, dataset: str, split: str, epochs: int) -> np.ndarray:
        """The accuracies of all cells, (N,) float32, in percent; NaN where not known.

        Raises:
            ValueError: the table has no such accuracies; the message names those that it has.
        """
        try:
            return self.columns[column_name(dataset, split, epochs)]
        except KeyError:
            has = "; ".join(
                f"after {budget} epochs " + ", ".join(f"{d} {s}" for d, s, e in self.available() if e == budget)
                for budget in sorted({e for _, _, e in self.available()})
            )
            message = f"no accuracies for {dataset}, {split}, after {epochs} epochs; the table has {has}"
            raise ValueError(message) from None

    def available(self) -> list[tuple[str, str, int]]:
        """The data sets, splits and epochs that the table has accuracies for."""
        return [(d, s, e) for e in EPOCHS for d in DATASETS for s in SPLITS if column_name(d, s, e) in self.columns]

    def accuracy(self, index: int, dataset: str, split: str, epochs: int = 200) -> float:
        """In percent, NaN where not known.

        Raises:
            ValueError: there is no such cell, or the table has no such accuracies.
        """
        return float(self.column(dataset, split, epochs)[self._checked(index)])

    def rank(self, index: int, dataset: str, split: str = "test", epochs: int = 200) -> int:
        """1 for the best cell; cells that are equal share the best of their ranks.

        Raises:
            ValueError: as `accuracy`, or the cell's accuracy is not known.
        """
        accuracy = self.accuracy(index, dataset, split, epochs)
        if np.isnan(accuracy):
            raise ValueError(f"the accuracy of cell {index} on {dataset}, {split}, after {epochs} epochs is not known")
        return 1 + int((self.column(dataset, split, epochs) > accuracy).sum())

    def regret(self, index: int, dataset: str, split: str = "test", epochs: int = 200) -> float:
        """Percentage points below the best cell; NaN where not known.

        Raises:
            ValueError: as `accuracy`.
        """
        return float(np.nanmax(self.column(dataset, split, epochs))) - self.accuracy(index, dataset, split, epochs)

    def isomorphic(self, index: int) -> list[int]:
        """The indices of the cells with the same canonical form, `index` among them; a quarter of a second, once.

        Raises:
            ValueError: there is no such cell.
        """
        form = self._canonical[self._checked(index)]
        return [other for other, canonical in enumerate(self._canonical) if canonical == form]

    @cached_property
    def _canonical(self) -> list[str]:
        return [self.cell(index).canonical() for index in range(len(self))]

    @cached_property
    def index_of_code(self) -> np.ndarray:
        """(15625,): the index of the cell of each code, -1 for none."""
        indices = np.full(SPACE, -1)
        indices[codes(self.cells)] = np.arange(len(self))
        return indices

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise ValueError(f"index {index}, expected 0 to {len(self) - 1}")
        return index


def open_table(path: str | Path) -> Table:
    """Read a table that `build` has made. Milliseconds.

    Raises:
        ValueError: it is damaged, or no such table.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = Path(path).read_bytes()
    again = f"build it again with `python nasbench201/{PROG} build`"
    try:
        arrays = load(data)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is damaged, or no table at all ({error}); {again}") from error
    # a safetensors file begins with the length of its header in 8 bytes
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is no table of this format, {FORMAT}; {again}")
    if header.get("sha256") != checksum(arrays, header.get("about", "")):
        raise ValueError(f"{path} is damaged: its checksum does not match; {again}")
    about, cells = json.loads(header["about"]), arrays.pop("cells")
    columns = {name: array for name, array in arrays.items() if name in about["origins"]}
    costs = {name: array for name, array in arrays.items() if name not in columns}
    return Table(cells, columns, costs, about)


def checksum(arrays: dict[str, np.ndarray], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def operations_of(cells: Iterable[Cell201]) -> np.ndarray:
    """(N, 6) uint8."""
    return np.array([[OPERATIONS.index(name) for name in cell.operations] for cell in cells], dtype=np.uint8)


def codes(operations: np.ndarray) -> np.ndarray:
    """(N,): a number of its own for each row of (N, 6) operations."""
    return operations @ _PLACES


# The command line


class Row(NamedTuple):
    """A cell among the others."""

    rank: int | None
    of: int  # cells of known accuracy
    index: int  # type: ignore[assignment]  # the column is called so, as a tuple's method is
    accuracy: float | None
    regret: float | None
    arch: str


def _row(table: Table, index: int, asked: tuple[str, str, int]) -> Row:
    """Accuracy and regret to 4 digits, as the sources give them; None where not known."""
    accuracy = table.accuracy(index, *asked)
    known = not np.isnan(accuracy)
    return Row(
        table.rank(index, *asked) if known else None,
        int((~np.isnan(table.column(*asked))).sum()),
        index,
        round(accuracy, 4) if known else None,
        round(table.regret(index, *asked), 4) if known else None,
        table.cell(index).arch,
    )


def _text(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _print_aligned(rows: list[list[str]]) -> None:
    """The first row is the header; all but the last column to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[:-1], widths, strict=False)]
        print("  ".join([*cells, row[-1]]))


def _print_rows(rows: list[Row], as_json: bool) -> None:
    if as_json:
        print(json.dumps([row._asdict() for row in rows]))
        return
    header = ["rank", f"of {rows[0].of:,}: index", "accuracy [%]", "regret [points]", "cell"]
    body = [[_text(r.rank, 0), str(r.index), _text(r.accuracy), _text(r.regret), r.arch] for r in rows]
    _print_aligned([header, *body])


def find(table: Table, spec: str) -> int:
    """The index of a cell: an index, the benchmark's string, a file with one or the folder of a finished run.

    Raises:
        ValueError: it is none of these, or not in the table.
        OSError: the file cannot be read.
    """
    if spec.isdecimal():
        table.cell(int(spec))
        return int(spec)
    return table.index(load_cell(spec))


def query(table: Table, index: int) -> dict[str, Any]:
    """All that the table says of a cell, for JSON; None where not known."""
    twins = table.isomorphic(index)
    accuracies = []
    for dataset, split, epochs in table.available():
        row = _row(table, index, (dataset, split, epochs))
        same = table.column(dataset, split, epochs)[twins]
        spread = None if np.isnan(same).all() else round(float(np.nanmax(same) - np.nanmin(same)), 4)
        accuracies.append(
            {
                "dataset": dataset,
                "split": split,
                "epochs": epochs,
                **{name: getattr(row, name) for name in ("accuracy", "rank", "of", "regret")},
                "isomorphic_spread": spread,
            }
        )
    costs = {name: float(values[index]) for name, values in table.costs.items()}
    return {
        "index": index,
        "of": len(table),
        "arch": table.cell(index).arch,
        "costs": {name: None if np.isnan(cost) else round(cost, 4) for name, cost in costs.items()},
        "isomorphic": twins,
        "accuracies": accuracies,
    }


def _print_query(found: dict[str, Any]) -> None:
    print(f"cell {found['index']} of {found['of']:,}: {found['arch']}")
    for dataset in DATASETS:
        cost = [found["costs"].get(f"{dataset}_{kind}") for kind in ("params", "madds")]
        if None not in cost:
            print(f"{dataset}: {cost[0]:.3f} M parameters, {cost[1]:.2f} M multiply-adds")
    twins = found["isomorphic"]
    listed = ", ".join(map(str, twins[:12])) + (f" and {len(twins) - 12} more" if len(twins) > 12 else "")
    print(f"isomorphic cells: {len(twins)}, {listed}" if len(twins) > 1 else "isomorphic cells: no other")
    print()
    header = ["data set", "split", "epochs", "accuracy [%]", "rank", "regret [points]", "spread of isomorphic [points]"]
    rows = [
        [
            *(row["dataset"], row["split"], str(row["epochs"]), _text(row["accuracy"]), _text(row["rank"], 0)),
            *(_text(row["regret"]), _text(row["isomorphic_spread"]).rjust(len(header[-1]))),
        ]
        for row in found["accuracies"]
    ]
    _print_aligned([header, *rows])


#: the marks of a plot: the best cell, the cell of skip connections only, then the given cells
_BEST_COLOR, _SKIP_COLOR = "#d55e00", "#000000"
_GIVEN_COLORS = ("#c2185b", "#007f5c", "#7b4ea3", "#9c6b00", "#3a5a78")
_GIVEN_MARKERS = ("D", "^", "v", "P", "X", "h")


def figure(table: Table, asked: tuple[str, str, int], given: Sequence[int] = ()) -> "Figure":
    """All cells by their ranks and by their skip connections; the best, the one of skips only and the given marked.

    Raises:
        ValueError: the table has no such accuracies, or a given cell's is not known.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    accuracies = table.column(*asked)
    known = np.flatnonzero(~np.isnan(accuracies))
    skips = (table.cells == SKIP).sum(axis=1)
    dataset, split, epochs = asked
    figure = Figure(figsize=(11, 5.6), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    figure.suptitle(f"NAS-Bench-201 on {dataset}, {split}, after {epochs} epochs: {len(known):,} cells", fontsize=14)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.1))
    for axes, title in ((left, "Accuracy [%] by rank"), (right, "Accuracy [%] by number of skip connections")):
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)

    left.plot(np.arange(1, len(known) + 1), np.sort(accuracies[known])[::-1], color="#0064a8", linewidth=2)
    # the cells that searches find lie close together at the top
    left.set_xscale("log")
    left.set_xlabel("rank")
    left.xaxis.set_major_formatter("{x:,.0f}")

    # where a cell stands beside the others with as many skips is chance, the same in each picture
    shift = np.random.default_rng(0).uniform(-0.34, 0.34, len(table))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(EDGES) + 1))
    for count in range(len(EDGES) + 1):
        group = known[skips[known] == count]
        if len(group):
            shift[group] *= len(group) > 1
            median = np.median(accuracies[group])
            right.plot([count - 0.4, count + 0.4], [median, median], color="black", linewidth=2.2)
    right.scatter((skips + shift)[known], accuracies[known], c=shades[skips[known]], s=5, alpha=0.35, linewidths=0)
    right.plot([], [], color="black", linewidth=2.2, label="median")
    right.set_xticks(range(len(EDGES) + 1))
    right.set_xlim(-0.6, len(EDGES) + 0.6)
    right.set_xlabel("skip connections in the cell, of 6")

    marks = [("best", int(np.nanargmax(accuracies)), "*", _BEST_COLOR, 190)]
    code = codes(operations_of([ALL_SKIP]))[0]
    all_skip = int(table.index_of_code[code])
    if all_skip in known:
        marks.append(("skip connections only", all_skip, "s", _SKIP_COLOR, 60))
    for i, index in enumerate(given):
        style = _GIVEN_MARKERS[i % len(_GIVEN_MARKERS)], _GIVEN_COLORS[i % len(_GIVEN_COLORS)]
        marks.append(("given", index, *style, 75))
    for label, index, marker, shade, size in marks:
        rank, accuracy = table.rank(index, *asked), accuracies[index]
        look: dict[str, Any] = {
            "marker": marker,
            "color": shade,
            "s": size,
            "edgecolors": "white",
            "linewidths": 0.8,
            "zorder": 3,
        }
        text = f"{label}: cell {index}, {accuracy:.2f} %, rank {rank:,}"
        left.scatter(rank, accuracy, label=text, clip_on=False, **look)
        right.scatter(skips[index] + shift[index], accuracy, clip_on=False, **look)
    handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(handles) > 3 else 3, frameon=False)
    return figure


def _build_command(arguments: Any) -> None:
    import cli
    from nasbench201.sources import build

    budgets = {str(epochs): epochs for epochs in EPOCHS}
    # what is no budget goes through as it is: build says so
    epochs = arguments.epochs and [budgets.get(text, text) for text in arguments.epochs]
    table = build(arguments.sources, arguments.out, epochs, arguments.trust, cli.command_line())
    cells = "cells, all of the space" if len(table) == SPACE else f"cells of {SPACE:,}"
    print(f"{arguments.out}: {len(table):,} {cells}, {len(table.columns)} accuracies each")


def _query_command(arguments: Any) -> None:
    import cli

    table = _open(arguments.table)
    with cli.blaming("CELL"):
        found = query(table, find(table, arguments.cell))
    if arguments.json:
        print(json.dumps(found))
    else:
        _print_query(found)


def _best_command(arguments: Any) -> None:
    table = _open(arguments.table)
    asked = _asked(table, arguments)
    # the order of the indices among equals; NaN sorts last
    order = np.argsort(-table.column(*asked), kind="stable")[: arguments.count]
    _print_rows([_row(table, int(index), asked) for index in order], arguments.json)


def _rank_command(arguments: Any) -> None:
    table = _open(arguments.table)
    asked = _asked(table, arguments)
    _print_rows([_row(table, index, asked) for index in _find_all(table, arguments.cells)], arguments.json)


def _plot_command(arguments: Any) -> None:
    import io

    import cli

    table = _open(arguments.table)
    asked = _asked(table, arguments)
    given = _find_all(table, arguments.cells)
    out = Path(arguments.out)
    with cli.blaming("OUT"):
        check_new_file(out)
        if out.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"{out}, expected a name that ends in .png, .svg or .pdf")
    with cli.blaming("CELL"):
        picture = figure(table, asked, given)
    content = io.BytesIO()
    picture.savefig(content, format=out.suffix[1:], dpi=150)
    with cli.blaming("OUT"):
        write_new(out, content.getvalue())
    print(out)


def _open(path: str) -> Table:
    import cli

    with cli.blaming("TABLE"):
        return open_table(path)


def _asked(table: Table, arguments: Any) -> tuple[str, str, int]:
    """The accuracies that the flags name, once it is clear that the table has them."""
    import cli

    asked = arguments.dataset, arguments.split, arguments.epochs
    with cli.blaming("--dataset, --split, --epochs"):
        table.column(*asked)
    return asked


def _find_all(table: Table, cells: Sequence[str]) -> list[int]:
    import cli

    with cli.blaming("CELL"):
        return [find(table, spec) for spec in cells]


COMMANDS: dict[str, tuple[Callable[[Any], None], str]] = {
    "build": (_build_command, "make a table from the official .pth or from CSV files"),
    "query": (_query_command, "all that a table says of a cell"),
    "best": (_best_command, "the best cells"),
    "rank": (_rank_command, "where cells stand among all"),
    "plot": (_plot_command, "a picture of all cells, some of them marked"),
}


def _parser(command: str) -> Any:
    """The parser of a command; the names of what stands without a flag are those in the messages."""
    from jsonargparse.typing import PositiveInt

    import cli

    parser = cli.Parser(prog=f"{PROG} {command}", description=COMMANDS[command][1], allow_abbrev=False)
    cell = "index, string, genotype file or run folder"
    if command == "build":
        help = "the official .pth, or .csv and .csv.gz with a column arch and columns such as cifar10_test, in percent"
        parser.add_argument("sources", metavar="SOURCE", type=str, nargs="+", help=help)
        parser.add_argument("out", metavar="OUT", type=str, help="file to make, such as table.safetensors")
        help = "training budget of each CSV file in turn, 12 or 200 (default: 200)"
        parser.add_argument("--epochs", metavar="N", type=str, nargs="+", help=help)
        help = "read the .pth by full unpickling, which runs any code in it: only from who you trust"
        parser.add_argument("--trust", action="store_true", help=help)
        return parser
    parser.add_argument("table", metavar="TABLE", type=str, help="file that build has made")
    if command == "query":
        parser.add_argument("cell", metavar="CELL", type=str, help=cell)
    elif command == "plot":
        parser.add_argument("out", metavar="OUT", type=str, help="picture to make: .png, .svg or .pdf")
        parser.add_argument("cells", metavar="CELL", type=str, nargs="*", default=[], help=cell)
    elif command == "rank":
        parser.add_argument("cells", metavar="CELL", type=str, nargs="+", help=cell)
    if command != "query":
        parser.add_argument("--dataset", type=Dataset, default="cifar10", help="data set")
        parser.add_argument("--split", type=Split, default="test", help="split of the data set")
        parser.add_argument("--epochs", type=Epochs, default=200, help="training budget")
    if command == "best":
        parser.add_argument("--count", type=PositiveInt, default=10, help="number of cells")
    if command != "plot":
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main() -> None:
    import cli

    parser = cli.Parser(prog=PROG, description=__doc__.splitlines()[0], usage=f"{PROG} COMMAND ...")
    subcommands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for command, (_, help) in COMMANDS.items():
        subparser = _parser(command)
        subcommands.add_subcommand(command, subparser, help=help)
        subparser.prog = f"{PROG} {command}"
    given = parser.parse_args()
    with cli.blaming(given.command):
        COMMANDS[given.command][0](given[given.command])


if __name__ == "__main__":
    import cli

    cli.run(main, PROG)
