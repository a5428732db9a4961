"""Draw the cells of a genotype as in the DARTS papers.

python analysis/draw.py LambdaDARTS_corr_0
python analysis/draw.py runs/search-... --out cells/mine
python analysis/draw.py "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
"""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from genotypes import AnyCell, Edge, short_name
from lib import cli, options
from lib.files import write_atomically
from nasbench201.cells import load_any

if TYPE_CHECKING:
    import graphviz
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROG = "draw.py"

#: a color for each kind of operation, from the color-blind safe palette of Okabe and Ito, darkened for text on white
COLORS = {
    "skip_connect": "#c24a00",
    "sep_conv": "#0064a8",
    "dil_conv": "#007f5c",
    "max_pool": "#9a4c86",
    "avg_pool": "#9c6b00",
    "conv_7x1": "#3a5a78",
    "nor_conv_3x3": "#0064a8",
    "nor_conv_1x1": "#007f5c",
    "noise": "#6b6b6b",
    "none": "#a0a0a0",
    "other": "#333333",
}
#: fill and border color of the inputs, the intermediate nodes and the output of a cell
NODE_COLORS = {"input": ("#dcefe3", "#6fa583"), "node": ("#dbe8f6", "#6d94bd"), "output": ("#fbf0cd", "#c2a548")}
CONCAT_COLOR = "#9aa3ad"


def color(operation: str) -> str:
    """The color of an operation."""
    return COLORS[kind_of(operation)]


def kind_of(operation: str) -> str:
    """The key of an operation in COLORS, whatever its kernel size. User-defined operations are "other"."""
    sizes = r"(_\d+x\d+)*"
    return next((kind for kind in COLORS if re.fullmatch(kind + sizes, operation)), "other")


# Lengths are in inches.
COLUMN = 3.2  # from one column of nodes to the next
OUTPUT = 2.2  # from the last column to an output that concatenates
LANE = 0.55  # from one lane to the next
BEND = 1.0  # width of the curve from a node to a lane
HALF_NODE = 0.2  # half the width of a node
LABEL = 1.3  # from the middle of a label to its target

Point = tuple[float, float]


class Layout(NamedTuple):
    """The position of each state and the height of each edge's lane."""

    states: dict[int | str, Point]
    lanes: list[tuple[Edge, float]]


def layout(genotype: AnyCell, kind: str) -> Layout:
    """Arrange the states of a cell in columns and its edges in lanes.

    Each state is in the column after its last source. Each edge has a separate horizontal lane, and a node is in the
    middle of the lanes that end in it, so no line crosses a node or a label.
    """
    states = genotype.states(kind)
    columns: dict[int | str, int] = {}
    heights: dict[int | str, float] = {}
    lanes: list[tuple[Edge, float]] = []
    count = 0  # number of lanes so far
    for state, (_, role) in states.items():
        edges = sorted((edge for edge in genotype.edges(kind) if edge.target == state), key=lambda edge: edge.source)
        columns[state] = 0 if role == "input" else 1 + max((columns[edge.source] for edge in edges), default=0)
        if role == "input" or state == "output":
            continue
        own = [-LANE * (count + index) for index in range(max(len(edges), 1))]  # a state without edges also gets a lane
        lanes += zip(edges, own, strict=False)
        heights[state] = sum(own) / len(own)
        count += len(own)
    middle = -LANE * (count - 1) / 2
    inputs = [state for state, (_, role) in states.items() if role == "input"]
    for index, state in enumerate(inputs):
        heights[state] = middle + 0.6 * (len(inputs) - 1 - 2 * index)
    places = {state: (COLUMN * columns[state], height) for state, height in heights.items()}
    if "output" in states:
        places["output"] = (COLUMN * max(columns.values()) + OUTPUT, middle)
    return Layout(places, lanes)


