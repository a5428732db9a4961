"""Draw the training curves of a search or a retraining, and save them as curves.png in its run folder.

python analysis/curves.py runs/search-...
python analysis/curves.py runs/imagenet
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.colors import METHODS
from analysis.draw import color
from genotypes import cell_label
from lib import cli, options
from lib.files import read_yaml, write_atomically
from nasbench201.cells import TITLES, table_dataset

if TYPE_CHECKING:
    import pandas as pd

PROG = "curves.py"
#: color of the first curve, unless the method has a color; color of the other curves, which are dashed and dotted
FIRST, OTHERS = "#0064a8", "#000000"
#: settings that the title shows if the user set them
IN_TITLE = ("relaxation", "auxiliary_skip", "hypergradient", "alpha_reg", "selection", "reg", "lambda_", "derivatives")


class Panel(NamedTuple):
    """Up to three columns of metrics.csv over the epochs."""

    title: str
    columns: dict[str, str]  # label of the curve -> column
    scale: float = 1
    logarithmic: bool = False
    integer: bool = False  # ticks at whole numbers
    outliers: bool = True  # if False, cut off values far below the others


LOSS = Panel("Loss", {"train": "train_loss", "valid": "valid_loss"})
ACCURACY = Panel("Accuracy [%]", {"train": "train_accuracy", "valid": "valid_accuracy"}, scale=100, outliers=False)
ALIGNMENT = Panel("Layer alignment Λ", {"train": "train_alignment", "valid": "valid_alignment"})
GRADIENTS = Panel(
    "Norm of the gradient in w",
    {"loss": "loss_gradient_norm", "regularizer": "regularizer_gradient_norm"},
    logarithmic=True,
)
#: panels of a retraining
LOSS_TEST = Panel("Loss", {"train": "train_loss", "test": "test_loss"})
ACCURACY_TEST = Panel("Accuracy [%]", {"train": "train_accuracy", "test": "test_accuracy"}, scale=100, outliers=False)
TOP5 = Panel("Top-5 accuracy [%]", {"train": "train_top5", "test": "test_top5"}, scale=100, outliers=False)
LEARNING_RATE = Panel("Learning rate", {"learning rate": "learning_rate"})
#: panels that only some methods and spaces have; {table} is the data set whose accuracies NAS-Bench-201 gives
METHOD_PANELS = (
    Panel("Weight β of the auxiliary skip", {"β": "skip_beta"}),
    Panel(
        "Norm of the gradient in α",
        {"direct": "direct_gradient_norm", "indirect": "indirect_gradient_norm"},
        logarithmic=True,
    ),
    Panel("Residual of the Neumann series", {"residual": "neumann_residual"}, logarithmic=True),
    Panel("Regularizer of α", {"regularizer": "alpha_regularizer"}),
    Panel(
        "{table} accuracy in NAS-Bench-201 [%]",
        {
            "test": "table_test_accuracy",
            "valid": "table_valid_accuracy",
            "valid (12 epochs)": "table_valid_accuracy_12",
        },
        outliers=False,
    ),
    Panel("{table} rank, of 15,625 cells", {"rank": "table_rank"}, logarithmic=True),
    Panel("{table} regret [points]", {"regret": "table_regret"}),
)


def _by_kind(title: str, column: str, kinds: Iterable[str], scale: float = 1, integer: bool = False) -> Panel:
    """A panel with a curve for each kind of cell."""
    return Panel(title, {kind: f"{column}_{kind}" for kind in kinds}, scale, integer=integer)


class Course(NamedTuple):
    """The settings and measurements in the run folder of a search."""

    config: dict[str, Any]
    metrics: "pd.DataFrame"  # metrics.csv, a row for each epoch; nan if not measured
    #: kind of cell -> operation -> its mixing weight before the first epoch and after each epoch, (epochs + 1,),
    #: averaged over the edges that have this candidate
    mixing: dict[str, dict[str, np.ndarray]]


def require(run: Path, *names: str) -> None:
    """Raise a ValueError if the folder lacks one of the files."""
    for name in names:
        if not (run / name).is_file():
            raise ValueError(f"{run} has no {name}; expected the folder of a run with a finished epoch")


def read_columns(path: Path) -> "pd.DataFrame":
    """Read a CSV file of numbers. Empty fields become nan.

    Raises:
        ValueError: The file is not a table of numbers, or has no rows.
        OSError: The file cannot be read.
    """
    import pandas as pd  # imported here, so that --help and training start faster

    try:
        columns = pd.read_csv(path, dtype=float, index_col=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if columns.empty:
        raise ValueError(f"{path} has no rows; expected at least one")
    return columns


def load_course(run: Path) -> Course:
    """Read config.yaml, metrics.csv and alphas.npz of the run folder of a search.

    Raises:
        ValueError: A file is missing or cannot be parsed.
        OSError: A file cannot be read.
    """
    require(run, "config.yaml", "metrics.csv", "alphas.npz")
    config, mixing = read_yaml(run / "config.yaml"), {}
    with np.load(run / "alphas.npz") as alphas:
        for kind in (name for name in alphas if not name.endswith("_operations")):
            weights, names = _mixing_weights(alphas[kind], config["relaxation"]), alphas[f"{kind}_operations"]
            mixing[kind] = {name: weights[:, names == name].mean(axis=1) for name in dict.fromkeys(names.flat) if name}
    return Course(config, read_columns(run / "metrics.csv"), mixing)


def _mixing_weights(alpha: np.ndarray, relaxation: str) -> np.ndarray:
    """`architect.relax` in NumPy."""
    total = np.logaddexp(0, alpha) if relaxation == "sigmoid" else np.logaddexp.reduce(alpha, axis=-1, keepdims=True)
    return np.exp(alpha - total)


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format that the suffix of the path names (one of `lib.files.PICTURES`).

    Raises:
        OSError: The file cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format=path.suffix[1:])
    write_atomically(path, content.getvalue())


def plot_search(run: Path) -> None:
    """Write curves.png to the run folder of a search. Raises the errors of `load_course`."""
    save(search_figure(load_course(run)), run / "curves.png")


def plot_retraining(run: Path) -> None:
    """Write curves.png to the run folder of a retraining.

    Raises:
        ValueError: A file is missing or cannot be parsed.
        OSError: A file cannot be read or written.
    """
    require(run, "config.yaml", "metrics.csv")
    metrics, config = read_columns(run / "metrics.csv"), read_yaml(run / "config.yaml")
    panels = [LOSS_TEST, ACCURACY_TEST, *([TOP5] if "test_top5" in metrics else []), LEARNING_RATE]
    figure = make_figure(4 * len(panels), 3.6)
    dataset = config.get("dataset", Path(config["data"]).name)
    heading = f"Retraining of {cell_label(config['arch'])} on {dataset}, seed {config['seed']}"
    figure.suptitle(heading, fontsize=14, parse_math=False)
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _plot_panel(axes, panel, metrics, FIRST)
    save(figure, run / "curves.png")


def make_figure(width: float, height: float) -> Figure:
    """An empty figure with space between its panels. Sizes are in inches."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))


