"""Genotypes: the two forms, what is refused, and the rule that derives them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genotypes import CELLS, PRIMITIVES, Edge, Genotype, load_genotype, make_genotype, parse_genotype
from selection import select
from spaces import EDGES, SPACES
from tests.helpers import local_data

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
    ours = {name: cell for name, cell in published.items() if name in CELLS}
    assert {name: make_genotype({part: cell[part] for part in Genotype._fields}) for name, cell in ours.items()} == {
        name: CELLS[name] for name in ours
    }
    assert len(ours) == 70


def test_the_form_of_darts_logs_is_read_with_its_range():
    text = (
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0)], normal_concat=range(2, 3), "
        "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1)], reduce_concat=range(2, 3))"
    )
    genotype = parse_genotype(text)
    assert genotype.edges("normal") == [Edge("sep_conv_3x3", 2, 1), Edge("skip_connect", 2, 0)]
    assert genotype.concat("reduce") == [2]


def test_a_genotype_is_written_with_a_line_for_each_part():
    cell = make_genotype(
        {"normal": [["noise", 0], ["noise", 1]], "normal_concat": [2]}
        | {"reduce": [["skip_connect", 2, 1]], "reduce_concat": range(2, 6)}
    )
    assert cell.to_json() == (
        '{\n "normal": [["noise", 0], ["noise", 1]],\n "normal_concat": [2],\n'
        ' "reduce": [["skip_connect", 2, 1]],\n "reduce_concat": [2, 3, 4, 5]\n}\n'
    )
    assert cell.kinds == ("normal", "reduce")
    # the second is in FairDARTS's form
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
    """3 has no edge: so 4 has none, nor 5; 6 has one from an input, and 7 one from 6."""
    cell = [(7, 6), (5, 4), (4, 3), (6, 5), (6, 1)]
    genotype = make_genotype(darts_v2(normal=[["skip_connect", *states] for states in cell], normal_concat=[7, 6, 5]))
    assert genotype.edges("normal") == [Edge("skip_connect", 7, 6), Edge("skip_connect", 6, 1)]
    assert genotype.concat("normal") == [7, 6]


def test_what_the_operations_are_called_does_not_make_a_node_dead():
    cell = [["avg_pool_3x3", 3, 2], ["skip_connect", 2, 0], ["skip_connect", 4, 3]]
    genotype = make_genotype(darts_v2(normal=cell, normal_concat=[2, 3, 4]))
    assert genotype.edges("normal") == [Edge(*entry) for entry in cell]


def test_fair_darts_drops_a_node_without_edges_and_the_edges_that_leave_it():
    assert CELLS["FairDARTS_a"].concat("normal") == [2, 4, 5]
    # node 3 of FairDARTS_g's normal cell has no edge, so its skip connection into node 4 goes too
    assert Edge("skip_connect", 4, 3) in [Edge(*entry) for entry in CELLS["FairDARTS_g"].normal]
    assert Edge("skip_connect", 4, 3) not in CELLS["FairDARTS_g"].edges("normal")
    assert CELLS["FairDARTS_g"].concat("normal") == [2, 4, 5]


PARTS = "normal, normal_concat, reduce, reduce_concat"
FORMS = "expected [operation, source] or [operation, target, source], one form in a cell"
STATES = "expected an earlier state, 0 to 1, and nodes from 2 on"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            darts_v2(normal=[["sep_conv_9x9", 0], ["skip_connect", 1]]),
            f"normal, edge 0: operation 'sep_conv_9x9', expected one of {', '.join(PRIMITIVES)}",
        ),
        (
            darts_v2(reduce=[["skip_connect", 0], ["none", 1]]),
            f"reduce, edge 1: operation 'none', expected one of {', '.join(PRIMITIVES)}",
        ),
        (
            darts_v2(normal=[["skip_connect", 0], ["skip_connect", 2]]),
            f"normal, edge 1: source 2 of node 2, {STATES}",
        ),
        (
            darts_v2(normal=[["skip_connect", 0], ["skip_connect", -1]]),
            f"normal, edge 1: source -1 of node 2, {STATES}",
        ),
        (darts_v2(normal=[["skip_connect", 1, 0]]), f"normal, edge 0: source 0 of node 1, {STATES}"),
        (
            darts_v2(reduce=[["skip_connect", 4, 0], ["skip_connect", 4, 4]]),
            "reduce, edge 1: source 4 of node 4, expected an earlier state, 0 to 3, and nodes from 2 on",
        ),
        (
            darts_v2(normal=[["skip_connect", 0], ["skip_connect", True]]),
            "normal, edge 1: expected whole numbers for its states, got ['skip_connect', True]",
        ),
        (
            darts_v2(normal=[["skip_connect", 2, 0.5]]),
            "normal, edge 0: expected whole numbers for its states, got ['skip_connect', 2, 0.5]",
        ),
        (darts_v2(normal=[["skip_connect", 0]]), "normal: expected two edges for each node, got 1 edges"),
        (
            darts_v2(normal=[["skip_connect", 0], ["skip_connect", 2, 1]]),
            f"normal, edge 1: {FORMS}, got ['skip_connect', 2, 1]",
        ),
        (darts_v2(normal=[["skip_connect", 0], 7]), f"normal, edge 1: {FORMS}, got 7"),
        (darts_v2(reduce=[["skip_connect"]]), f"reduce, edge 0: {FORMS}, got ['skip_connect']"),
        (
            darts_v2(normal=[["skip_connect", 2, 1], ["max_pool_3x3", 2, 1], ["skip_connect", 2, 1]]),
            "normal, edge 2: skip_connect 1 -> 2 stands twice, expected once",
        ),
        (
            darts_v2(reduce=[["skip_connect", 3, 2]], reduce_concat=[3]),
            "reduce_concat: expected a node with a path from the cell's inputs, found none",
        ),
        (darts_v2(normal=[]), "normal: expected a list of edges, got []"),
        (darts_v2(normal="sep_conv_3x3"), "normal: expected a list of edges, got 'sep_conv_3x3'"),
        (darts_v2(normal_concat=[2, 3, 4, 6]), "normal_concat: expected distinct nodes from 2 to 5, got [2, 3, 4, 6]"),
        (darts_v2(reduce_concat=[1, 2]), "reduce_concat: expected distinct nodes from 2 to 5, got [1, 2]"),
        (darts_v2(normal_concat=[2, 2]), "normal_concat: expected distinct nodes from 2 to 5, got [2, 2]"),
        (darts_v2(normal_concat=[]), "normal_concat: expected distinct nodes from 2 to 5, got []"),
        (darts_v2(normal_concat=5), "normal_concat: expected distinct nodes from 2 to 5, got 5"),
        (
            darts_v2(normal=[["skip_connect", 0], ["skip_connect", 1]]),  # a cell of one node
            "normal_concat: expected distinct nodes from 2 to 2, got (2, 3, 4, 5)",
        ),
        (
            darts_v2(normal=[["skip_connect", 2, 0]], normal_concat=[2, 3, 4, 5, 6]),
            "normal_concat: expected distinct nodes from 2 to 5, got [2, 3, 4, 5, 6]",
        ),
        (
            darts_v2(normal=[["skip_connect", 6, 0]], normal_concat=[7]),
            "normal_concat: expected distinct nodes from 2 to 6, got [7]",
        ),
        (
            {"normal": [["skip_connect", 0], ["skip_connect", 1]], "normal_concat": [2]},
            f"expected {PARTS}; the genotype lacks reduce, reduce_concat",
        ),
        (darts_v2(extra=1, more=2), f"expected {PARTS}; the genotype has 'extra', 'more'"),
        ([1, 2], f"expected an object with {PARTS}, got [1, 2]"),
        ("x" * 58, f"expected an object with {PARTS}, got '{58 * 'x'}'"),  # of what is longer, the first 57 characters
        ("x" * 59, f"expected an object with {PARTS}, got '{56 * 'x'}..."),
    ],
)
def test_a_wrong_genotype_is_refused_with_the_reason(parts, message):
    with pytest.raises(ValueError, match="expected") as error:
        make_genotype(parts)
    assert str(error.value) == message


NO_TEXT = "expected a genotype as JSON or as Genotype(...): "
NO_LITERAL = "expected lists of edges and numbers, got "
NO_CALL = "expected Genotype(normal=..., normal_concat=..., reduce=..., reduce_concat=...)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", NO_TEXT + "Expecting value: line 1 column 1 (char 0)"),
        ("[[[[", NO_TEXT + "Expecting value: line 1 column 5 (char 4)"),
        ("Genotype(", NO_TEXT + "'(' was never closed (<unknown>, line 1)"),
        ("Genotype(normal=__import__('os').getcwd())", NO_LITERAL + "\"__import__('os').getcwd()\""),
        ("Genotype(normal={[]: 1})", NO_LITERAL + "'{[]: 1}'"),
        ("Genotype(**{})", NO_CALL),
        ("Genotype(normal=1, **{})", NO_CALL),
        ("Genotype(1, 2, 3, 4)", NO_CALL),
        ("Genotype(1)", NO_CALL),
        ("Genotype(1) + 1", NO_CALL),
        ("Genotype(normal=list(2, 6))", NO_LITERAL + "'list(2, 6)'"),
        ("Genotype(normal=a.range(2, 6))", NO_LITERAL + "'a.range(2, 6)'"),
        ("Genotype(normal=range(2, 10**12))", NO_LITERAL + "'10 ** 12'"),
        ("Genotype(normal_concat=range(2))", "normal_concat: expected range(first, last + 1), got range(2,)"),
        ("Genotype(normal=range(2, True))", "normal: expected range(first, last + 1), got range(2, True)"),
        ("Genotype(normal=range(2, 101))", "normal: expected range(first, last + 1), got range(2, 101)"),
        ("Genotype(normal=range(-1, 2))", "normal: expected range(first, last + 1), got range(-1, 2)"),
        ("Genotype(normal=[], reduce=[], normal=range(2, 6))", "normal: given twice, expected once"),
        ('{"normal": [], "reduce": [], "normal": []}', "normal: given twice, expected once"),
        # these are ranges, of a genotype that lacks the rest
        (
            "Genotype(normal=range(0, 100))",
            f"expected {PARTS}; the genotype lacks normal_concat, reduce, reduce_concat",
        ),
    ],
)
def test_text_that_is_no_genotype_is_refused_and_never_run(text, message):
    with pytest.raises(ValueError, match="expected") as error:
        parse_genotype(text)
    assert str(error.value) == message


def test_a_text_that_is_nested_too_deeply_for_the_parser_is_refused():
    with pytest.raises(ValueError, match="expected") as error:
        parse_genotype(f"Genotype({'-' * 20_000}1)")
    reason = str(error.value).removeprefix(NO_TEXT)
    assert reason == "nested too deeply" or "recursion" in reason  # the latter in newer versions of Python


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


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("DARTS_V3", "DARTS_V2, DARTS_V1, P_DARTS"),
        ("FairDARTS_", "FairDARTS_g, FairDARTS_f, FairDARTS_e"),
        ("?", "DARTS_V2"),
    ],
)
def test_an_unknown_name_is_refused_with_the_three_most_like_it(name, similar):
    with pytest.raises(ValueError, match="expected") as error:
        load_genotype(name)
    assert str(error.value) == (
        f"{name!r}, expected a cell of genotypes.py (such as {similar}), a genotype file or a run folder"
    )


def test_a_file_or_folder_without_a_genotype_is_named(tmp_path):
    with pytest.raises(ValueError, match="expected") as error:
        load_genotype(str(tmp_path))
    assert str(error.value) == f"{tmp_path}: a folder without genotype.json; expected a finished run"
    path = tmp_path / "genotype.json"
    path.write_text("[]", encoding="utf-8")
    for spec in (tmp_path, path):
        with pytest.raises(ValueError, match="expected") as error:
            load_genotype(str(spec))
        assert str(error.value) == f"{path}: expected an object with {PARTS}, got []"


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
