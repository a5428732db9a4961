"""Draw several searches side by side: the same curves of each, seeds of one search in one color.

python analysis/compare.py runs/darts/seed-* runs/lambda-darts/seed-* --out compare.png
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import cli
from analysis.curves import Course, dress, load_course, title
from cli import InputError

PROG = "compare.py"
#: colors of the groups: Okabe and Ito's, for any color vision
SHADES = ("#0064a8", "#d55e00", "#007f5c", "#9a4c86", "#9c6b00", "#3a5a78", "#56b4e9", "#000000")
#: title -> column of metrics.csv, a prefix where it has one for each kind of cell, and what it is multiplied by
PANELS = {
    "Layer alignment Λ (valid)": ("valid_alignment", 1),
    "Skip connections": ("skip_connect", 1),
    "Accuracy of the supernet (train) [%]": ("train_accuracy", 100),
    "Accuracy of the supernet (valid) [%]": ("valid_accuracy", 100),
    "Entropy of p [nats]": ("entropy", 1),
    "The cell's test accuracy in the table [%]": ("table_test_accuracy", 1),
}


def grouped(courses: list[Course]) -> dict[str, list[Course]]:
    """The courses by their titles, which leave out the seed and what all have in common."""
    groups: dict[str, list[Course]] = {}
    for course in courses:
        groups.setdefault(title(course.config, seed=False), []).append(course)
    heads = {name.partition(": ")[0] for name in groups}
    if len(heads) == 1:
        groups = {name.partition(": ")[2]: members for name, members in groups.items()}
    return groups


def compare_figure(courses: list[Course]) -> Figure:
    """A panel for each quantity that a course has: its mean over the seeds, and each seed as a thin line."""
    groups = grouped(courses)
    names = {name for course in courses for name in course.metrics.dtype.names}
    panels = {
        text: (column, scale)
        for text, (column, scale) in PANELS.items()
        if any(name.startswith(column) for name in names)
    }
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(13, 3.4 * rows + 0.7), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    for axes, (text, (column, scale)) in zip(
        figure.subplots(rows, 3, squeeze=False).flat, panels.items(), strict=False
    ):
        dress(axes, text)
        for shade, (name, members) in zip(SHADES, groups.items(), strict=False):
            curves = [scale * _column(member.metrics, column) for member in members]
            shortest = min(map(len, curves))
            epochs = np.arange(1, shortest + 1)
            for curve in curves:
                axes.plot(np.arange(1, len(curve) + 1), curve, color=shade, linewidth=0.8, alpha=0.4)
            axes.plot(epochs, np.mean([c[:shortest] for c in curves], axis=0), color=shade, linewidth=2.2, label=name)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    counts = [f"{label} ({len(groups[label])} seed{'s' if len(groups[label]) > 1 else ''})" for label in labels]
    figure.legend(handles, counts, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _column(metrics: np.ndarray, column: str) -> np.ndarray:
    """A column, or the sum of those of each kind of cell that begin with its name; nan where it was not measured."""
    names = [name for name in metrics.dtype.names if name.startswith(column)]
    return sum(metrics[name] for name in names) if names else np.full(len(metrics), np.nan)


def main() -> None:
    parser = cli.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=str, nargs="+", help="run folders of searches, any number of each kind")
    parser.add_argument("--out", type=str, default="compare.png", metavar="PNG", help="picture to write")
    arguments = parser.parse_args()
    with cli.blaming("runs"):
        courses = [load_course(Path(run)) for run in arguments.runs]
    if len(grouped(courses)) > len(SHADES):
        raise InputError(f"runs: {len(grouped(courses))} different searches, expected {len(SHADES)} at most")
    with cli.blaming("--out"):
        compare_figure(courses).savefig(arguments.out, dpi=150)
    print(arguments.out)


if __name__ == "__main__":
    cli.run(main, PROG)
