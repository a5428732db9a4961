"""Compare several searches in one figure. Seeds of the same search have the same color.

python analysis/compare.py runs/darts runs/lambda-darts --out compare.png
python analysis/compare.py runs/darts runs/lambda-darts --cells --out cells.png    # with the derived cells
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.colors import METHODS, assign
from analysis.curves import (
    Course,
    leave_out_outliers,
    load_course,
    looked_up,
    make_figure,
    plot_mixing,
    save,
    set_up_panel,
    title,
)
from analysis.draw import cell_size, draw_cell
from lib import cli, options
from lib.cli import InputError
from lib.files import PICTURES, check_new_file
from nasbench201.cells import load_any

if TYPE_CHECKING:
    import pandas as pd

PROG = "compare.py"


class Quantity(NamedTuple):
    """A measured quantity: one column of metrics.csv, or the columns of all kinds of cells, averaged or summed.

    {table} in the title stands for the data set of NAS-Bench-201 whose accuracies the search looked up.
    """

    title: str
    about: str
    column: str  # name of the column, or prefix of the columns of the kinds
    scale: float = 1
    integer: bool = False  # sum over the kinds, and place ticks at whole numbers
    outliers: bool = True  # if False, cut off values far below the others


QUANTITIES = (
    Quantity(
        "Layer alignment Λ",
        "Mean cosine similarity between the layers' architecture gradients on validation batches (Λ-DARTS, figure 1).",
        "valid_alignment",
    ),
    Quantity(
        "Skip connections",
        "Number in the cell derived from alpha after each epoch. A search collapses when they take over.",
        "skip_connect",
        integer=True,
    ),
    Quantity(
        "{table} test accuracy in NAS-Bench-201 [%]",
        "Accuracy after 200 epochs of training, of the cell derived from alpha after each search epoch.",
        "table_test_accuracy",
        outliers=False,
    ),
    Quantity(
        "Accuracy of the supernet (valid) [%]",
        "Accuracy on the part of the training images that updates alpha.",
        "valid_accuracy",
        100,
        outliers=False,
    ),
    Quantity(
        "Accuracy of the supernet (train) [%]",
        "Accuracy on the part of the training images that updates the weights.",
        "train_accuracy",
        100,
        outliers=False,
    ),
    Quantity("Entropy of p [nats]", "Mean over edges; 0 when all mixing weights or gates are 0 or 1.", "entropy"),
)
#: settings that may differ between runs of the same search
NOT_COMPARED = {
    *("seed", "seeds", "save", "resume", "device", "data", "download", "halves", "keep_checkpoints", "provenance"),
}


def group_seeds(courses: list[Course]) -> dict[str, list[Course]]:
    """title -> the searches that differ only in their seed.

    Titles leave out the data set and the space if all searches share them. If two titles are equal, the settings that
    differ are added.
    """
    kinds: list[tuple[dict[str, Any], list[Course]]] = []
    for course in courses:
        own = {name: value for name, value in course.config.items() if name not in NOT_COMPARED}
        own |= {"table_dataset": looked_up(course.config)} if "table_dataset" in own else {}
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
    """A figure with a panel for each measured quantity. Thick lines are means over the seeds; thin lines are seeds.

    Raises:
        ValueError: Two searches have the same settings and the same seed.
    """
    groups = group_seeds(courses)
    for name, members in groups.items():
        (seed, count), *_ = Counter(member.config["seed"] for member in members).most_common(1)
        if count > 1:
            raise ValueError(f"{count} searches of {name} with seed {seed}; expected one search for each seed")
    quantities = quantities_of(courses)
    shades = assign({name: members[0].config["method"] for name, members in groups.items()})
    rows, cut_off = -(-len(quantities) // 3), False
    figure = make_figure(13, 3.4 * rows + 0.7)
    for axes, quantity in zip(figure.subplots(rows, 3, squeeze=False).flat, quantities, strict=False):
        set_up_panel(axes, fill(quantity.title, 38, break_on_hyphens=False))
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=quantity.integer, min_n_ticks=1))
        for name, members in groups.items():
            shade = METHODS[shades[name]][0]
            curves = [curve for member in members if (curve := curve_of(member.metrics, quantity)) is not None]
            drawn = [(curve, 0.8, 0.4, None) for curve in curves] + [(mean_curve(curves), 2.2, 1.0, name)]
            for curve, width, opacity, label in drawn:
                style: dict[str, Any] = {
                    "linewidth": width,
                    "alpha": opacity,
                    "marker": "o" if len(curve) == 1 else None,
                }
                axes.plot(np.arange(1, len(curve) + 1), curve, color=shade, label=label, **style)
        if not quantity.outliers:
            cut_off |= leave_out_outliers(axes)
    for axes in figure.axes[len(quantities) :]:
        axes.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    counts = [f"{label} ({len(groups[label])} seed{'s' if len(groups[label]) > 1 else ''})" for label in labels]
    notes = ["Thick: mean over the seeds. Thin: one seed."] if max(map(len, groups.values())) > 1 else []
    notes += ["Triangle: a value below the axis."] if cut_off else []
    figure.legend(handles, counts, title=" ".join(notes), loc="outside lower center", ncols=2, frameon=False)
    return figure


def cells_figure(searches: Mapping[Path, Course]) -> Figure:
    """A figure of a few searches in one space: alignment and skip connections above, a column for each search below.

    A column shows the mixing weights and the derived cell for each kind of cell.

    Raises:
        ValueError: The spaces differ, or a search has not found its cell yet.
        OSError: A cell cannot be read.
    """
    courses = list(searches.values())
    names = _names(searches)
    shades = [METHODS[method][0] for method in assign({n: c.config["method"] for n, c in names.items()}).values()]
    kinds, spaces = list(courses[0].mixing), {course.config["space"] for course in courses}
    if len(spaces) > 1:
        raise ValueError(f"the searches are in {', '.join(sorted(spaces))}; --cells expects searches in one space")
    cells = [load_any(str(run)) for run in searches]
    widest = max(cell_size(cell, kind)[0] for cell in cells for kind in kinds)
    scale = max(6 / widest, 0.55)  # smaller letters cannot be read
    heights = [scale * max(cell_size(cell, kind)[1] for cell in cells) for kind in kinds]
    figure = make_figure((scale * widest + 0.5) * len(courses), 3.2 + 3.4 * len(kinds) + sum(heights))
    ratios = [3.2, *(height + 3.4 for height in heights)]
    above, *below = figure.subfigures(1 + len(kinds), 1, height_ratios=ratios, squeeze=False).flat
    for axes, quantity in zip(above.subplots(1, 2), QUANTITIES, strict=False):
        set_up_panel(axes, quantity.title)
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=quantity.integer, min_n_ticks=1))
        for (name, course), shade in zip(names.items(), shades, strict=True):
            curve = curve_of(course.metrics, quantity)
            if curve is not None:
                axes.plot(np.arange(1, len(curve) + 1), curve, color=shade, linewidth=2.2, label=name)
    above.legend(*above.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    for part, kind, height in zip(below, kinds, heights, strict=True):
        of_kind = f", {kind} cell" if len(kinds) > 1 else ""
        panels = part.subplots(2, len(courses), height_ratios=[2.8, height], squeeze=False)
        for (upper, lower), (name, course), cell in zip(panels.T, names.items(), cells, strict=True):
            weights = "gates" if course.config["relaxation"] == "sigmoid" else "mixing weights p"
            plot_mixing(upper, fill(f"{name}: {weights}{of_kind}", 60), course.mixing[kind])
            draw_cell(lower, cell, kind, scale)
        if len({course.config["relaxation"] for course in courses}) == 1:
            lowest, highest = zip(*(axes.get_ylim() for axes in panels[0]), strict=True)
            for axes in panels[0]:
                axes.set_ylim(min(lowest), max(highest))
    lines = {line.get_label(): line for part in below for axes in part.axes for line in axes.lines}
    columns = min(len(lines), 3 * len(courses))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _names(searches: Mapping[Path, Course]) -> dict[str, Course]:
    """title -> search. The title has the seed, or else the folder, if searches have the same title."""
    titles = {id(course): name for name, members in group_seeds(list(searches.values())).items() for course in members}
    plain = [titles[id(course)] for course in searches.values()]
    seeded = [f"{name}, seed {course.config['seed']}" for name, course in zip(plain, searches.values(), strict=True)]
    names = {}
    for folder, course, name, full in zip(searches, searches.values(), plain, seeded, strict=True):
        names[name if plain.count(name) == 1 else full if seeded.count(full) == 1 else f"{name} ({folder})"] = course
    return names


def quantities_of(courses: Sequence[Course]) -> list[Quantity]:
    """The quantities that at least one of the searches has measured."""
    table = " or ".join(dict.fromkeys(looked_up(course.config) for course in courses))
    return [
        quantity._replace(title=quantity.title.format(table=table))
        for quantity in QUANTITIES
        if any(curve_of(course.metrics, quantity) is not None for course in courses)
    ]


def summary(courses: list[Course]) -> list[str]:
    """A line for each search: the quantities after the last epoch that all seeds have finished, averaged over them."""
    lines = []
    for name, members in group_seeds(courses).items():
        figures = []
        for quantity in quantities_of(members):
            curves = [curve for member in members if (curve := curve_of(member.metrics, quantity)) is not None]
            figures.append(f"{quantity.title}: {mean_curve(curves)[-1]:.2f}")
        epochs = min(len(member.metrics) for member in members)
        seeds = f"{len(members)} seed{'s' if len(members) > 1 else ''}"
        lines.append(f"{name} ({seeds}, epoch {epochs}): {', '.join(figures)}")
    return lines


def mean_curve(curves: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over the seeds, for the epochs that all seeds have finished."""
    shortest = min(map(len, curves), default=0)
    return np.mean([curve[:shortest] for curve in curves], axis=0) if curves else np.empty(0)


