"""Genotypes: the two forms, what is refused, and the rule that derives them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genotypes import CELLS, Edge, Genotype, load_genotype, make_genotype, parse_genotype
from selection import select
from spaces import EDGES, SPACES
from tests.conftest import local_data

DARTS_SPACES = ("s1", "s2", "s3", "s4", "s5")


def darts_v2(**changes):
    return {**CELLS["DARTS_V2"]._asdict(), **changes}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_comes_back_from_json_and_from_the_printed_form(name):
    assert parse_genotype(CELLS[name].to_json()) == CELLS[name]
    assert parse_genotype(str(CELLS[name])) == CELLS[name]


def test_the_cells_are_the_published_ones():
    published = json.loads((local_data() / "published/architectures.json").read_text())
    assert {
        name: make_genotype({part: cell[part] for part in Genotype._fields}) for name, cell in published.items()
    } == {name: CELLS[name] for name in published}
    assert len(published) == 70


def test_the_form_of_darts_logs_is_read_with_its_range():
    text = (
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0)], normal_concat=range(2, 3), "
        "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1)], reduce_concat=range(2, 3))"
    )
    genotype = parse_genotype(text)
    assert genotype.edges("normal") == [Edge("sep_conv_3x3", 2, 1), Edge("skip_connect", 2, 0)]
    assert genotype.concat("reduce") == [2]


def test_fair_darts_drops_a_node_without_edges_and_the_edges_that_leave_it():
    assert CELLS["FairDARTS_a"].concat("normal") == [2, 4, 5]
    # node 3 of FairDARTS_g's normal cell has no edge, so its skip connection into node 4 goes too
    assert Edge("skip_connect", 4, 3) in [Edge(*entry) for entry in CELLS["FairDARTS_g"].normal]
    assert Edge("skip_connect", 4, 3) not in CELLS["FairDARTS_g"].edges("normal")
    assert CELLS["FairDARTS_g"].concat("normal") == [2, 4, 5]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (darts_v2(normal=[["sep_conv_9x9", 0], ["skip_connect", 1]]), "operation 'sep_conv_9x9'"),
        (darts_v2(normal=[["none", 0], ["skip_connect", 1]]), "operation 'none'"),
        (darts_v2(normal=[["skip_connect", 0], ["skip_connect", 2]]), "source 2 of node 2"),
        (darts_v2(normal=[["skip_connect", 0], ["skip_connect", -1]]), "source -1 of node 2"),
        (darts_v2(normal=[["skip_connect", 0], ["skip_connect", True]]), "whole numbers"),
        (darts_v2(normal=[["skip_connect", 0]]), "two edges for each node, got 1"),
        (darts_v2(normal=[["skip_connect", 0], ["skip_connect", 2, 1]]), "one form in a cell"),
        (darts_v2(normal=[["skip_connect", 2, 1], ["skip_connect", 2, 1]]), "stands twice"),
        (darts_v2(normal=[["skip_connect", 3, 2]], normal_concat=[3]), "a path from the cell's inputs"),
        (darts_v2(normal=[]), "expected a list of edges"),
        (darts_v2(normal="sep_conv_3x3"), "expected a list of edges"),
        (darts_v2(normal_concat=[2, 3, 4, 6]), "distinct nodes from 2 to 5"),
        (darts_v2(normal_concat=[2, 2]), "distinct nodes from 2 to 5"),
        (darts_v2(normal_concat=[]), "distinct nodes from 2 to 5"),
        ({"normal": [["skip_connect", 0], ["skip_connect", 1]]}, "lacks normal_concat, reduce"),
        (darts_v2(extra=1), "has 'extra'"),
        ([1, 2], "expected an object"),
    ],
)
def test_a_wrong_genotype_is_refused_with_the_reason(parts, says):
    with pytest.raises(ValueError, match="expected") as error:
        make_genotype(parts)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[[[[",
        "Genotype(",
        "Genotype(normal=__import__('os').getcwd())",
        "Genotype(**{})",
        "Genotype(normal=range(2, 10**12), normal_concat=1, reduce=1, reduce_concat=1)",
        "Genotype(1, 2, 3, 4)",
    ],
)
def test_text_that_is_no_genotype_is_refused_and_never_run(text):
    with pytest.raises(ValueError, match="expected"):
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
    with pytest.raises(ValueError, match="DARTS_V2"):
        load_genotype("DARTS_V3")


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
