"""Draw the course of a search or of a retraining: curves.png of its run folder.

python analysis/curves.py runs/search-...
python analysis/curves.py runs/imagenet
"""

import io
import math
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

import cli
from analysis.draw import color
from files import read_yaml
from parsing import open_csv
from search.settings import method_settings
from spaces import SPACES

PROG = "curves.py"
#: of two curves in a panel, the first and the second; told apart with any color vision
PAIR = ("#0064a8", "#d55e00")
#: how the title names a setting that is not the method's own
SWITCHES = {
    "relaxation": "{}",
    "auxiliary_skip": "auxiliary {}",
    "hypergradient": "{} hypergradient",
    "alpha_reg": "{}",
    "selection": "{}",
}


class Panel(NamedTuple):
    """One or two columns of metrics.csv over the epochs."""

    title: str
    columns: dict[str, str]  # label of the curve -> column
    scale: float = 1
    logarithmic: bool = False


LOSS = Panel("Loss", {"train": "train_loss", "valid": "valid_loss"})
ACCURACY = Panel("Accuracy [%]", {"train": "train_accuracy", "valid": "valid_accuracy"}, scale=100)
ALIGNMENT = Panel("Layer alignment Λ", {"train": "train_alignment", "valid": "valid_alignment"})
GRADIENTS = Panel(
    "Norm of the gradient in w",
    {"loss": "loss_gradient_norm", "regularizer": "regularizer_gradient_norm"},
    logarithmic=True,
)
#: of a retraining
LOSS_TEST = Panel("Loss", {"train": "train_loss", "test": "test_loss"})
ACCURACY_TEST = Panel("Accuracy [%]", {"train": "train_accuracy", "test": "test_accuracy"}, scale=100)
TOP5 = Panel("Label among the first five [%]", {"train": "train_top5", "test": "test_top5"}, scale=100)
LEARNING_RATE = Panel("Learning rate", {"learning rate": "learning_rate"})
#: what only some methods and spaces measure
OWN = (
    Panel("Weight β of the auxiliary skip", {"β": "skip_beta"}),
    Panel(
        "Norm of the gradient in α",
        {"direct": "direct_gradient_norm", "indirect": "indirect_gradient_norm"},
        logarithmic=True,
    ),
    Panel("Residual of the Neumann series", {"residual": "neumann_residual"}, logarithmic=True),
    Panel("Regularizer of α", {"regularizer": "alpha_regularizer"}),
    Panel(
        "The cell's accuracy in the table [%]",
        {
            "test": "table_test_accuracy",
            "valid": "table_valid_accuracy",
            "valid, after 12 epochs": "table_valid_accuracy_12",
        },
    ),
    Panel("The cell's rank of 15,625", {"rank": "table_rank"}, logarithmic=True),
    Panel("Regret to the best cell [points]", {"regret": "table_regret"}),
)


def _by_kind(title: str, column: str, kinds: Iterable[str], scale: float = 1) -> Panel:
    """A curve for each kind of cell."""
    return Panel(title, {kind: f"{column}_{kind}" for kind in kinds}, scale)


class Course(NamedTuple):
    """What a run folder says of its search."""

    config: dict[str, Any]
    metrics: np.ndarray  # a record for each epoch, its fields the columns of metrics.csv; nan where not measured
    #: kind of cell -> operation -> its mixing weight before the first and after each epoch, (epochs + 1,):
    #: the mean over those edges that have the operation among their candidates
    mixing: dict[str, dict[str, np.ndarray]]


def require(run: Path, *names: str) -> None:
    """Refuse a folder that lacks a file of a run: ValueError."""
    for name in names:
        if not (run / name).is_file():
            raise ValueError(f"{run} has no {name}; expected the folder of a run, its first epoch done")


