"""Genotypes: text forms, names, invalid input, and selection by argmax."""

import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import genotypes
from genotypes import (
    CELLS,
    Edge,
    Genotype,
    load_genotype,
    make_genotype,
    named_cells,
    parse_genotype,
    short_name,
)
from lib import plugins
from nasbench201.cells import load_any
from operations import OPERATIONS
from spaces import SPACES
from tests.helpers import ROOT, assert_rejected, local_data, script, script_in_process, select

EDGES = SPACES["s5"].edges

DARTS_SPACES = ("s1", "s2", "s3", "s4", "s5")
KINDS = ("normal", "reduce")


def darts_v2(**changes):
    return {**CELLS["DARTS_V2"]._asdict(), **changes}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_survives_a_round_trip_through_json_and_its_printed_form(name):
    assert parse_genotype(CELLS[name].to_json()) == CELLS[name]
    assert parse_genotype(str(CELLS[name])) == CELLS[name]
    assert parse_genotype(f"\n {CELLS[name]}\n") == CELLS[name]


def test_the_cells_are_the_published_ones():
    """The fixed weights of DARTS_EXP*, (operation, source, weight), are left out."""
    published = json.loads((local_data() / "published/architectures.json").read_text())
    assert list(published) == list(CELLS)
    for name, cell in published.items():
        edges = {kind: [[part for part in e if not isinstance(part, float)] for e in cell[kind]] for kind in KINDS}
        assert make_genotype({part: {**cell, **edges}[part] for part in Genotype._fields}) == CELLS[name]


def test_every_published_cell_has_a_source():
    published = json.loads((ROOT / "published_cells.json").read_text(encoding="utf-8"))
    assert len(published) == 154
    for name, cell in published.items():
        assert cell["source"] and {*cell} <= {*Genotype._fields, "source", "note"}, name


def test_the_form_of_darts_logs_is_parsed_including_range():
    text = (
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0)], normal_concat=range(2, 3), "
        "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1)], reduce_concat=range(2, 3))"
    )
    genotype = parse_genotype(text)
    assert genotype.edges("normal") == [Edge("sep_conv_3x3", 2, 1), Edge("skip_connect", 2, 0)]
    assert genotype.concat("reduce") == [2]


def test_a_cell_whose_edges_have_targets_sums_its_nodes_as_in_fair_darts():
    cell = make_genotype(darts_v2(reduce=[["skip_connect", 2, 1]], reduce_concat=[2]))
    assert cell.kinds == ("normal", "reduce")
    assert [cell.sums_nodes(kind) for kind in cell.kinds] == [False, True]


def test_states_have_the_names_of_the_paper_and_leave_out_dead_nodes():
    assert CELLS["FairDARTS_g"].states("normal") == {
        0: ("c_{k-2}", "input"),
        1: ("c_{k-1}", "input"),
        2: ("0", "node"),
        4: ("2", "node"),
        5: ("3", "node"),
        "output": ("c_{k}", "output"),
    }
    assert list(CELLS["DARTS_V2"].states("reduce")) == [0, 1, 2, 3, 4, 5, "output"]


