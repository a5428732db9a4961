"""Pictures: the drawings hold the genotype and nothing else, the curves the run's figures."""

import csv
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from analysis.curves import load_course, plot_search, search_figure
from analysis.draw import COLORS, cell_graph, color
from genotypes import CELLS, PRIMITIVES
from spaces import SPACES
from tests.helpers import script, script_in_process

PICTURES = [f"{kind}.{suffix}" for kind in ("normal", "reduce") for suffix in ("gv", "png", "svg")]
STATES = {"c_{k-2}": 0, "c_{k-1}": 1, **{str(node - 2): node for node in range(2, 7)}}


def parse(source):
    """(operation, target, source) of the drawn operations, the concatenated nodes and the names of the drawn states."""
    operations = dict(re.findall(r"^\t(e\d+) \[label=(\w+) ", source, re.MULTILINE))
    lines = re.findall(r'^\t"?([^"\s]+)"? -> "?([^"\s]+)"? ', source, re.MULTILINE)
    names = re.findall(r'^\t"?([^"\s]+)"? \[label=.* fillcolor=', source, re.MULTILINE)
    begins = {end: begin for begin, end in lines if end in operations}
    ends = {begin: end for begin, end in lines if begin in operations}
    edges = [(operation, STATES[ends[e]], STATES[begins[e]]) for e, operation in operations.items()]
    concat = [STATES[begin] for begin, end in lines if end == "c_{k}"]
    assert len(lines) == 2 * len(edges) + len(concat)
    return edges, concat, set(names)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_a_drawing_has_the_edges_of_the_genotype_and_no_others(name, kind):
    genotype = CELLS[name]
    edges, concat, names = parse(cell_graph(genotype, kind).source)
    assert edges == genotype.edges(kind)
    assert concat == genotype.concat(kind)
    assert names == {"c_{k-2}", "c_{k-1}", "c_{k}"} | {str(edge.target - 2) for edge in genotype.edges(kind)}


def test_darts_v2_is_drawn_as_its_paper_prints_it():
    edges, _, names = parse(cell_graph(CELLS["DARTS_V2"], "normal").source)
    assert sorted(edges) == [
        ("dil_conv_3x3", 5, 2),
        *(("sep_conv_3x3", target, source) for target in (2, 3) for source in (0, 1)),
        ("sep_conv_3x3", 4, 1),
        ("skip_connect", 4, 0),
        ("skip_connect", 5, 0),
    ]
    assert names == {"c_{k-2}", "c_{k-1}", "0", "1", "2", "3", "c_{k}"}


def test_a_dropped_node_is_not_drawn():
    _, concat, names = parse(cell_graph(CELLS["FairDARTS_a"], "normal").source)
    assert names == {"c_{k-2}", "c_{k-1}", "0", "2", "3", "c_{k}"}
    assert concat == [2, 4, 5]


def test_only_skip_connections_are_dashed_and_no_two_kinds_share_a_color():
    source = cell_graph(CELLS["DARTS_V2"], "reduce").source
    shades = dict(re.findall(r' -> .*color="(#\w+)".* style=(\w+)', source))
    assert shades == {color("skip_connect"): "dashed", color("max_pool_3x3"): "solid"}
    # `none` and nor_conv_* are in no genotype
    assert len({color(operation) for operation in PRIMITIVES}) == len(COLORS) - 3