def read_columns(path: Path) -> np.ndarray:
    """A CSV file of numbers as records, one field a column; nan where a cell is empty.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    rows = []
    with open_csv(path) as reader:
        head = next(reader, [])
        for row in reader:
            if len(row) != len(head):
                raise ValueError(f"line {reader.line_num}: {len(row)} cells, expected {len(head)}")
            rows.append(tuple(float(cell) if cell else math.nan for cell in row))
        if not rows:
            raise ValueError("no rows")
        return np.array(rows, dtype=[(name, float) for name in head])


def _read_alphas(path: Path, kind: str) -> np.ndarray:
    """The alphas of a kind of cell, (epochs + 1, edges, operations): an array of alphas.npz."""
    with zipfile.ZipFile(path) as file:
        content = file.read(f"{kind}.npy")  # checks the member's CRC, which NumPy does only after it parses the header
    return np.load(io.BytesIO(content), allow_pickle=False)


def load_course(run: Path, config: dict[str, Any] | None = None) -> Course:
    """Read metrics.csv, alphas.npz and config.yaml of a run folder.

    Args:
        config: the content of config.yaml, where it is known already.

    Raises:
        ValueError: it is no run folder of a search, or a file of it is damaged.
        OSError: a file cannot be read.
    """
    require(run, "config.yaml", "metrics.csv", "alphas.npz")
    try:
        config = read_yaml(run / "config.yaml") if config is None else config
        title(config)
        metrics = read_columns(run / "metrics.csv")
        missing = {"epoch", "train_loss", "gradient_norm_layer_0"} - set(metrics.dtype.names)
        if missing:
            raise ValueError(f"metrics.csv has no {', '.join(sorted(missing))}")
        mixing = {}
        for kind, candidates in SPACES[config["space"]].cells.items():
            weights = _mixing_weights(_read_alphas(run / "alphas.npz", kind), config.get("relaxation", "softmax"))
            names = np.array(candidates)
            mixing[kind] = {name: weights[:, names == name].mean(axis=1) for name in dict.fromkeys(names.flat)}
    # A damaged zip file can also look encrypted or packed in an unknown way: RuntimeError.
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{run} is not as a search leaves it: {' '.join(str(error).split())}") from error
    return Course(config, metrics, mixing)


def _mixing_weights(alpha: np.ndarray, relaxation: str) -> np.ndarray:
    """As architect.relax, without torch."""
    total = np.logaddexp(0, alpha) if relaxation == "sigmoid" else np.logaddexp.reduce(alpha, axis=-1, keepdims=True)
    return np.exp(alpha - total)


def plot_search(run: Path) -> None:
    """Write curves.png to the folder of a search.

    Raises:
        ValueError: it is no run folder of a search, or a file of it is damaged.
        OSError: a file cannot be read or written.
    """
    search_figure(load_course(run)).savefig(run / "curves.png", dpi=150)


def plot_retraining(run: Path) -> None:
    """Write curves.png to the folder of a retraining.

    Raises:
        ValueError: it is no run folder of a retraining, or a file of it is damaged.
        OSError: a file cannot be read or written.
    """
    require(run, "config.yaml", "metrics.csv")
    try:
        metrics = read_columns(run / "metrics.csv")
        config = read_yaml(run / "config.yaml")
        missing = {"epoch", "learning_rate", *LOSS_TEST.columns.values()} - set(metrics.dtype.names)
        if missing:
            raise ValueError(f"metrics.csv has no {', '.join(sorted(missing))}")
        heading = f"Retraining of {config['arch']} on {config.get('dataset', Path(config['data']).name)}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{run} is not as a retraining leaves it: {' '.join(str(error).split())}") from error
    panels = [LOSS_TEST, ACCURACY_TEST, *([TOP5] if "test_top5" in metrics.dtype.names else []), LEARNING_RATE]
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    figure.suptitle(f"{heading}, seed {config['seed']}", fontsize=14, parse_math=False)
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _plot_panel(axes, panel, metrics)
    figure.savefig(run / "curves.png", dpi=150)


def search_figure(course: Course) -> Figure:
    """Nine panels: what a search learned, how its gradients stood, and what became of the architecture.

    What only its method measures comes in further rows, above the last.
    """
    config, metrics = course.config, course.metrics
    space = SPACES[config["space"]]
    gates = _by_kind("Gates over the threshold [%]", "gates_over_threshold", space.cells, scale=100)
    own = [panel for panel in (*OWN, gates) if set(panel.columns.values()) & set(metrics.dtype.names)]
    extra = -(-len(own) // 3)
    figure = Figure(figsize=(12, 9.6 + 2.9 * extra), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    heading = title(config)
    figure.suptitle(heading, fontsize=min(15, 1500 / len(heading)), parse_math=False)
    grid = figure.add_gridspec(3 + extra, 6)

    def row(index: int, count: int = 3) -> list[Axes]:
        width = 6 // count
        return [figure.add_subplot(grid[index, width * i : width * (i + 1)]) for i in range(count)]

    loss, accuracy, alignment = row(0)
    layers, gradients, entropy = row(1)
    skips, *mixing = row(2 + extra, 1 + len(space.cells))

    _plot_panel(loss, LOSS, metrics)
    _plot_panel(accuracy, ACCURACY, metrics)
    _plot_panel(alignment, ALIGNMENT, metrics)
    _plot_layers(layers, metrics)
    _plot_panel(gradients, GRADIENTS, metrics)
    name = "Entropy of the gates [nats]" if config.get("relaxation") == "sigmoid" else "Entropy of p [nats]"
    _plot_panel(entropy, _by_kind(name, "entropy", space.cells), metrics)
    # under a threshold a cell has any number of edges
    free = str(config.get("selection", "argmax")).startswith("threshold")
    name = "Skip connections" if free else f"Skip connections (of {space.derived_edges})"
    skip_panel = _by_kind(name, "skip_connect", space.cells)
    _plot_panel(skips, skip_panel, metrics)
    most = max(metrics[column].max() for column in skip_panel.columns.values())
    skips.set_ylim(-0.3, max(space.derived_edges, most) + 0.3)
    for axes, kind in zip(mixing, space.cells, strict=True):
        dress(axes, "Mixing weights p" + (f", {kind} cell" if len(space.cells) > 1 else ""))
        for operation, weights in course.mixing[kind].items():
            style = "--" if operation.endswith("5x5") else "-"
            _curve(axes, np.arange(len(weights)), weights, label=operation, color=color(operation), linestyle=style)
    for index in range(extra):
        panels = own[index::extra]
        for axes, panel in zip(row(2 + index, len(panels)), panels, strict=True):
            _plot_panel(axes, panel, metrics)
    handles = {line.get_label(): line for axes in mixing for line in axes.lines}
    figure.legend(handles=handles.values(), loc="outside lower right", ncols=len(handles), frameon=False)
    return figure


def title(config: dict[str, Any], seed: bool = True) -> str:
    """The data, the method, what is combined with it, and the seed; a run older than a setting has DARTS's."""
    method = config.get("method", "darts")
    usual = method_settings(method, space=config["space"])
    values = {name: config.get(name, getattr(usual, name)) for name in SWITCHES}
    combined = [
        f"no {name}" if value == "none" else SWITCHES[name].format(value)
        for name, value in values.items()
        if value != getattr(usual, name)
    ]
    if config["reg"] != "none":
        combined += [config["reg"], f"λ = {config['lambda_']:g}"]
    elif usual.reg != "none":
        combined.append("no regularizer")
    search = f"Search on {config['dataset']}, space {config['space']}: {method}"
    parts = [f"{search} with {combined[0]}" if combined else search, *combined[1:]]
    return ", ".join([*parts, f"seed {config['seed']}"] if seed else parts)


