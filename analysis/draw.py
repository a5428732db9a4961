"""Draw the cells of a genotype, as the papers of the DARTS family print them.

python analysis/draw.py LambdaDARTS_corr_0
python analysis/draw.py runs/search-... --out cells/mine
python analysis/draw.py "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli
from genotypes import AnyCell
from nasbench201.cells import load_any

if TYPE_CHECKING:
    import graphviz

PROG = "draw.py"
FONT = "Helvetica,Arial,sans-serif"

#: a color for each kind of operation: Okabe and Ito's palette, for any color vision, darkened for text on white
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
}
#: fill and border of the cell's inputs, its intermediate nodes and its output
NODE_COLORS = {"input": ("#dcefe3", "#6fa583"), "node": ("#dbe8f6", "#6d94bd"), "output": ("#fbf0cd", "#c2a548")}
CONCAT_COLOR = "#9aa3ad"


def color(operation: str) -> str:
    """The color of an operation: that of its kind, whatever its kernel size."""
    return next(shade for kind, shade in COLORS.items() if operation.startswith(kind))


def cell_graph(genotype: AnyCell, kind: str) -> "graphviz.Digraph":
    """One of a genotype's kinds of cells as a graph.

    An operation e0, e1, ... is a node that stands in the line from its source to its target: no other line crosses its
    label then.
    """
    import graphviz

    graph = graphviz.Digraph(kind)
    graph.attr(rankdir="LR", nodesep="0.16", ranksep="0.55", bgcolor="white", pad="0.15")
    graph.attr("node", shape="box", style="rounded,filled", fontname=FONT, fontsize="16", height="0.45", width="0.5")
    graph.attr("edge", penwidth="1.6", arrowsize="0.7")
    states = genotype.states(kind)
    for name, role in states.values():
        fill, border = NODE_COLORS[role]
        subscript = f'<sub><font point-size="12">{name[2:].strip("{}")}</font></sub>'
        label = name if role == "node" else f"<<i>c</i>{subscript}>"
        graph.node(name, label, fillcolor=fill, color=border)
    graph.attr("node", shape="none", style="", fontsize="13", height="0.25", width="0", margin="0.05,0")
    for index, (operation, target, source) in enumerate(genotype.edges(kind)):
        line = {"color": color(operation), "style": "dashed" if operation == "skip_connect" else "solid"}
        graph.node(f"e{index}", operation, fontcolor=color(operation))
        graph.edge(states[source][0], f"e{index}", headport="w", dir="none", **line)
        graph.edge(f"e{index}", states[target][0], tailport="e", weight="3", **line)
    for node in genotype.concat(kind):
        graph.edge(states[node][0], states["output"][0], color=CONCAT_COLOR, penwidth="1.2")
    return graph


def draw_genotype(genotype: AnyCell, folder: Path) -> None:
    """Write {normal,reduce}.{gv,svg,png}, of a cell of NAS-Bench-201 cell.{gv,svg,png}, to `folder`.

    The folder is made where it is missing. The pictures are Graphviz's; where its `dot` is missing or fails, or the
    Python package is missing (no .gv then), stderr says so and matplotlib draws them.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    why = _draw_with_dot(genotype, folder)
    remedy = "apt-get install graphviz, or brew install graphviz" if "`dot`" in why else "pip install graphviz"
    if why:
        print(f"{why}, so matplotlib draws the cells; for Graphviz's drawing: {remedy}", file=sys.stderr)
        for kind in genotype.kinds:
            _draw_without_dot(genotype, kind, folder)


def _draw_with_dot(genotype: AnyCell, folder: Path) -> str:
    """Graphviz's pictures of the cells; returns the reason where there are none."""
    try:
        import graphviz
    except ImportError:
        return "no Python package `graphviz`"
    graphs = {kind: cell_graph(genotype, kind) for kind in genotype.kinds}
    for kind, graph in graphs.items():
        graph.save(folder / f"{kind}.gv")
    try:
        for kind, graph in graphs.items():
            (folder / f"{kind}.svg").write_bytes(graph.pipe("svg", quiet=True))
            graph.attr(dpi="200")
            (folder / f"{kind}.png").write_bytes(graph.pipe("png", quiet=True))
    except graphviz.ExecutableNotFound:
        return "no `dot` on PATH"
    except graphviz.CalledProcessError as error:
        return f"`dot` fails ({cli.one_line(' '.join(error.stderr.decode(errors='replace').split())[:200])})"
    return ""