def curve_of(metrics: "pd.DataFrame", quantity: Quantity) -> np.ndarray | None:
    """The values of a quantity, (epochs,), or None if it was not measured."""
    names = [name for name in metrics if name == quantity.column or name.startswith(f"{quantity.column}_")]
    values = metrics[names].to_numpy() * quantity.scale
    if not np.isfinite(values).any():
        return None
    return values.sum(axis=1) if quantity.integer else values.mean(axis=1)


def run_folders(runs: list[str]) -> list[Path]:
    """The run folders of searches. A folder with several seeds is replaced by the folders of the seeds.

    Raises:
        InputError: A folder is given twice.
    """
    folders = []
    for run in map(Path, runs):
        seeds = sorted(run.glob("seed-*"))
        folders += [run] if (run / "metrics.csv").exists() or not seeds else seeds
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("runs: the same folder is given twice; expected different folders")
    return folders


def main() -> None:
    parser = options.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=str, nargs="+", help="Run folders of searches, or folders of several seeds.")
    parser.add_argument(
        "--out", type=str, default="compare.png", help="Picture to write: .png, .svg or .pdf (default: compare.png)."
    )
    parser.add_argument("--cells", action="store_true", help="Draw the mixing weights and the cell of each search.")
    arguments = parser.parse_args()
    with cli.blaming("--out"):
        check_new_file(Path(arguments.out), PICTURES)
    with cli.blaming("runs"):
        searches = {run: load_course(run) for run in run_folders(arguments.runs)}
        courses = list(searches.values())
    if len(group_seeds(courses)) > len(METHODS):
        raise InputError(f"runs: {len(group_seeds(courses))} different searches, expected at most {len(METHODS)}")
    with cli.blaming("runs"):
        figure = cells_figure(searches) if arguments.cells else compare_figure(courses)
    with cli.blaming("--out"):
        save(figure, Path(arguments.out))
    print("\n".join([*summary(courses), arguments.out]))


if __name__ == "__main__":
    cli.run(main, PROG)
