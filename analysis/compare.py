"""Draw several searches side by side: the same curves of each, seeds of one search in one color.

python analysis/compare.py runs/darts runs/lambda-darts --out compare.png
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import cli
from analysis.curves import Course, dress, load_course, title
from cli import InputError
from files import check_new_file

PROG = "compare.py"
#: colors of the groups: Okabe and Ito's, for any color vision
SHADES = ("#0064a8", "#d55e00", "#007f5c", "#9a4c86", "#9c6b00", "#3a5a78", "#56b4e9", "#000000")
#: title -> column of metrics.csv or what those of the kinds of cells begin with, a factor, and how kinds are joined
PANELS = {
    "Layer alignment Λ (valid)": ("valid_alignment", 1, np.mean),
    "Skip connections": ("skip_connect", 1, np.sum),
    "Accuracy of the supernet (train) [%]": ("train_accuracy", 100, np.mean),
    "Accuracy of the supernet (valid) [%]": ("valid_accuracy", 100, np.mean),
    "Entropy of p [nats]": ("entropy", 1, np.mean),
    "The cell's test accuracy in the table [%]": ("table_test_accuracy", 1, np.mean),
}


#: settings that two seeds of one search may differ in
NOT_COMPARED = {
    *("seed", "seeds", "save", "resume", "device", "data", "download", "halves", "table", "table_dataset"),
    *("keep_checkpoints", "provenance"),
}


def grouped(courses: list[Course]) -> dict[str, list[Course]]:
    """The courses of one search but for its seed, by a title without what all have in common.

    Where titles are equal, they are followed by the settings that differ.
    """
    kinds: list[tuple[dict, list[Course]]] = []
    for course in courses:
        own = {name: value for name, value in course.config.items() if name not in NOT_COMPARED}
        same = next((members for known, members in kinds if known == own), None)
        if same is None:
            kinds.append((own, [course]))
        else:
            same.append(course)
    titles = [title(members[0].config, seed=False) for _, members in kinds]
    if len({text.partition(": ")[0] for text in titles}) == 1:
        titles = [text.partition(": ")[2] for text in titles]
    groups = {}
    for text, (own, members) in zip(titles, kinds, strict=True):
        alike = [other for head, (other, _) in zip(titles, kinds, strict=True) if head == text]
        differing = [name for name in own if any(other.get(name) != own[name] for other in alike)]
        groups[", ".join([text, *(f"{name} {own[name]}" for name in differing)])] = members
    return groups


def compare_figure(courses: list[Course]) -> Figure:
    """A panel for each quantity that a course has: its mean over the seeds, and each seed as a thin line."""
    groups = grouped(courses)
    names = {name for course in courses for name in course.metrics.dtype.names}
    panels = {text: panel for text, panel in PANELS.items() if any(name.startswith(panel[0]) for name in names)}
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(13, 3.4 * rows + 0.7), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    for axes, (text, (column, scale, join)) in zip(
        figure.subplots(rows, 3, squeeze=False).flat, panels.items(), strict=False
    ):
        dress(axes, text)
        for shade, (name, members) in zip(SHADES, groups.items(), strict=False):
            curves = [scale * _column(member.metrics, column, join) for member in members]
            shortest = min(map(len, curves))
            epochs = np.arange(1, shortest + 1)
            marker = "o" if shortest < 2 else None
            for curve in curves:
                axes.plot(np.arange(1, len(curve) + 1), curve, color=shade, linewidth=0.8, alpha=0.4, marker=marker)
            mean = np.mean([curve[:shortest] for curve in curves], axis=0)
            axes.plot(epochs, mean, color=shade, linewidth=2.2, marker=marker, label=name)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    counts = [f"{label} ({len(groups[label])} seed{'s' if len(groups[label]) > 1 else ''})" for label in labels]
    figure.legend(handles, counts, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _column(metrics: np.ndarray, column: str, join: Callable) -> np.ndarray:
    """A column, or those of each kind of cell that begin with its name, joined; nan where it was not measured."""
    names = [name for name in metrics.dtype.names if name.startswith(column)]
    return join([metrics[name] for name in names], axis=0) if names else np.full(len(metrics), np.nan)


def expanded(runs: list[str]) -> list[Path]:
    """The run folders; one of several seeds stands for theirs.

    Raises:
        InputError: one is given twice.
    """
    folders = []
    for run in map(Path, runs):
        seeds = sorted(run.glob("seed-*"))
        folders += [run] if (run / "metrics.csv").exists() or not seeds else seeds
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("runs: a folder is given twice; expected different ones")
    return folders


def main() -> None:
    parser = cli.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=str, nargs="+", help="run folders of searches, any number of each kind")
    parser.add_argument("--out", type=str, default="compare.png", metavar="PNG", help="picture to write")
    arguments = parser.parse_args()
    with cli.blaming("--out"):
        check_new_file(Path(arguments.out))
    with cli.blaming("runs"):
        courses = [load_course(run) for run in expanded(arguments.runs)]
    if len(grouped(courses)) > len(SHADES):
        raise InputError(f"runs: {len(grouped(courses))} different searches, expected {len(SHADES)} at most")
    with cli.blaming("--out"):
        compare_figure(courses).savefig(arguments.out, dpi=150)
    print(arguments.out)


if __name__ == "__main__":
    cli.run(main, PROG)