@pytest.mark.skipif(shutil.which("dot") is None, reason="no dot on PATH")
def test_the_command_draws_both_cells_and_names_the_files(tmp_path):
    result = script("analysis/draw.py", "DARTS_V2", "--out", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(result.stdout.splitlines()) == [str(tmp_path / name) for name in PICTURES]
    for kind in ("normal", "reduce"):
        svg = (tmp_path / f"{kind}.svg").read_text()
        drawn = re.findall(r">(\w+_\w+)</text>", svg)
        assert sorted(drawn) == sorted(edge.operation for edge in CELLS["DARTS_V2"].edges(kind))
        width, height = Image.open(tmp_path / f"{kind}.png").size
        assert width > 1200 and width > height > 400


@pytest.mark.parametrize("said", ["", 'Format: "svg" not recognized. Perhaps "dot -c" needs to be run'])
def test_without_a_dot_that_works_matplotlib_draws_and_one_line_says_how_to_get_it(tmp_path, monkeypatch, said):
    path, out = tmp_path / "path", tmp_path / "cells"
    path.mkdir()
    if said:
        (path / "dot").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        (path / "dot").chmod(0o755)
    monkeypatch.setenv("PATH", str(path))
    result = script_in_process("analysis/draw.py", "FairDARTS_a", "--out", out)
    assert result.returncode == 0
    assert len(result.stderr.splitlines()) == 1 and "apt-get install graphviz" in result.stderr
    assert f"`dot` fails ({said})" in result.stderr if said else "no `dot` on PATH" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == PICTURES
    for kind in ("normal", "reduce"):
        assert parse((out / f"{kind}.gv").read_text())[0] == CELLS["FairDARTS_a"].edges(kind)
        drawn = re.findall(r"<!-- (\w+_\w+) -->", (out / f"{kind}.svg").read_text())
        assert sorted(drawn) == sorted(edge.operation for edge in CELLS["FairDARTS_a"].edges(kind))
        width, height = Image.open(out / f"{kind}.png").size
        assert width > 1200 and width > height > 400


def make_run(folder, epochs, space="s1", own=(), **changes):
    """A run folder of as many epochs; the regularizer is not measured in the first, as in a run.

    Its config.yaml has no more than those of the first runs had, but for `changes`; `own` are columns of a method.
    """
    generator = np.random.default_rng(0)
    columns = ["train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "train_alignment", "valid_alignment"]
    columns += ["loss_gradient_norm", *(f"gradient_norm_layer_{layer}" for layer in range(5))]
    columns += ["entropy_normal", "entropy_reduce", *own]
    rows = [
        {
            "epoch": epoch,
            **{name: generator.uniform(0.1, 1) for name in columns},
            "regularizer_gradient_norm": None if epoch == 1 else 0.5,
            "skip_connect_normal": epoch % 9,
            "skip_connect_reduce": 2,
        }
        for epoch in range(1, epochs + 1)
    ]
    folder.mkdir()
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    shape = (epochs + 1, 14, len(SPACES[space].cells["normal"][0]))
    np.savez(folder / "alphas.npz", normal=generator.normal(size=shape), reduce=generator.normal(size=shape))
    settings = {"dataset": "digits", "space": space, "reg": "corr", "lambda_": 0.125, "seed": 3}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | changes))
    return rows


def test_mixing_weights_are_means_over_the_edges_that_have_the_operation(tmp_path):
    make_run(tmp_path / "run", epochs=3)
    mixing = load_course(tmp_path / "run").mixing["reduce"]
    alphas = np.load(tmp_path / "run/alphas.npz")["reduce"]
    candidates = SPACES["s1"].cells["reduce"]
    assert set(mixing) == {operation for edge in candidates for operation in edge}
    for operation, means in mixing.items():
        expected = [
            np.mean(
                [
                    np.exp(alpha[edge, edge_candidates.index(operation)]) / np.exp(alpha[edge]).sum()
                    for edge, edge_candidates in enumerate(candidates)
                    if operation in edge_candidates
                ]
            )
            for alpha in alphas
        ]
        np.testing.assert_allclose(means, expected, rtol=1e-12)


@pytest.mark.parametrize("epochs", [1, 50])
def test_the_panels_show_the_columns_of_the_metrics(tmp_path, epochs):
    rows = make_run(tmp_path / "run", epochs)
    figure = search_figure(load_course(tmp_path / "run"))
    assert figure.get_suptitle() == "Search on digits, space s1: darts with corr, λ = 0.125, seed 3"
    loss, accuracy, _, layers, gradients, _, skips, normal, _ = figure.axes
    assert [line.get_label() for line in loss.lines] == ["train", "valid"]
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [100 * row["valid_accuracy"] for row in rows])
    np.testing.assert_allclose(layers.lines[4].get_ydata(), [row["gradient_norm_layer_4"] for row in rows])
    np.testing.assert_array_equal(skips.lines[0].get_ydata(), [row["skip_connect_normal"] for row in rows])
    assert layers.get_yscale() == gradients.get_yscale() == "log"
    # a regularizer that was never measured has no curve
    assert [line.get_label() for line in gradients.lines] == (["loss", "regularizer"] if epochs > 1 else ["loss"])
    assert all(len(line.get_xdata()) == epochs + 1 for line in normal.lines)

    plot_search(tmp_path / "run")
    assert Image.open(tmp_path / "run/curves.png").size == (1800, 1440)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "lambda-darts"}, "lambda-darts with corr, λ = 0.125"),
        ({"method": "lambda-darts", "reg": "none"}, "lambda-darts with no regularizer"),
        ({"method": "darts-minus", "auxiliary_skip": "skip"}, "darts-minus with corr, λ = 0.125"),
        ({"method": "darts-minus", "auxiliary_skip": "conv1", "reg": "none"}, "darts-minus with auxiliary conv1"),
        ({"method": "fair-darts", "relaxation": "sigmoid", "reg": "none"}, "fair-darts"),
        ({"method": "fair-darts", "alpha_reg": "none", "reg": "none"}, "fair-darts with no alpha_reg"),
        (
            {"method": "idarts", "relaxation": "sigmoid", "selection": "threshold_edge", "reg": "none"},
            "idarts with sigmoid, threshold_edge",
        ),
        ({"method": "darts-pt", "hypergradient": "implicit", "reg": "none"}, "darts-pt with implicit hypergradient"),
    ],
)
def test_the_title_names_the_method_and_what_its_paper_has_not(tmp_path, settings, expected):
    make_run(tmp_path / "run", 1, **settings)
    title = search_figure(load_course(tmp_path / "run")).get_suptitle()
    assert title == f"Search on digits, space s1: {expected}, seed 3"


