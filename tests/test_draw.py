"""Drawings of cells show exactly the edges of the genotype, and nothing in them overlaps."""

import re

import numpy as np
import pytest
from PIL import Image

from analysis.draw import COLORS, cell_figure, cell_graph, color, draw_genotype
from genotypes import CELLS, make_genotype
from nasbench201.cells import parse_cell
from operations import OPERATIONS
from tests.helpers import script_in_process

STATES = {"c_{k-2}": 0, "c_{k-1}": 1, **{str(node - 2): node for node in range(2, 7)}}
CELLS_201 = [
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|",
    "|none~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|avg_pool_3x3~2|",  # no path from the input to the output
]


def parse(source):
    """Return the edges of a graph, (operation, target, source), and the nodes that its output concatenates."""
    found = re.findall(r'^\t"?([^"\s]+)"? -> "?([^"\s]+)"? \[(?:label=(\w+) )?', source, re.MULTILINE)
    edges = [(operation, STATES[end], STATES[begin]) for begin, end, operation in found if operation]
    return edges, [STATES[begin] for begin, _, operation in found if not operation]


@pytest.mark.parametrize("kind", ["normal", "reduce"])
@pytest.mark.parametrize("name", ["AmoebaNet", "DARTS_V2", "FairDARTS_a"])
def test_a_graph_has_the_edges_of_the_genotype_and_no_others(name, kind):
    genotype = CELLS[name]
    source = cell_graph(genotype, kind).source
    assert parse(source) == (genotype.edges(kind), genotype.concat(kind))
    drawn = set(re.findall(r'^\t"?([^"\s]+)"? \[color', source, re.MULTILINE))
    assert drawn == {"c_{k-2}", "c_{k-1}", "c_{k}"} | {str(edge.target - 2) for edge in genotype.edges(kind)}


def test_only_skip_connections_are_dashed_and_no_two_kinds_share_a_color():
    figure = cell_figure(CELLS["DARTS_V2"], "normal")
    styles = {(arrow.get_linestyle(), arrow.get_edgecolor()) for arrow in figure.axes[0].patches}
    assert [style for style, _ in styles].count("--") == 1
    # nor_conv_* occur in NAS-Bench-201 only
    kinds = {color(operation) for operation in OPERATIONS if not operation.startswith("nor_conv")}
    assert len(kinds) == len(COLORS) - 3
    for own in ("shuffle_conv", "skip_connect_se", "sep_conv_3x3_se", "noise_2"):
        assert color(own) == COLORS["other"]


def assert_nothing_overlaps(genotype, kind):
    figure = cell_figure(genotype, kind)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = {text: text.get_window_extent() for text in axes.texts}
    labels = [text.get_text() for text in texts]
    operations = sorted(edge.operation for edge in genotype.edges(kind))
    assert sorted(label for label in labels if not label.startswith("$") and not label.isdigit()) == operations
    assert len(labels) == len(operations) + len(genotype.states(kind))
    boxes = {text: text.get_bbox_patch().get_window_extent() for text in texts}
    for index, (text, box) in enumerate(boxes.items()):
        assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1)
        assert not any(box.overlaps(other) for other in list(boxes.values())[:index]), text.get_text()
    crossed = []
    for arrow in axes.patches:
        line = axes.transData.transform(
            np.concatenate(arrow.get_path().interpolated(20).to_polygons(closed_only=False))
        )
        for text, box in texts.items():
            if ((box.min < line) & (line < box.max)).all(axis=1).any():
                crossed.append(text.get_text())
    # an arrow crosses its own label, and starts under the label of its source
    assert sorted(label for label in crossed if "$" not in label) == operations


@pytest.mark.parametrize(
    ("name", "kind"), [("AmoebaNet", "normal"), ("AmoebaNet", "reduce"), ("FairDARTS_e", "normal")]
)
def test_no_label_node_or_line_of_a_published_cell_overlaps_another(name, kind):
    assert_nothing_overlaps(CELLS[name], kind)


def test_nothing_overlaps_in_a_chain_of_skips_or_with_two_operations_on_every_edge():
    chain = [("skip_connect", source) for source in (0, 1, 0, 2, 3, 2, 4, 0)]
    full = [(name, end, start) for end in range(2, 6) for start in range(end) for name in ("noise", "skip_connect")]
    nodes = (2, 3, 4, 5)
    genotype = make_genotype({"normal": chain, "normal_concat": nodes, "reduce": full, "reduce_concat": nodes})
    for kind, edges in (("normal", 8), ("reduce", 28)):
        assert len(genotype.edges(kind)) == edges
        assert_nothing_overlaps(genotype, kind)


@pytest.mark.parametrize("arch", CELLS_201)
def test_nothing_overlaps_in_a_cell_of_nasbench201(tmp_path, arch):
    assert_nothing_overlaps(parse_cell(arch), "cell")
    draw_genotype(parse_cell(arch), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell.gv", "cell.png", "cell.svg"]
    graph = (tmp_path / "cell.gv").read_text()
    assert graph.count("nor_conv_3x3") == arch.count("nor_conv_3x3") and "none" not in graph


def test_the_command_draws_both_cells_and_names_the_files(tmp_path):
    out = tmp_path / "cells"
    result = script_in_process("analysis/draw.py", "FairDARTS_a", "--out", out)
    assert (result.returncode, result.stderr) == (0, "")
    names = [f"{kind}.{suffix}" for kind in ("normal", "reduce") for suffix in ("gv", "svg", "png")]
    assert result.stdout.splitlines() == [str(out / name) for name in names]
    for kind in ("normal", "reduce"):
        assert parse((out / f"{kind}.gv").read_text())[0] == CELLS["FairDARTS_a"].edges(kind)
        drawn = re.findall(r"<!-- (\w+_\w+) -->", (out / f"{kind}.svg").read_text())
        assert sorted(drawn) == sorted(edge.operation for edge in CELLS["FairDARTS_a"].edges(kind))
        width, height = Image.open(out / f"{kind}.png").size
        assert width > height > 400