def _draw_without_dot(genotype: AnyCell, kind: str, folder: Path) -> None:
    """Draw a cell like a map of a railway: each operation on a lane of its own, which ends in its target.

    A lane leaves its source in the gap right of it, and a node stands in the midst of the lanes that end there, so that
    no line runs through a node or a label.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    step, bend, half_node = 3.2, 1.0, 0.2  # in inches: column to column, the bend of a line, half a node's width
    edges = sorted(genotype.edges(kind), key=lambda edge: edge.target)
    states = genotype.states(kind)
    inputs = [state for state, (_, role) in states.items() if role == "input"]
    depth: dict[int | str, int] = dict.fromkeys(inputs, 0)
    lanes: dict[int | str, list[float]] = {}
    for index, (_, target, source) in enumerate(edges):
        depth[target] = max(depth.get(target, 0), depth.setdefault(source, 1) + 1)
        lanes.setdefault(target, []).append(-0.55 * index)
    right, bottom = step * max(depth.values()) + (2.2 if "output" in states else 0), -0.55 * max(len(edges) - 1, 2)
    place: dict[int | str, tuple[float, float]] = {
        **{state: (0.0, bottom / 2 + 0.6 * (len(inputs) - 1 - 2 * number)) for number, state in enumerate(inputs)},
        # A state that nothing leads to stands below the lanes.
        **{state: (step * depth.get(state, 1), bottom - 0.55) for state in states if state not in inputs},
        **{node: (step * depth[node], sum(ys) / len(ys)) for node, ys in lanes.items()},
        **({"output": (right, bottom / 2)} if "output" in states else {}),
    }
    figure = Figure(figsize=(right + 1.2, 1.6 - bottom))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.6, right + 0.6), ylim=(bottom - 1.1, 0.5))
    axes.axis("off")

    def line(source: tuple[float, float], lane: float, target: tuple[float, float], **style: Any) -> None:
        """An arrow from `source` to the lane, along it, and to `target`."""
        (x, y), (end, end_y) = source, target
        points = [(x, y), (x + bend / 2, y), (x + bend / 2, lane), (x + bend, lane)]
        points += [(end - bend / 2, lane), (end - bend / 6, lane), (end - bend / 3, end_y), (end, end_y)]
        path = Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * 3, Curve.LINETO, *[Curve.CURVE4] * 3])
        axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=13, **style))

    for operation, target, source in edges:
        lane, (x, y) = lanes[target].pop(0), place[target]
        shade = color(operation)
        style = "--" if operation == "skip_connect" else "-"
        begin, end = (place[source][0] + half_node, place[source][1]), (x - half_node, y + (lane - y) / 4)
        line(begin, lane, end, color=shade, linestyle=style, linewidth=1.6)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
        axes.text(x - 1.3, lane, operation, color=shade, fontsize=12, ha="center", va="center", bbox=box)
    for node in genotype.concat(kind):
        x, y = place[node]
        line((x + half_node, y), y, (right - half_node, bottom / 2), color=CONCAT_COLOR, linewidth=1.2)
    for state, (name, role) in states.items():
        fill, border = NODE_COLORS[role]
        box = {"boxstyle": "round,pad=0.45", "facecolor": fill, "edgecolor": border}
        label = name if role == "node" else f"${name}$"
        axes.text(*place[state], label, fontsize=15, ha="center", va="center", bbox=box)
    for suffix in ("svg", "png"):
        figure.savefig(folder / f"{kind}.{suffix}", dpi=200)


def _name(spec: str) -> str:
    """What a folder of the pictures of `spec` is called."""
    return spec.strip("|").replace("|", "_").replace("+", "") if spec.startswith("|") else Path(spec).resolve().stem


def main() -> None:
    parser = cli.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument(
        "genotype", type=str, help="a published cell, a string of NAS-Bench-201, a genotype file or a run folder"
    )
    parser.add_argument("--out", type=str, metavar="DIR", help="folder of the pictures (default: cells/<genotype>)")
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