OWN = {
    "Weight β of the auxiliary skip": ["skip_beta"],
    "Norm of the gradient in α": ["direct_gradient_norm", "indirect_gradient_norm"],
    "Residual of the Neumann series": ["neumann_residual"],
    "Regularizer of α": ["alpha_regularizer"],
    "Gates over the threshold [%]": ["gates_over_threshold_normal", "gates_over_threshold_reduce"],
}


@pytest.mark.parametrize("count", [0, 1, 4, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 3, 5))])
def test_each_quantity_of_a_method_has_a_panel_and_no_panels_overlap(tmp_path, count):
    drawn = dict(list(OWN.items())[:count])
    rows = make_run(tmp_path / "run", 3, own=[column for columns in drawn.values() for column in columns])
    figure = search_figure(load_course(tmp_path / "run"))
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert len(figure.axes) == len(panels) == 9 + count
    assert panels.keys() & OWN.keys() == drawn.keys()
    for title, columns in drawn.items():
        scale = 100 if "%" in title else 1
        for line, column in zip(panels[title].lines, columns, strict=True):
            np.testing.assert_allclose(line.get_ydata(), [scale * row[column] for row in rows])
        assert panels[title].get_yscale() == ("log" if title.startswith(("Norm", "Residual")) else "linear")

    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(a.overlaps(b) for a, b in pairs)
    # the panels fill their rows: as many end at the right edge as there are rows
    right = max(axes.get_position().x1 for axes in figure.axes)
    assert sum(axes.get_position().x1 > right - 0.02 for axes in figure.axes) == 3 + -(-count // 3)


def test_gates_are_drawn_as_sigmoids(tmp_path):
    make_run(tmp_path / "run", 2, space="s2", relaxation="sigmoid")
    alphas = np.load(tmp_path / "run/alphas.npz")["normal"]
    course = load_course(tmp_path / "run")
    np.testing.assert_allclose(
        course.mixing["normal"]["sep_conv_3x3"], (1 / (1 + np.exp(-alphas[..., 1]))).mean(axis=1)
    )
    titles = [axes.get_title(loc="left") for axes in search_figure(course).axes]
    assert "Entropy of the gates [nats]" in titles and "Entropy of p [nats]" not in titles


@pytest.mark.parametrize("selection", ["argmax", "perturbation", "threshold_sparse", "threshold_edge"])
def test_under_a_threshold_the_axis_of_the_skip_connections_holds_more_than_eight(tmp_path, selection):
    make_run(tmp_path / "run", 3, relaxation="sigmoid", selection=selection)
    course = load_course(tmp_path / "run")
    free = selection.startswith("threshold")
    if free:
        course.metrics["skip_connect_reduce"][1] = 13
    skips = search_figure(course).axes[6]
    assert skips.get_title(loc="left") == ("Skip connections" if free else "Skip connections (of 8)")
    assert skips.get_ylim()[1] == pytest.approx(13.3 if free else 8.3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "- no settings"),
        ("config.yaml", "a: b: c"),
        ("config.yaml", "space: s9"),
        ("metrics.csv", "a,b\n1,2\n"),
        ("metrics.csv", "a,b\n1\n1,2,3\n"),
        ("alphas.npz", ""),
        ("alphas.npz", "PK\x03\x04"),
    ],
)
def test_a_damaged_run_folder_is_refused_in_one_line(tmp_path, name, content):
    make_run(tmp_path / "run", epochs=2)
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(ValueError) as refusal:
        plot_search(tmp_path / "run")
    assert len(str(refusal.value).splitlines()) == 1
