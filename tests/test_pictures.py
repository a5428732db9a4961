"""The figures of runs show the values of their files."""

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.text import Text
from PIL import Image

from analysis.compare import cells_figure, compare_figure, group_seeds, summary
from analysis.curves import load_course, plot_search, search_figure
from genotypes import CELLS
from nasbench201.cells import OPERATIONS, parse_cell
from spaces import SPACES

#: the edges into the second and third node of a cell without `none`
MORE = ["|nor_conv_3x3~0|skip_connect~1|", "|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"]


def make_run(folder, epochs, space="s1", own=(), given=(), **changes):
    """Write a run folder with random metrics and alphas, and return the metrics.

    Args:
        folder: The run folder.
        epochs: Number of epochs.
        space: The search space.
        own: Columns of metrics.csv that only the method has.
        given: Settings that the command line gave.
        changes: Values of settings.
    """
    generator = np.random.default_rng(0)
    columns = ["train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "train_alignment", "valid_alignment"]
    columns += ["loss_gradient_norm", *(f"gradient_norm_layer_{layer}" for layer in range(5))]
    columns += ["entropy_normal", "entropy_reduce", *own]
    rows = pd.DataFrame(generator.uniform(0.1, 1, size=(epochs, len(columns))), columns=columns)
    rows["epoch"] = np.arange(1, epochs + 1)
    rows["regularizer_gradient_norm"] = np.where(rows["epoch"] == 1, np.nan, 0.5)
    rows["skip_connect_normal"], rows["skip_connect_reduce"] = rows["epoch"] % 9, 2
    folder.mkdir()
    rows.to_csv(folder / "metrics.csv", index=False)
    shape = (epochs + 1, 14, len(SPACES[space].cells["normal"][0]))
    alphas = {kind: generator.normal(size=shape) for kind in ("normal", "reduce")}
    np.savez(folder / "alphas.npz", **alphas, **{f"{k}_operations": e for k, e in SPACES[space].cells.items()})
    settings = {"dataset": "digits", "space": space, "method": "darts", "reg": "corr", "lambda_": 0.125, "seed": 3}
    settings |= {"relaxation": "softmax", "selection": "argmax", "released": False, **changes}
    origin = {"settings_from": {"command line": ["method", *given], "default": ["lambda_"]}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "provenance": origin}))
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
    assert figure.get_suptitle() == "Search on digits, space s1: darts, seed 3"
    loss, accuracy, _, layers, gradients, _, skips, normal, _ = figure.axes
    assert [line.get_label() for line in loss.lines] == ["train", "valid"]
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), 100 * rows["valid_accuracy"])
    np.testing.assert_allclose(layers.lines[4].get_ydata(), rows["gradient_norm_layer_4"])
    np.testing.assert_array_equal(skips.lines[0].get_ydata(), rows["skip_connect_normal"])
    assert layers.get_yscale() == gradients.get_yscale() == "log"
    # there is no curve for a regularizer without values
    assert [line.get_label() for line in gradients.lines] == (["loss", "regularizer"] if epochs > 1 else ["loss"])
    assert all(len(line.get_xdata()) == epochs + 1 for line in normal.lines)

    plot_search(tmp_path / "run")
    assert Image.open(tmp_path / "run/curves.png").size == (1800, 1440)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "lambda-darts", "reg": "signcorr", "lambda_": 0.5}, "lambda-darts, reg signcorr, lambda_ 0.5"),
        ({"method": "darts-minus", "auxiliary_skip": "conv1"}, "darts-minus, auxiliary_skip conv1"),
        ({"method": "fair-darts"}, "fair-darts"),
        ({"method": "idarts", "released": True}, "idarts, released code"),
    ],
)
def test_the_title_names_the_method_and_the_settings_given_with_it(tmp_path, settings, expected):
    make_run(tmp_path / "run", 1, given=[name for name in settings if name != "method"], **settings)
    title = search_figure(load_course(tmp_path / "run")).get_suptitle()
    assert title == f"Search on digits, space s1: {expected}, seed 3"


OWN = {
    "Weight β of the auxiliary skip": ["skip_beta"],
    "Norm of the gradient in α": ["direct_gradient_norm", "indirect_gradient_norm"],
    "Residual of the Neumann series": ["neumann_residual"],
    "Regularizer of α": ["alpha_regularizer"],
    "Gates over the threshold [%]": ["gates_over_threshold_normal", "gates_over_threshold_reduce"],
}


