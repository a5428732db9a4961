"""Draw the course of a search: curves.png of its run folder.

python analysis/curves.py runs/search-...
"""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

import cli
from analysis.draw import color
from spaces import SPACES

PROG = "curves.py"
KINDS = ("normal", "reduce")
#: of two curves in a panel, the first and the second; told apart with any color vision
PAIR = ("#0064a8", "#d55e00")


class Course(NamedTuple):
    """What a run folder says of its search."""

    config: dict[str, Any]
    metrics: np.ndarray  # a record for each epoch, its fields the columns of metrics.csv; nan where not measured
    #: kind of cell -> operation -> its mixing weight before the first and after each epoch, (epochs + 1,):
    #: the mean over those edges that have the operation among their candidates
    mixing: dict[str, dict[str, np.ndarray]]


def load_course(run: Path) -> Course:
    """Read metrics.csv, alphas.npz and config.yaml of a run folder.

    Raises:
        ValueError: it is no run folder of a search, or a file of it is damaged.
        OSError: a file cannot be read.
    """
    for name in ("config.yaml", "metrics.csv", "alphas.npz"):
        if not (run / name).is_file():
            raise ValueError(f"{run} has no {name}; expected the folder of a search, its first epoch done")
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        metrics = np.atleast_1d(np.genfromtxt(run / "metrics.csv", delimiter=",", names=True))
        mixing = {}
        with np.load(run / "alphas.npz") as alphas:
            for kind, candidates in SPACES[config["space"]]._asdict().items():
                exponentials = np.exp(alphas[kind] - alphas[kind].max(axis=-1, keepdims=True))
                weights = exponentials / exponentials.sum(axis=-1, keepdims=True)  # (epochs + 1, edges, operations)
                names = np.array(candidates)
                mixing[kind] = {name: weights[:, names == name].mean(axis=1) for name in dict.fromkeys(names.flat)}
    except (ValueError, LookupError, TypeError, EOFError, yaml.YAMLError, zipfile.BadZipFile) as error:
        raise ValueError(f"{run} is not as a search leaves it: {' '.join(str(error).split())}") from error
    return Course(config, metrics, mixing)


def plot_search(run: Path) -> None:
    """Write curves.png to the folder of a search.

    Raises:
        ValueError: it is no run folder of a search, or a file of it is damaged.
        OSError: a file cannot be read or written.
    """
    search_figure(load_course(run)).savefig(run / "curves.png", dpi=150)


def search_figure(course: Course) -> Figure:
    """The nine panels of a search: what it learned, how its gradients stood, and what became of the architecture."""
    config, metrics = course.config, course.metrics
    figure = Figure(figsize=(12, 9.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    regularizer = "no regularizer" if config["reg"] == "none" else f"{config['reg']} with λ = {config['lambda_']:g}"
    title = f"Search on {config['dataset']}, space {config['space']}, {regularizer}, seed {config['seed']}"
    figure.suptitle(title, fontsize=15)
    loss, accuracy, alignment, layers, gradients, entropy, skips, *mixing = figure.subplots(3, 3).flat

    _plot_columns(loss, "Loss", metrics, {"train": "train_loss", "valid": "valid_loss"})
    _plot_columns(accuracy, "Accuracy [%]", metrics, {"train": "train_accuracy", "valid": "valid_accuracy"}, scale=100)
    _plot_columns(alignment, "Layer alignment Λ", metrics, {"train": "train_alignment", "valid": "valid_alignment"})
    _plot_layers(layers, metrics)
    norms = {"loss": "loss_gradient_norm", "regularizer": "regularizer_gradient_norm"}
    _plot_columns(gradients, "Norm of the gradient in w", metrics, norms)
    _logarithmic(gradients)
    _plot_columns(entropy, "Entropy of p [nats]", metrics, {kind: f"entropy_{kind}" for kind in KINDS})
    _plot_columns(skips, "Skip connections (of 8)", metrics, {kind: f"skip_connect_{kind}" for kind in KINDS})
    skips.set_ylim(-0.3, 8.3)
    for axes, kind in zip(mixing, KINDS, strict=True):
        _dress(axes, f"Mixing weights p, {kind} cell")
        for operation, weights in course.mixing[kind].items():
            style = "--" if operation.endswith("5x5") else "-"
            _curve(axes, np.arange(len(weights)), weights, label=operation, color=color(operation), linestyle=style)
    handles = {line.get_label(): line for axes in mixing for line in axes.lines}
    figure.legend(handles=handles.values(), loc="outside lower right", ncols=len(handles), frameon=False)
    return figure


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _curve(axes: Axes, epochs: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """A line, with markers where the epochs are few: a single one shows too."""
    axes.plot(epochs, values, marker="o" if len(epochs) < 20 else None, markersize=4, linewidth=1.8, **style)


def _plot_columns(axes: Axes, title: str, metrics: np.ndarray, columns: dict[str, str], scale: float = 1) -> None:
    """A pair of columns of the metrics, by label; one never measured is left out."""
    _dress(axes, title)
    for shade, style, (label, column) in zip(PAIR, ("-", "--"), columns.items(), strict=True):
        if not np.isnan(metrics[column]).all():
            _curve(axes, metrics["epoch"], scale * metrics[column], label=label, color=shade, linestyle=style)
    if axes.lines:
        axes.legend(frameon=False)
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="gray")


def _plot_layers(axes: Axes, metrics: np.ndarray) -> None:
    """The norm of each layer's gradient dL/dp_l, from the first layer (dark) to the last (light)."""
    _dress(axes, "|dL/dp| of the layers")
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
    parser.add_argument("run", type=str, help="a run folder of search/train_search.py")
    run = Path(parser.parse_args().run)
    with cli.blaming("run"):
        plot_search(run)
    print(run / "curves.png")


if __name__ == "__main__":
    cli.run(main, PROG)