def cell_figure(genotype: AnyCell, kind: str) -> "Figure":
    """A figure of one kind of cell."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=cell_size(genotype, kind))
    draw_cell(figure.add_axes((0, 0, 1, 1)), genotype, kind)
    return figure


def cell_size(genotype: AnyCell, kind: str) -> tuple[float, float]:
    """The width and height of a drawing in inches."""
    (left, right), (bottom, top) = _limits(layout(genotype, kind))
    return right - left, top - bottom


def _limits(places: Layout) -> tuple[Point, Point]:
    """The ranges of x and y that a drawing covers."""
    xs, ys = zip(*places.states.values(), strict=True)
    ys = (*ys, *(lane for _, lane in places.lanes))
    return (-0.6, max(xs) + 0.6), (min(ys) - 0.45, max(ys) + 0.45)


def draw_cell(axes: "Axes", genotype: AnyCell, kind: str, scale: float = 1.0) -> None:
    """Draw one kind of cell.

    Args:
        axes: Empty axes, `scale` times as wide and high as `cell_size`.
        scale: Size relative to `cell_size`. Below 1, text shrinks less than lines, so that it stays legible.
    """
    letters = max(scale, min(1.0, 0.4 + 0.6 * scale))
    head = {"mutation_scale": 13 * scale}  # size of an arrow head
    places, lanes = layout(genotype, kind)
    (left, right), (bottom, top) = _limits(Layout(places, lanes))
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.axis("off")
    for edge, lane in lanes:
        x, y = places[edge.target]
        count = sum(other.target == edge.target for other, _ in lanes)
        shade = color(edge.operation)
        style = "--" if edge.operation == "skip_connect" else "-"
        end = (x, y + 0.5 * (lane - y) / count)
        _arrow(axes, places[edge.source], lane, end, color=shade, linestyle=style, linewidth=1.6 * letters, **head)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
        middle = x - LABEL * (0.5 + 0.5 * letters / scale)
        axes.text(middle, lane, edge.operation, color=shade, fontsize=12 * letters, ha="center", va="center", bbox=box)
    for node in genotype.concat(kind):
        source, end = places[node], places["output"]
        _arrow(axes, source, source[1], end, color=CONCAT_COLOR, linewidth=1.2 * letters, **head)
    for state, (name, role) in genotype.states(kind).items():
        fill, border = NODE_COLORS[role]
        box = {"boxstyle": "round,pad=0.45", "facecolor": fill, "edgecolor": border}
        label = name if role == "node" else f"${name.replace('-', '{-}')}$"
        axes.text(*places[state], label, fontsize=15 * letters, ha="center", va="center", bbox=box)


def _arrow(axes: "Axes", source: Point, lane: float, target: Point, **style: Any) -> None:
    """Draw an arrow from one state to another along a lane."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    (x, y), (end, end_y) = source, target
    x, end = x + HALF_NODE, end - HALF_NODE
    points = [(x, y), (x + BEND / 2, y), (x + BEND / 2, lane), (x + BEND, lane)]
    points += [(end - BEND / 2, lane), (end - BEND / 6, lane), (end - BEND / 3, end_y), (end, end_y)]
    path = Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * 3, Curve.LINETO, *[Curve.CURVE4] * 3])
    axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>", **style))


def cell_graph(genotype: AnyCell, kind: str) -> "graphviz.Digraph":
    """A Graphviz graph of one kind of cell. `dot -Tpdf normal.gv` draws it."""
    import graphviz

    graph = graphviz.Digraph(kind, graph_attr={"rankdir": "LR"})
    graph.attr("node", shape="box", style="rounded,filled")
    states = genotype.states(kind)
    for name, role in states.values():
        fill, border = NODE_COLORS[role]
        graph.node(name, fillcolor=fill, color=border)
    for operation, target, source in genotype.edges(kind):
        shade = color(operation)
        style = "dashed" if operation == "skip_connect" else "solid"
        graph.edge(states[source][0], states[target][0], operation, color=shade, fontcolor=shade, style=style)
    for node in genotype.concat(kind):
        graph.edge(states[node][0], states["output"][0], color=CONCAT_COLOR)
    return graph


def draw_genotype(genotype: AnyCell, folder: Path) -> None:
    """Write pictures (.png, .svg) and the Graphviz source (.gv) of each kind of cell to a folder.

    The folder is created if necessary. The files are called normal and reduce, or cell for a NAS-Bench-201 cell.

    Raises:
        OSError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for kind in genotype.kinds:
        write_atomically(folder / f"{kind}.gv", cell_graph(genotype, kind).source)
        figure = cell_figure(genotype, kind)
        for suffix in ("svg", "png"):
            picture = io.BytesIO()
            figure.savefig(picture, format=suffix, dpi=200)
            write_atomically(folder / f"{kind}.{suffix}", picture.getvalue())


def _name(spec: str) -> str:
    """The name of the default folder for a genotype."""
    return spec.strip("|").replace("|", "_").replace("+", "") if spec.startswith("|") else short_name(spec)


def main() -> None:
    parser = options.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument(
        "genotype", type=str, help="Name of a cell, a genotype, its file, a NAS-Bench-201 string, or a run folder."
    )
    parser.add_argument("--out", type=str, metavar="DIR", help="Folder for the pictures. By default cells/<genotype>.")
    arguments = parser.parse_args()
    with cli.blaming("genotype"):
        genotype = load_any(arguments.genotype)
    folder = Path(arguments.out or Path("cells", _name(arguments.genotype)))
    with cli.blaming("--out"):
        draw_genotype(genotype, folder)
    for kind in genotype.kinds:
        print(*(folder / f"{kind}.{suffix}" for suffix in ("gv", "svg", "png")), sep="\n")


if __name__ == "__main__":
    cli.run(main, PROG)