@pytest.mark.parametrize("count", [0, 4, pytest.param(5, marks=pytest.mark.slow)])
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
            np.testing.assert_allclose(line.get_ydata(), scale * rows[column])
        assert panels[title].get_yscale() == ("log" if title.startswith(("Norm", "Residual")) else "linear")

    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(a.overlaps(b) for a, b in pairs)
    for axes in figure.axes:  # the legend overlaps neither the curves nor the axis label
        legend = axes.get_legend() and axes.get_legend().get_window_extent()
        assert not legend or not any(legend.overlaps(b) for b in (axes.bbox, axes.xaxis.label.get_window_extent()))


def test_gates_are_drawn_as_sigmoids(tmp_path):
    make_run(tmp_path / "run", 2, space="s2", relaxation="sigmoid")
    alphas = np.load(tmp_path / "run/alphas.npz")["normal"]
    course = load_course(tmp_path / "run")
    np.testing.assert_allclose(
        course.mixing["normal"]["sep_conv_3x3"], (1 / (1 + np.exp(-alphas[..., 1]))).mean(axis=1)
    )
    titles = [axes.get_title(loc="left") for axes in search_figure(course).axes]
    assert "Entropy of the gates [nats]" in titles and "Entropy of p [nats]" not in titles


def test_the_cells_of_two_searches_are_drawn_below_their_alignment_and_skips(tmp_path):
    cells = {"darts": CELLS["DARTS_V2"], "lambda-darts": CELLS["LambdaDARTS_corr_0"]}
    searches = {}
    for method, cell in cells.items():
        rows = make_run(tmp_path / method, epochs=4, method=method)
        (tmp_path / method / "genotype.json").write_text(cell.to_json())
        searches[tmp_path / method] = load_course(tmp_path / method)
    figure = cells_figure(searches)
    alignment, skips, *rest = figure.axes
    assert [line.get_label() for line in alignment.lines] == list(cells)
    np.testing.assert_allclose(skips.lines[1].get_ydata(), rows.skip_connect_normal + rows.skip_connect_reduce)
    for column, (method, cell) in enumerate(cells.items()):
        for mixing, drawing, kind in zip(rest[column::4], rest[column + 2 :: 4], ("normal", "reduce"), strict=True):
            assert mixing.get_title(loc="left") == f"{method}: mixing weights p, {kind} cell"
            written = sorted(text.get_text() for text in drawing.texts if "_" in text.get_text().strip("$")[2:])
            assert written == sorted(edge.operation for edge in cell.edges(kind))


def test_cells_of_different_spaces_are_not_drawn_together(tmp_path):
    make_run(tmp_path / "a", epochs=1, space="s2")
    make_run(tmp_path / "b", epochs=1, space="s4")
    with pytest.raises(ValueError, match="searches are in s2, s4; --cells expects searches in one space"):
        cells_figure({tmp_path / name: load_course(tmp_path / name) for name in ("a", "b")})


def test_searches_with_the_same_title_are_distinguished_by_seed_or_folder(tmp_path):
    for name, seed in (("a", 1), ("b", 2), ("c", 2)):
        make_run(tmp_path / name, epochs=1, seed=seed)
        (tmp_path / name / "genotype.json").write_text(CELLS["DARTS_V2"].to_json())
    searches = {tmp_path / name: load_course(tmp_path / name) for name in ("a", "b", "c")}
    drawn = [line.get_label() for line in cells_figure(searches).axes[0].lines]
    assert drawn == ["darts, seed 1", f"darts ({tmp_path / 'b'})", f"darts ({tmp_path / 'c'})"]