def test_a_node_with_inputs_from_dead_nodes_only_is_dead_in_any_order_of_the_edges():
    # no edge enters node 3 of FairDARTS_g's normal cell, so its skip connection to node 4 is removed too
    assert Edge("skip_connect", 4, 3) in [Edge(*entry) for entry in CELLS["FairDARTS_g"].normal]
    assert Edge("skip_connect", 4, 3) not in CELLS["FairDARTS_g"].edges("normal")
    assert CELLS["FairDARTS_g"].concat("normal") == [2, 4, 5]
    # no edge enters node 3, so nodes 4 and 5 are dead; node 6 has an edge from an input, and node 7 one from node 6
    cell = [(7, 6), (5, 4), (4, 3), (6, 5), (6, 1)]
    genotype = make_genotype(darts_v2(normal=[["skip_connect", *states] for states in cell], normal_concat=[7, 6, 5]))
    assert genotype.edges("normal") == [Edge("skip_connect", 7, 6), Edge("skip_connect", 6, 1)]
    assert genotype.concat("normal") == [7, 6]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"normal": [[3, 0], ["skip_connect", 1]]}, "normal, edge 0 [3, 0]: expected the name of an operation first"),
        ({"reduce": [["skip_connect", 0], ["", 1]]}, "reduce, edge 1 ['', 1]: expected the name of an operation"),
        ({"reduce": [["skip_connect", 4, 4]]}, "reduce, edge 0 ('skip_connect', 4, 4): source 4 of node 4, expected"),
        (
            {"normal": [["skip_connect", 0], ["skip_connect", True]]},
            "normal, edge 1 ['skip_connect', True]: expected whole numbers",
        ),
        ({"normal": [["skip_connect", 0]]}, "normal: expected two edges for each node, got 1 edges"),
        (
            {"normal": [["skip_connect", 0], ["skip_connect", 2, 1]]},
            "edge 1 ['skip_connect', 2, 1]: expected [operation,",
        ),
        (
            {"normal": [["skip_connect", 2, 1]] * 2},
            "normal, edge 1 ('skip_connect', 2, 1): this edge is listed twice",
        ),
        ({"reduce": [["skip_connect", 3, 2]], "reduce_concat": [3]}, "reduce_concat: no node in it has a path from"),
        ({"normal": [["none", 0], ["none", 1]], "normal_concat": [2]}, "normal_concat: no node in it has a path from"),
        ({"normal_concat": [2, 2]}, "normal_concat: expected distinct nodes from 2 to 5, got [2, 2]"),
        ({"reduce_concat": [1, 2]}, "reduce_concat: expected distinct nodes from 2 to 5, got [1, 2]"),
        # a cell with one node, and a cell in FairDARTS's form, whose concat may list nodes without edges
        ({"normal": [["skip_connect", 0], ["skip_connect", 1]]}, "normal_concat: expected distinct nodes from 2 to 2"),
        (
            {"normal": [["skip_connect", 6, 0]], "normal_concat": [7]},
            "normal_concat: no node in it has a path from",
        ),
    ],
)
def test_a_wrong_genotype_is_rejected_with_the_reason(changes, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        make_genotype(darts_v2(**changes))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected a genotype as JSON or as Genotype(...)"),
        ("Genotype(", "expected a genotype as JSON or as Genotype(...)"),
        (f"Genotype({'-' * 20_000}1)", "expected a genotype as JSON or as Genotype(...)"),
        ("[1, 2]", "expected an object with normal, normal_concat, reduce, reduce_concat, got [1, 2]"),
        ("Genotype(normal=__import__('os').getcwd())", "normal: expected lists of strings and numbers, got"),
        ("Genotype(normal=1, **{})", "expected the arguments normal, normal_concat, reduce, reduce_concat, got 'Geno"),
        ("Genotype(1, 2, 3, 4, 5)", "expected the arguments normal, normal_concat, reduce, reduce_concat, got"),
        ("Genotype(normal_concat=range(2, 4, 6))", "normal_concat: expected range(first, last + 1), got range(2, 4,"),
        ("Genotype(normal=range(2, 101))", "normal: expected range(first, last + 1), got range(2, 101)"),
        ("Genotype([], normal=[])", "normal: given twice, expected once"),
        ('{"normal": [], "reduce": [], "normal": []}', "normal: given twice, expected once"),
        (
            "A = Genotype(normal=1)\nB = Genotype(normal=2)",
            "it has several cells; write FILE:NAME to choose one of A, B",
        ),
    ],
    ids=range(12),
)
def test_text_that_is_not_a_genotype_is_rejected_and_never_executed(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_genotype(text)


PRINTED = str(CELLS["DARTS_V2"])


@given(
    st.text()
    | st.text().map(lambda text: PRINTED[:50] + text + PRINTED[50:])
    | st.builds(json.dumps, st.recursive(st.none() | st.integers() | st.text(), st.lists))
)
def test_any_text_is_a_genotype_or_a_value_error(text):
    try:
        genotype = parse_genotype(text)
    except ValueError:
        return
    assert make_genotype(genotype._asdict()) == genotype


V1, V2 = str(CELLS["DARTS_V1"]), str(CELLS["DARTS_V2"])
LINES = V2.replace("), (", "),  # don't: ')'\r\n (").replace(")))", "),),)")
#: DARTS_V2 in the forms in which genotypes are found
FORMS = {
    "assigned": f"mine = {V2}",
    "annotated": f"mine: Genotype = {V2}",
    "positional": "Genotype({normal}, {normal_concat}, {reduce}, {reduce_concat})".format(
        **CELLS["DARTS_V2"]._asdict()
    ),
    "lists": str(Genotype(*(list(part) for part in CELLS["DARTS_V2"]))),
    "qualified": f"genotypes.{V2}",
    "range": V2.replace("(2, 3, 4, 5)", "range(2, 6)", 1).replace("(2, 3, 4, 5)", "list(range(2, 6))"),
    "several lines": f"# the cell (of mine):\r\nmine = {LINES},\r\n",
    "log of several lines": f"12:00 mine = {LINES}\r\n12:01 (done\r\n",
    "byte order mark": f"\ufeff{V2}\n",
    "JSON": "\ufeff\r\n" + CELLS["DARTS_V2"].to_json().replace("\n", "\r\n"),
    "log": f"2020-01-01 12:00:01,123 don't\n2020-01-01 12:00:01,123 genotype = {V1}\n[12:00] genotype = {V2} (best)\n",
    "plain log": f"Genotype: {V1}\nGenotype: {V2}\n",
}
#: genotypes.py in the form of DARTS
DARTS_FILE = f'''"""Cells, such as Genotype(normal=...)."""
from collections import namedtuple
Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat')
# V1 = Genotype(normal=[])
V1 = {V1}
V2 = {V2}
DARTS = V2
'''


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_from_a_file_and_on_the_command_line(tmp_path, form):
    (tmp_path / "cell").write_bytes(FORMS[form].encode())
    for spec in (str(tmp_path / "cell"), FORMS[form]):
        assert load_genotype(spec) == load_any(spec) == CELLS["DARTS_V2"]


def test_one_of_several_cells_of_a_python_file_is_chosen_by_its_name(tmp_path):
    path = tmp_path / "old.py"
    path.write_text(DARTS_FILE)
    assert load_genotype(f"{path}:V1") == load_any(f"{path}:V1") == CELLS["DARTS_V1"]
    assert load_genotype(f"{path}:DARTS") == CELLS["DARTS_V2"]
    assert [short_name(spec) for spec in (f"{path}:V1", str(path), "DARTS_V2", V2)] == [
        "V1",
        "old",
        "DARTS_V2",
        "genotype",
    ]
    for spec, message in (
        (f"{path}:V3", f"{path}: it has no V3 = Genotype(...); its cells are V1, V2, DARTS"),
        (str(path), f"{path}: it has several cells; write FILE:NAME to choose one of V1, V2, DARTS"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            load_genotype(spec)


MINE = Genotype([("noise", 0), ("noise", 1)], range(2, 3), [("none", 0), ("noise", 1)], [2])


@pytest.fixture
def own_cells(monkeypatch):
    monkeypatch.setattr(plugins, "LOADED", [])
    return monkeypatch


def add_plugin(names):
    """Add a plugin whose module defines these names."""
    module = ModuleType("plugin")
    vars(module).update(names)
    plugins.LOADED.append(plugins.Plugin(Path("plugin.py"), "", module))


def test_cells_of_genotypes_py_and_of_plugins_are_found_by_name(own_cells):
    own_cells.setattr(genotypes, "mine", MINE, raising=False)
    add_plugin({"theirs": CELLS["DARTS_V1"], "other": 3})
    assert named_cells() == {**CELLS, "mine": MINE, "theirs": CELLS["DARTS_V1"]}
    assert load_genotype("mine") == make_genotype(MINE._asdict())
    assert load_genotype("theirs") == CELLS["DARTS_V1"]


def test_a_name_belongs_to_one_cell(own_cells):
    add_plugin({"mine": MINE, "DARTS_V2": CELLS["DARTS_V2"]})
    add_plugin({"mine": MINE})  # the same cell, as in a plugin that imports it
    assert named_cells() == {**CELLS, "mine": MINE}
    for name in ("DARTS_V2", "mine"):
        add_plugin({name: CELLS["DARTS_V1"]})
        with pytest.raises(ValueError, match=f"^cell '{name}' of .*: this name is taken; choose another$"):
            load_genotype("DARTS_V1")
        plugins.LOADED.pop()
    own_cells.setattr(genotypes, "DARTS_V2", MINE, raising=False)
    with pytest.raises(ValueError, match=r"^cell 'DARTS_V2' of .*genotypes.py: this name is taken; choose another$"):
        load_genotype("DARTS_V1")


def test_an_unknown_name_is_rejected_with_the_nearest_names(own_cells):
    add_plugin({"my_cell": MINE})
    with pytest.raises(
        ValueError, match=r"^'my_cel', expected a cell of genotypes.py \(such as my_cell\), a genotype file"
    ):
        load_genotype("my_cel")
    with pytest.raises(ValueError, match=r"^'xxx.*xxx\.\.\., expected a cell of genotypes.py"):
        load_genotype("x" * 5000)


@pytest.mark.parametrize(
    ("operation", "answer"),
    [
        ("sep_conv_3x", "unknown operation 'sep_conv_3x'; did you mean sep_conv_3x3? Load your own operations with"),
        ("attention", "unknown operation 'attention'. Load your own operations with --plugin FILE.py"),
    ],
)
def test_an_unknown_operation_is_rejected_with_its_cell_its_edge_and_the_nearest_name(own_cells, operation, answer):
    cell = MINE._replace(reduce=[("noise", 0), (operation, 1)])
    add_plugin({"mine": cell})
    for spec, name in (("mine", "mine"), (str(cell), "genotype")):
        with pytest.raises(ValueError, match=re.escape(f"{name}: reduce, edge 1 ('{operation}', 1): {answer}")):
            load_genotype(spec)
        assert load_any(spec).reduce[1] == (operation, 1)  # drawings and reports need no operations
    own_cells.setitem(OPERATIONS, operation, OPERATIONS["noise"])
    assert load_genotype("mine").reduce[1] == (operation, 1)


def test_edges_of_none_are_left_out_with_a_warning_and_the_others_keep_their_nodes(own_cells, capsys):
    normal = [("none", 0), ("none", 1), ("skip_connect", 0), ("noise", 2), ("none", 1), ("sep_conv_3x3", 3)]
    cell = Genotype(normal, (2, 3, 4), MINE.reduce, (2,))
    add_plugin({"mine": cell, "one": MINE})
    genotype = load_genotype("mine")
    assert genotype.edges("normal") == [Edge("skip_connect", 3, 0), Edge("sep_conv_3x3", 4, 3)]
    assert genotype.concat("normal") == [3, 4]
    assert genotype.edges("reduce") == [Edge("noise", 2, 1)]
    assert parse_genotype(genotype.to_json()) == genotype
    assert capsys.readouterr() == ("", "warning: mine: 4 edges of none are left out\n")
    load_genotype("one")
    assert capsys.readouterr().err == "warning: one: 1 edge of none is left out\n"


def test_scripts_accept_a_genotype_as_text():
    by_name, by_text, by_json = (
        script_in_process("analysis/size.py", spec)
        for spec in ("DARTS_V2", f"mine = {V2}", CELLS["DARTS_V2"].to_json())
    )
    assert by_text.stdout == by_json.stdout == by_name.stdout != ""
    wrong = script("train/train.py", "--arch", V2.replace("('dil_conv_3x3', 2)", "('dil_conv_3x', 2)"))
    assert_rejected(wrong, "--arch: genotype: normal, edge 7 ('dil_conv_3x', 2): unknown operation", "dil_conv_3x3?")
    assert_rejected(
        script_in_process("train/train.py", "--arch", f"{V2[:-1]}, 3)"), "train.py: error: --arch: genotype: "
    )


def test_named_cells_and_the_cells_of_runs_are_read_without_torch(tmp_path):
    (tmp_path / "genotype.json").write_text(make_genotype(MINE._asdict()).to_json())
    code = f"""
import sys
from genotypes import load_genotype
from lib import plugins
from nasbench201.cells import load_any
load_genotype("DARTS_V2"), load_any({str(tmp_path)!r}), load_any({V2!r})
print("torch" in sys.modules)
"""
    assert script("-c", code).stdout == "False\n"


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


def test_argmax_keeps_the_two_strongest_edges_of_each_node_with_their_strongest_operations():
    space = SPACES["s1"]
    weights = {kind: np.full((len(EDGES), 2), 0.5) for kind in ("normal", "reduce")}
    for kind in weights:
        weights[kind][:, 0] = 0.6
    weights["normal"][12] = [0.1, 0.9]  # 3 -> 5: dil_conv_3x3 or dil_conv_5x5
    weights["normal"][9] = [0.2, 0.8]  # 0 -> 5: skip_connect or sep_conv_3x3
    genotype = select(space, weights, "argmax")
    assert genotype.normal[6:] == (("dil_conv_5x5", 3), ("sep_conv_3x3", 0))
    # ties go to the earlier edge and the earlier candidate
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