def dress(axes: Axes, title: str) -> None:
    """The look of all panels."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _curve(axes: Axes, epochs: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """A line, with markers where the epochs are few: a single one shows too."""
    axes.plot(epochs, values, marker="o" if len(epochs) < 20 else None, markersize=4, linewidth=1.8, **style)


def _plot_panel(axes: Axes, panel: Panel, metrics: np.ndarray) -> None:
    """A column never measured is left out; a lone one needs no legend."""
    dress(axes, panel.title)
    measured = {label: column for label, column in panel.columns.items() if column in metrics.dtype.names}
    for shade, style, (label, column) in zip(PAIR, ("-", "--"), measured.items(), strict=False):
        values = panel.scale * metrics[column]
        if not np.isnan(values).all():
            _curve(axes, metrics["epoch"], values, label=label, color=shade, linestyle=style)
    if panel.logarithmic:
        _logarithmic(axes)
    if not axes.lines:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="gray")
    elif len(panel.columns) > 1:
        axes.legend(frameon=False)


def _plot_layers(axes: Axes, metrics: np.ndarray) -> None:
    """The norm of each layer's gradient dL/dp_l, from the first layer (dark) to the last (light)."""
    dress(axes, "|dL/dp| of the layers")
    columns = [name for name in metrics.dtype.names if name.startswith("gradient_norm_layer_")]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(columns)))
    for column, shade in zip(columns, shades, strict=True):
        _curve(axes, metrics["epoch"], metrics[column], color=shade)
    _logarithmic(axes)
    axes.legend(
        [axes.lines[0], axes.lines[-1]],
        ["first", "last"],
        loc="lower right",
        bbox_to_anchor=(1.02, 1),
        ncols=2,
        handlelength=1.2,
        columnspacing=1.2,
        frameon=False,
        borderpad=0,
    )


def main() -> None:
    parser = cli.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument("run", type=str, help="a run folder of a search or of a retraining")
    run = Path(parser.parse_args().run)
    with cli.blaming("run"):
        (plot_search if (run / "alphas.npz").exists() else plot_retraining)(run)
    print(run / "curves.png")


if __name__ == "__main__":
    cli.run(main, PROG)
