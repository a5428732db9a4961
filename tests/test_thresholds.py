"""FairDARTS's selection by thresholds, and the cells without a path that it may leave."""

import numpy as np
import pytest
import torch

from selection import missing_cell
from spaces import SPACES
from tests.helpers import select

EDGES = SPACES["s5"].edges

DOUBLE = torch.float64


def gates(entries):
    """The gates of a cell of S5 from {(source, target): {operation: gate}}; the others are 0.1."""
    table = np.full((14, 7), 0.1)
    for edge, operations in entries.items():
        row = EDGES.index(edge)
        for name, gate in operations.items():
            table[row, SPACES["s5"].cells["normal"][row].index(name)] = gate
    return table


#: in the normal cell, no gate into node 3 reaches 0.85, and one into node 4 equals it
WORKED = {
    "normal": gates(
        {
            (0, 2): {"sep_conv_3x3": 0.9},
            (1, 2): {"skip_connect": 0.86, "sep_conv_5x5": 0.95},
            (0, 3): {"max_pool_3x3": 0.8},
            (1, 3): {"sep_conv_3x3": 0.84999},
            (2, 3): {"skip_connect": 0.7},
            (0, 4): {"skip_connect": 0.5},
            (1, 4): {"dil_conv_3x3": 0.99, "dil_conv_5x5": 0.97, "max_pool_3x3": 0.96},
            (2, 4): {"avg_pool_3x3": 0.85},
            (3, 4): {"sep_conv_5x5": 0.9},
            (0, 5): {"sep_conv_3x3": 0.3},
            (2, 5): {"skip_connect": 0.91},
            (3, 5): {"max_pool_3x3": 0.94},
            (4, 5): {"sep_conv_3x3": 0.6},
        }
    ),
    "reduce": gates(
        {
            **{(0, node): {"max_pool_3x3": 0.9} for node in (2, 3, 4, 5)},
            **{(1, node): {"skip_connect": 0.88, "dil_conv_5x5": 0.87} for node in (2, 3, 4)},
            (1, 5): {"skip_connect": 0.84},
        }
    ),
}


def test_threshold_sparse_keeps_the_two_strongest_edges_of_a_node_that_reach_the_threshold():
    genotype = select(SPACES["s5"], WORKED, "threshold_sparse", 0.85)
    assert sorted(genotype.normal) == [
        ("dil_conv_3x3", 4, 1),
        ("max_pool_3x3", 5, 3),
        ("sep_conv_3x3", 2, 0),
        ("sep_conv_5x5", 2, 1),
        ("sep_conv_5x5", 4, 3),
        ("skip_connect", 5, 2),
    ]
    assert sorted(genotype.reduce) == [
        *(("max_pool_3x3", node, 0) for node in (2, 3, 4, 5)),
        *(("skip_connect", node, 1) for node in (2, 3, 4)),
    ]
    # node 3 has no inputs, so the edges that leave it are removed too
    assert genotype.concat("normal") == [2, 4, 5]
    assert genotype.concat("reduce") == [2, 3, 4, 5]
    assert {(edge.target, edge.source) for edge in genotype.edges("normal")} == {(4, 1), (2, 0), (2, 1), (5, 2)}
    assert missing_cell(SPACES["s5"], genotype) is None


def test_threshold_edge_keeps_up_to_two_operations_of_every_edge():
    genotype = select(SPACES["s5"], WORKED, "threshold_edge", 0.85)
    assert sorted(genotype.normal) == [
        ("avg_pool_3x3", 4, 2),
        ("dil_conv_3x3", 4, 1),
        ("dil_conv_5x5", 4, 1),
        ("max_pool_3x3", 5, 3),
        ("sep_conv_3x3", 2, 0),
        ("sep_conv_5x5", 2, 1),
        ("sep_conv_5x5", 4, 3),
        ("skip_connect", 2, 1),
        ("skip_connect", 5, 2),
    ]
    assert len(genotype.reduce) == 4 + 2 * 3
    assert genotype.concat("normal") == [2, 4, 5]
    assert {edge.source for edge in genotype.edges("normal")} == {0, 1, 2}
    assert len(genotype.edges("normal")) == 7


@pytest.mark.parametrize(
    ("rule", "operations", "count"),
    [
        ("argmax", {"sep_conv_3x3"}, 8),
        ("threshold_sparse", {"sep_conv_3x3"}, 8),
        ("threshold_edge", {"sep_conv_3x3", "skip_connect"}, 28),
    ],
)
def test_no_rule_chooses_none(rule, operations, count):
    table = np.tile([0.99, 0.9, 0.95], (14, 1))  # none, skip_connect, sep_conv_3x3
    genotype = select(SPACES["s3"], {"normal": table, "reduce": table}, rule, 0.85)
    for cell in (genotype.normal, genotype.reduce):
        assert {entry[0] for entry in cell} == operations
        assert len(cell) == count


def test_a_cell_without_a_path_from_its_inputs_is_reported_missing():
    nothing, cell = np.full((14, 7), 0.8), WORKED["reduce"]
    # node 2 has no inputs, so the only edge leads from a node without values
    unreached = gates({(2, 3): {"sep_conv_3x3": 0.99}})
    for normal, reduce, missed in [
        (nothing, nothing, "normal"),
        (cell, nothing, "reduce"),
        (unreached, cell, "normal"),
        (cell, cell, None),
    ]:
        for rule in ("threshold_sparse", "threshold_edge"):
            genotype = select(SPACES["s5"], {"normal": normal, "reduce": reduce}, rule, 0.85)
            assert missing_cell(SPACES["s5"], genotype) == missed