def test_every_drawing_of_a_cell_fits_into_its_axes(tmp_path):
    alphas = {"cell": np.zeros((2, 6, 5)), "cell_operations": np.array([OPERATIONS] * 6)}
    archs = ["+".join(["|nor_conv_1x1~0|", *MORE]), "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"]
    searches = {}
    for method, arch in zip(("darts", "lambda-darts"), archs, strict=True):
        run = tmp_path / method
        make_run(run, epochs=1, method=method)
        settings = yaml.safe_load((run / "config.yaml").read_text()) | {"space": "nasbench201"}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        np.savez(run / "alphas.npz", **alphas)
        (run / "genotype.json").write_text(parse_cell(arch).to_json())
        searches[run] = load_course(run)
    for axes in cells_figure(searches).axes[4:]:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        places = [text.get_position() for text in axes.texts]
        assert len(places) >= 5 and all(left < x < right and bottom < y < top for x, y in places)


def test_the_legend_fits_into_the_figure_of_one_search(tmp_path):
    make_run(tmp_path / "run", epochs=2)
    (tmp_path / "run/genotype.json").write_text(CELLS["DARTS_V2"].to_json())
    figure = cells_figure({tmp_path / "run": load_course(tmp_path / "run")})
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x0 >= 0 and legend.get_window_extent().x1 <= figure.bbox.width


@pytest.mark.parametrize(
    ("dataset", "asked", "name"), [("digits", "auto", "CIFAR-10"), ("cifar100", "auto", "CIFAR-100")]
)
def test_the_panels_of_the_table_name_its_data_set(tmp_path, dataset, asked, name):
    own = ("table_test_accuracy", "table_rank", "table_regret")
    make_run(tmp_path / "run", epochs=3, own=own, dataset=dataset, table_dataset=asked)
    course = load_course(tmp_path / "run")
    compared = compare_figure([course])
    panels = (*search_figure(course).axes, *compared.axes)
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in panels]
    for text in ("accuracy in NAS-Bench-201 [%]", "rank, of 15,625 cells", "regret [points]"):
        assert f"{name} {text}" in titles
    assert f"{name} test accuracy in NAS-Bench-201 [%]" in titles
    compared.draw_without_rendering()
    for text in compared.findobj(lambda item: isinstance(item, Text) and item.get_weight() == "bold"):
        assert text.get_window_extent().x1 <= compared.bbox.width, f"{text.get_text()} is cut off"


def test_searches_that_looked_up_different_data_sets_are_not_averaged(tmp_path):
    courses = []
    for number, asked in enumerate(("auto", "cifar10", "cifar100")):
        make_run(tmp_path / asked, epochs=2, dataset="cifar10", table_dataset=asked, seed=number)
        courses.append(load_course(tmp_path / asked))
    names = {name: [course.config["table_dataset"] for course in group] for name, group in group_seeds(courses).items()}
    assert names == {
        "darts, table_dataset CIFAR-10": ["auto", "cifar10"],
        "darts, table_dataset CIFAR-100": ["cifar100"],
    }


def test_two_searches_with_the_same_settings_and_seed_are_rejected(tmp_path):
    make_run(tmp_path / "run", epochs=2)
    with pytest.raises(ValueError, match="2 searches of darts with seed 3; expected one search for each seed"):
        compare_figure([load_course(tmp_path / "run")] * 2)


def test_the_summary_averages_the_last_epoch_that_all_seeds_have_finished(tmp_path):
    for seed, epochs in ((0, 5), (1, 3)):
        make_run(tmp_path / str(seed), epochs=epochs, seed=seed)
    courses = [load_course(tmp_path / str(seed)) for seed in (0, 1)]
    mean = np.mean([course.metrics["valid_alignment"][2] for course in courses])
    (line,) = summary(courses)
    assert "(2 seeds, epoch 3)" in line and f"Layer alignment Λ: {mean:.2f}" in line


def test_the_last_value_of_a_curve_is_never_cut_off(tmp_path):
    make_run(tmp_path / "run", epochs=20, own=("table_test_accuracy",))
    metrics = pd.read_csv(tmp_path / "run/metrics.csv")
    for last, lowest in ((93, 85), (54.3, 50)):
        metrics["table_test_accuracy"] = [10, *np.linspace(92, 93, 18), last]
        metrics.to_csv(tmp_path / "run/metrics.csv", index=False)
        figure = compare_figure([load_course(tmp_path / "run")])
        (panel,) = (axes for axes in figure.axes if "NAS-Bench-201" in axes.get_title(loc="left"))
        assert lowest < panel.get_ylim()[0] < last
        assert figure.legends[0].get_title().get_text() == "Triangle: a value below the axis."
