"""The curves of a run show its figures."""

import csv

import numpy as np
import pytest
import yaml
from PIL import Image

from analysis.curves import load_course, plot_search, search_figure
from spaces import SPACES


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
    for axes in figure.axes:  # a legend covers neither a curve nor the axis's label
        legend = axes.get_legend() and axes.get_legend().get_window_extent()
        assert not legend or not any(legend.overlaps(b) for b in (axes.bbox, axes.xaxis.label.get_window_extent()))
    # the panels fill their rows: as many end at the right edge as there are rows
    right = max(axes.get_position().x1 for axes in figure.axes)
    assert sum(axes.get_position().x1 > right - 0.02 for axes in figure.axes) == 3 + -(-count // 3)


@pytest.mark.parametrize("ranks", [(1, 1), (3, 4), (1, 9), (5, 40), (20, 15_000)])
def test_a_panel_of_ranks_has_two_labels_or_more_all_whole(tmp_path, ranks):
    make_run(tmp_path / "run", 2, own=["table_rank"])
    course = load_course(tmp_path / "run")
    course.metrics["table_rank"] = ranks
    (panel,) = [axes for axes in search_figure(course).axes if "rank" in axes.get_title(loc="left")]
    low, high = panel.get_ylim()
    assert low < min(ranks) <= max(ranks) < high
    ticks = [tick for tick in panel.get_yticks() if low <= tick <= high]
    labels = panel.yaxis.get_major_formatter().format_ticks(ticks)
    assert len(set(labels)) == len(ticks) >= 2 and all(tick == round(tick) for tick in ticks)


def test_a_figure_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    make_run(tmp_path / "run", 1)
    (tmp_path / "run/curves.png").write_bytes(b"earlier")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        plot_search(tmp_path / "run")
    assert (tmp_path / "run/curves.png").read_bytes() == b"earlier"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "alphas.npz",
        "config.yaml",
        "curves.png",
        "metrics.csv",
    ]


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
        course.metrics.loc[1, "skip_connect_reduce"] = 13
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
