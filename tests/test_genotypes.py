"""Genotypes: the two forms, what is refused, and the rule that derives them."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genotypes import CELLS, Edge, Genotype, load_genotype, make_genotype, parse_genotype
from spaces import SPACES
from tests.helpers import local_data, select

EDGES = SPACES["s5"].edges

DARTS_SPACES = ("s1", "s2", "s3", "s4", "s5")


def darts_v2(**changes):
    return {**CELLS["DARTS_V2"]._asdict(), **changes}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_comes_back_from_json_and_from_the_printed_form(name):
    assert parse_genotype(CELLS[name].to_json()) == CELLS[name]
    assert parse_genotype(str(CELLS[name])) == CELLS[name]
    assert parse_genotype(f"\n {CELLS[name]}\n") == CELLS[name]


def test_the_cells_are_the_published_ones():
    """The local copy has more cells than the project."""
    published = json.loads((local_data() / "published/architectures.json").read_text())
    ours = [name for name in published if name in CELLS]
    assert len(ours) == 70
    for name in ours:
        assert make_genotype({part: published[name][part] for part in Genotype._fields}) == CELLS[name]


def test_the_form_of_darts_logs_is_read_with_its_range():
    text = (
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0)], normal_concat=range(2, 3), "
        "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1)], reduce_concat=range(2, 3))"
    )
    genotype = parse_genotype(text)
    assert genotype.edges("normal") == [Edge("sep_conv_3x3", 2, 1), Edge("skip_connect", 2, 0)]
    assert genotype.concat("reduce") == [2]


def test_a_cell_with_targets_sums_its_nodes_as_fair_darts_does():
    cell = make_genotype(darts_v2(reduce=[["skip_connect", 2, 1]], reduce_concat=[2]))
    assert cell.kinds == ("normal", "reduce")
    assert [cell.sums_nodes(kind) for kind in cell.kinds] == [False, True]


def test_the_states_have_the_papers_names_and_are_those_with_a_live_edge():
    assert CELLS["FairDARTS_g"].states("normal") == {
        0: ("c_{k-2}", "input"),
        1: ("c_{k-1}", "input"),
        2: ("0", "node"),
        4: ("2", "node"),
        5: ("3", "node"),
        "output": ("c_{k}", "output"),
    }
    assert list(CELLS["DARTS_V2"].states("reduce")) == [0, 1, 2, 3, 4, 5, "output"]


def test_a_node_behind_dead_nodes_alone_is_dead_in_whatever_order_the_edges_stand():
    # node 3 of FairDARTS_g's normal cell has no edge, so its skip connection into node 4 goes too
    assert Edge("skip_connect", 4, 3) in [Edge(*entry) for entry in CELLS["FairDARTS_g"].normal]
    assert Edge("skip_connect", 4, 3) not in CELLS["FairDARTS_g"].edges("normal")
    assert CELLS["FairDARTS_g"].concat("normal") == [2, 4, 5]
    # 3 has no edge: so 4 has none, nor 5; 6 has one from an input, and 7 one from 6
    cell = [(7, 6), (5, 4), (4, 3), (6, 5), (6, 1)]
    genotype = make_genotype(darts_v2(normal=[["skip_connect", *states] for states in cell], normal_concat=[7, 6, 5]))
    assert genotype.edges("normal") == [Edge("skip_connect", 7, 6), Edge("skip_connect", 6, 1)]
    assert genotype.concat("normal") == [7, 6]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"normal": [["sep_conv_9x9", 0], ["skip_connect", 1]]}, "normal, edge 0: operation 'sep_conv_9x9', expected"),
        ({"reduce": [["skip_connect", 0], ["none", 1]]}, "reduce, edge 1: operation 'none', expected one of"),
        ({"reduce": [["skip_connect", 4, 4]]}, "reduce, edge 0: source 4 of node 4, expected"),
        ({"normal": [["skip_connect", 0], ["skip_connect", True]]}, "normal, edge 1: expected whole numbers"),
        ({"normal": [["skip_connect", 0]]}, "normal: expected two edges for each node, got 1 edges"),
        ({"normal": [["skip_connect", 0], ["skip_connect", 2, 1]]}, "normal, edge 1: expected [operation, source] or"),
        (
            {"normal": [["skip_connect", 2, 1]] * 2},
            "normal, edge 1: skip_connect 1 -> 2 stands twice",
        ),
        ({"reduce": [["skip_connect", 3, 2]], "reduce_concat": [3]}, "reduce_concat: expected a node with a path from"),
        ({"normal_concat": [2, 2]}, "normal_concat: expected distinct nodes from 2 to 5, got [2, 2]"),
        ({"reduce_concat": [1, 2]}, "reduce_concat: expected distinct nodes from 2 to 5, got [1, 2]"),
        # a cell of one node, and one of FairDARTS's form whose last node is 6
        ({"normal": [["skip_connect", 0], ["skip_connect", 1]]}, "normal_concat: expected distinct nodes from 2 to 2"),
        (
            {"normal": [["skip_connect", 6, 0]], "normal_concat": [7]},
            "expected distinct nodes from 2 to 6, got [7]",
        ),
    ],
)
def test_a_wrong_genotype_is_refused_with_the_reason(changes, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        make_genotype(darts_v2(**changes))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected a genotype as JSON or as Genotype(...)"),
        ("Genotype(", "expected a genotype as JSON or as Genotype(...)"),
        (f"Genotype({'-' * 20_000}1)", "expected a genotype as JSON or as Genotype(...)"),
        ("[1, 2]", "expected an object with normal, normal_concat, reduce, reduce_concat, got [1, 2]"),
        ("Genotype(normal=__import__('os').getcwd())", "expected lists of edges and numbers"),
        ("Genotype(normal=1, **{})", "expected Genotype(normal=..., normal_concat=..., reduce=..., reduce_concat=...)"),
        ("Genotype(normal_concat=range(2))", "normal_concat: expected range(first, last + 1), got range(2,)"),
        ("Genotype(normal=range(2, 101))", "normal: expected range(first, last + 1), got range(2, 101)"),
        ('{"normal": [], "reduce": [], "normal": []}', "normal: given twice, expected once"),
    ],
    ids=range(9),
)
def test_text_that_is_no_genotype_is_refused_and_never_run(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_genotype(text)


@given(st.text() | st.builds(json.dumps, st.recursive(st.none() | st.integers() | st.text(), st.lists)))
def test_any_text_is_a_genotype_or_a_value_error(text):
    try:
        genotype = parse_genotype(text)
    except ValueError:
        return
    assert make_genotype(genotype._asdict()) == genotype


def test_a_genotype_loads_by_name_by_file_and_by_run_folder(tmp_path):
    (tmp_path / "genotype.json").write_text(CELLS["DARTS_V1"].to_json())
    assert load_genotype("DARTS_V1") == CELLS["DARTS_V1"]
    assert load_genotype(str(tmp_path / "genotype.json")) == CELLS["DARTS_V1"]
    assert load_genotype(str(tmp_path)) == CELLS["DARTS_V1"]


def test_a_file_without_a_genotype_is_named(tmp_path):
    path = tmp_path / "genotype.json"
    path.write_text("[]", encoding="utf-8")
    for spec in (tmp_path, path):
        with pytest.raises(ValueError, match=f"{path}: expected an object with normal"):
            load_genotype(str(spec))


def test_argmax_takes_the_two_strongest_edges_of_each_node_by_each_edge_own_candidates():
    space = SPACES["s1"]
    weights = {kind: np.full((len(EDGES), 2), 0.5) for kind in ("normal", "reduce")}
    for kind in weights:
        weights[kind][:, 0] = 0.6
    weights["normal"][12] = [0.1, 0.9]  # 3 -> 5: dil_conv_3x3 or dil_conv_5x5
    weights["normal"][9] = [0.2, 0.8]  # 0 -> 5: skip_connect or sep_conv_3x3
    genotype = select(space, weights, "argmax")
    assert genotype.normal[6:] == (("dil_conv_5x5", 3), ("sep_conv_3x3", 0))
    # among equals the earlier edges, with the first of their own candidates
    assert genotype.normal[:2] == (("skip_connect", 0), ("skip_connect", 1))
    assert genotype.reduce[:2] == (("max_pool_3x3", 0), ("max_pool_3x3", 1))
    assert genotype.reduce[2:4] == (("max_pool_3x3", 0), ("max_pool_3x3", 1))


def test_argmax_never_chooses_none():
    weights = torch.tensor([0.9, 0.04, 0.06]).expand(len(EDGES), 3).numpy()
    genotype = select(SPACES["s3"], {"normal": weights, "reduce": weights}, "argmax")
    assert {operation for operation, _ in genotype.normal + genotype.reduce} == {"sep_conv_3x3"}


@pytest.mark.parametrize("space", DARTS_SPACES)
def test_argmax_gives_a_genotype_of_the_space(space):
    generator = np.random.default_rng(0)
    for _ in range(20):
        weights = {
            kind: generator.dirichlet(np.ones(len(SPACES[space].cells[kind][0])), len(EDGES))
            for kind in ("normal", "reduce")
        }
        genotype = make_genotype(select(SPACES[space], weights, "argmax")._asdict())
        for kind in ("normal", "reduce"):
            for edge in genotype.edges(kind):
                assert edge.operation in SPACES[space].cells[kind][EDGES.index((edge.source, edge.target))]