def search_figure(course: Course) -> Figure:
    """A figure of nine panels of training, gradients and architecture, and of rows with the method's own panels."""
    config, metrics = course.config, course.metrics
    shade = METHODS.get(config["method"], (FIRST,))[0]
    kinds = course.mixing.keys()
    gates = _by_kind("Gates over the threshold [%]", "gates_over_threshold", kinds, scale=100)
    table = looked_up(config)
    own = [
        panel._replace(title=panel.title.format(table=table))
        for panel in (*METHOD_PANELS, gates)
        if set(panel.columns.values()) & set(metrics)
    ]
    extra = -(-len(own) // 3)
    figure = make_figure(12, 9.6 + 2.9 * extra)
    heading = title(config)
    figure.suptitle(heading, fontsize=min(15, 1500 / len(heading)), parse_math=False)
    grid = figure.add_gridspec(3 + extra, 6)

    def row(index: int, count: int = 3) -> list[Axes]:
        width = 6 // count
        return [figure.add_subplot(grid[index, width * i : width * (i + 1)]) for i in range(count)]

    loss, accuracy, alignment = row(0)
    layers, gradients, entropy = row(1)
    skips, *mixing = row(2 + extra, 1 + len(kinds))

    _plot_panel(loss, LOSS, metrics, shade)
    _plot_panel(accuracy, ACCURACY, metrics, shade)
    _plot_panel(alignment, ALIGNMENT, metrics, shade)
    _plot_layers(layers, metrics)
    _plot_panel(gradients, GRADIENTS, metrics, shade)
    name = "Entropy of the gates [nats]" if config["relaxation"] == "sigmoid" else "Entropy of p [nats]"
    _plot_panel(entropy, _by_kind(name, "entropy", kinds), metrics, shade)
    _plot_panel(skips, _by_kind("Skip connections", "skip_connect", kinds, integer=True), metrics, shade)
    skips.set_ylim(bottom=-0.3)
    for axes, kind in zip(mixing, kinds, strict=True):
        plot_mixing(axes, "Mixing weights p" + (f", {kind} cell" if len(kinds) > 1 else ""), course.mixing[kind])
    for index in range(extra):
        panels = own[index::extra]
        for axes, panel in zip(row(2 + index, len(panels)), panels, strict=True):
            _plot_panel(axes, panel, metrics, shade)
    handles = {line.get_label(): line for axes in mixing for line in axes.lines}
    figure.legend(handles=handles.values(), loc="outside lower right", ncols=len(handles), frameon=False)
    return figure


def title(config: dict[str, Any], seed: bool = True) -> str:
    """A title with the data set, the space, the method, the settings that the user set, and the seed.

    Args:
        config: The content of config.yaml.
        seed: Add the seed.
    """
    sources = config["provenance"]["settings_from"]
    given = {name for source in ("command line", "config file") for name in sources.get(source, [])}
    shown = [f"{name} {config[name]}" for name in IN_TITLE if name in given]
    shown = ["released code", *shown] if config["released"] else shown
    search = f"Search on {config['dataset']}, space {config['space']}: {config['method']}"
    return ", ".join([search, *shown, *([f"seed {config['seed']}"] if seed else [])])


def looked_up(config: dict[str, Any]) -> str:
    """The data set whose accuracies a search looked up in NAS-Bench-201. The search itself may use another one."""
    return TITLES[table_dataset(config.get("table_dataset", "auto"), config["dataset"])]


def set_up_panel(axes: Axes, title: str) -> None:
    """Set the title, the grid and the epoch axis of a panel."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_xlabel("epoch", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)


def number(value: float, spec: str = "g") -> str:
    """Format a number with a typographic minus sign."""
    return f"{value:{spec}}".replace("-", "−")


def leave_out_outliers(axes: Axes) -> bool:
    """Cut off values far below the others. Triangles at the bottom of the axis mark them. True if there are any.

    Values are cut off if they are below the last value of every curve, and more than 1.5 interquartile ranges below the
    first quartile (Tukey's fence).
    """
    curves = [np.asarray(line.get_xydata(), dtype=float) for line in axes.lines]
    values = np.array([value for curve in curves for value in curve[:, 1]])
    values = values[np.isfinite(values)]
    if not len(values):
        return False
    first, third = np.quantile(values, (0.25, 0.75))
    last = [curve[-1, 1] for curve in curves if np.isfinite(curve[-1:, 1]).any()]
    kept = values[values >= min([first - 1.5 * (third - first), *last])]
    if len(kept) == len(values):
        return False
    margin = 0.05 * (kept.max() - kept.min()) or 1
    foot = kept.min() - margin
    for curve, line in zip(curves, list(axes.lines), strict=True):
        below = curve[curve[:, 1] < foot, 0]
        if len(below):
            style: dict[str, Any] = {"color": line.get_color(), "alpha": line.get_alpha(), "gid": line.get_gid()}
            style |= {"linestyle": "", "markersize": 4, "clip_on": False, "label": "_below"}
            axes.plot(below, np.full(len(below), foot), "v", **style)
    axes.set_ylim(foot, kept.max() + margin)
    return True


def _curve(axes: Axes, epochs: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """Draw a curve. With fewer than 20 epochs it has markers, so that a single epoch is visible."""
    axes.plot(epochs, values, marker="o" if len(epochs) < 20 else None, markersize=4, linewidth=1.8, **style)


def _plot_panel(axes: Axes, panel: Panel, metrics: "pd.DataFrame", shade: str) -> None:
    """Draw the measured columns of a panel, with a legend if the panel has several columns."""
    set_up_panel(axes, panel.title)
    if panel.integer:
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    measured = {label: column for label, column in panel.columns.items() if column in metrics}
    styles = ((shade, "-"), (OTHERS, "--"), (OTHERS, ":"))
    for (paint, style), (label, column) in zip(styles, measured.items(), strict=False):
        values = panel.scale * metrics[column].to_numpy()
        if not np.isnan(values).all():
            _curve(axes, metrics["epoch"].to_numpy(), values, label=label, color=paint, linestyle=style)
    if panel.logarithmic:
        axes.set_yscale("log")
    if not axes.lines:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="gray")
    elif len(panel.columns) > 1:
        _legend(axes, axes.lines, [str(line.get_label()) for line in axes.lines])
    if not panel.outliers:
        leave_out_outliers(axes)


def plot_mixing(axes: Axes, title: str, mixing: Mapping[str, np.ndarray]) -> None:
    """Draw the mixing weight of each operation before the first epoch and after each epoch."""
    set_up_panel(axes, title)
    for operation, weights in mixing.items():
        style = "--" if operation.endswith("5x5") else "-"
        _curve(axes, np.arange(len(weights)), weights, label=operation, color=color(operation), linestyle=style)


def _plot_layers(axes: Axes, metrics: "pd.DataFrame") -> None:
    """Draw the norm of each layer's gradient dL/dp_l, from the first layer (dark) to the last (light)."""
    set_up_panel(axes, "|dL/dp| of the layers")
    columns = [name for name in metrics if name.startswith("gradient_norm_layer_")]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(columns)))
    for column, shade in zip(columns, shades, strict=True):
        _curve(axes, metrics["epoch"].to_numpy(), metrics[column].to_numpy(), color=shade)
    axes.set_yscale("log")
    _legend(axes, [axes.lines[0], axes.lines[-1]], ["first", "last"])


def _legend(axes: Axes, lines: Sequence[Line2D], labels: Sequence[str]) -> None:
    """Add a legend below the axis, next to the axis label, so that it covers no curve."""
    style: dict[str, Any] = {"handlelength": 1.6, "columnspacing": 1.2, "frameon": False, "borderpad": 0}
    style |= {"borderaxespad": 0, "bbox_to_anchor": (1, -0.15), "ncols": len(labels)}
    axes.legend(lines, labels, fontsize=9, loc="upper right", **style)


def main() -> None:
    parser = options.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument("run", type=str, help="Run folder of a search or a retraining.")
    run = Path(parser.parse_args().run)
    with cli.blaming("run"):
        (plot_search if (run / "alphas.npz").exists() else plot_retraining)(run)
    print(run / "curves.png")


if __name__ == "__main__":
    cli.run(main, PROG)
