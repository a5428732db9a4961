"""Methods and combinations of their ideas: each runs, logs its own quantities, and resumes exactly."""

import math
from dataclasses import asdict, replace

import pytest
import yaml

from genotypes import load_genotype
from search.command_line import resolve
from search.metrics import Meters
from search.perturbation import Perturbation
from search.settings import SCRIPT
from search.train_search import search
from tests.helpers import SMALL_METHOD, assert_same_run, few_images, interrupt, metrics, run_search, settings_of

pytestmark = pytest.mark.usefixtures("no_figures")

#: method -> the columns of metrics.csv that it fills
METHODS = {
    "darts": (),
    "darts-2nd": ("direct_gradient_norm", "indirect_gradient_norm"),
    "lambda-darts": ("regularizer_gradient_norm",),
    "darts-minus": ("skip_beta",),
    "fair-darts": (
        "alpha_regularizer",
        "alpha_regularizer_gradient_norm",
        "gates_over_threshold_normal",
        "gates_over_threshold_reduce",
    ),
    "idarts": ("direct_gradient_norm", "indirect_gradient_norm", "neumann_residual"),
    "darts-pt": (),
}
ALL_IDEAS = {"relaxation": "sigmoid", "alpha_reg": "zero_one_l2", "reg": "corr", "auxiliary_skip": "skip"}
ALL_IDEAS |= {"hypergradient": "implicit", "implicit_noise": True}
COMBINATIONS = {
    "lambda-darts with idarts": {"reg": "corr", "hypergradient": "implicit", "inner_steps": 2, "derivatives": "exact"},
    "all ideas": ALL_IDEAS,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Settings of a search on few images, with two steps per epoch."""
    return {**few_images(tmp_path_factory.mktemp("images") / "data"), "finetune_epochs": 0}


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow if name == "darts-pt" else ()) for name in METHODS]
)
def test_a_method_runs_and_logs_its_own_quantities(images, tmp_path, method):
    run = run_search(settings_of(method, **images), tmp_path / "run")
    rows = metrics(run)
    assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value)
    row = rows[-1]
    assert all(row[name] for name in METHODS[method])
    others = {name for names in METHODS.values() for name in names} - set(METHODS[method])
    assert not {name for name in others if row.get(name)}
    load_genotype(str(run))


@pytest.mark.parametrize(
    ("space", "method", "changes"),
    [
        ("s1", "fair-darts", {}),  # sigmoid gates, and edges with different candidates
        ("s3", "darts-pt", {}),  # `none` is a candidate, but is never chosen
        ("s4", "lambda-darts-exact", {}),  # the operation `noise` is differentiated twice
        ("s5", "darts-minus", {"auxiliary_skip": "conv1"}),
    ],
)
def test_a_search_in_every_space_gives_a_cell_without_none(images, tmp_path, space, method, changes):
    one_step = {**images, "batch_size": 24}
    run = run_search(settings_of(method, space=space, **one_step, **changes), tmp_path / "run")
    genotype = load_genotype(str(run))
    assert all(edge.operation != "none" for kind in ("normal", "reduce") for edge in genotype.edges(kind))


@pytest.mark.parametrize(
    "combination",
    [pytest.param(name, marks=pytest.mark.slow if name != "all ideas" else ()) for name in COMBINATIONS],
)
def test_ideas_combine_and_an_interrupted_run_ends_like_an_uninterrupted_one(
    images, tmp_path, monkeypatch, combination
):
    settings = settings_of(**{**COMBINATIONS[combination], **images, "epochs": 2})
    undisturbed = run_search(settings, tmp_path / "undisturbed")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, Meters, "add_weight_step", 3)  # in the second epoch; each has two steps
        with pytest.raises(KeyboardInterrupt, match="after 1 of 2 epochs"):
            run_search(settings, run)
    run_search(settings, run, resumed=True)
    assert_same_run(undisturbed, run)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["deciding", "fine-tuning"])
def test_all_ideas_combine_with_perturbation_selection_too(images, tmp_path, monkeypatch, moment):
    one_step = {**images, "batch_size": 24, "finetune_epochs": int(moment == "fine-tuning")}
    settings = settings_of(**ALL_IDEAS, selection="perturbation", **one_step)
    undisturbed = run_search(settings, tmp_path / "undisturbed")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        if moment == "deciding":
            interrupt(patch, Perturbation, "evaluate", 30)
        else:
            interrupt(patch, Meters, "add_weight_step", 5)  # one step per epoch: the fourth of fine-tuning
        with pytest.raises(KeyboardInterrupt, match="stages of the selection; resume with"):
            run_search(settings, run)
    assert not (run / "genotype.json").exists()
    run_search(settings, run, resumed=True)
    assert_same_run(undisturbed, run)
    scores = [(folder / "perturbation/scores.csv").read_text() for folder in (undisturbed, run)]
    assert scores[0] == scores[1]
    assert len(scores[0].splitlines()) > 28 * 2
    genotype = load_genotype(str(run))
    assert len(genotype.normal) == len(genotype.reduce) == 8


def test_flags_override_the_config_which_overrides_the_method_which_overrides_the_defaults(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("learning_rate: 0.1\nlearning_rate_min: 0.01\n")
    save = str(tmp_path / "run")
    given, file = ["--learning_rate", "0.2"], ["--config", str(config)]
    for order in (file + given, given + file):
        resolved = resolve(["--method", "fair-darts", *order, "--save", save])
        assert resolved.settings == SCRIPT.settings_of(
            "fair-darts", learning_rate=0.2, learning_rate_min=0.01, save=save
        )
        assert resolved.sources["command line"] == ["learning_rate", "method"]
        assert resolved.sources["config file"] == ["learning_rate_min"]
        assert "batch_size" in resolved.sources["method fair-darts"]
        assert "learning_rate" not in resolved.sources["method fair-darts"]
        assert "momentum" in resolved.sources["default"]


def test_a_run_records_the_source_of_each_setting_and_its_config_repeats_the_run(images, tmp_path):
    run = tmp_path / "run"
    small = {**SMALL_METHOD, **images, "batch_size": 24}
    flags = [f"--{name}={value}" for name, value in small.items() if name not in ("finetune_epochs", "threshold")]
    search(resolve(["--method", "idarts", *flags, "--save", str(run)]))
    config = yaml.safe_load((run / "config.yaml").read_text())
    by_method = {"hypergradient", "inner_steps", "inner_batches", "neumann_terms", "learning_rate", "weight_decay"}
    assert set(config["provenance"]["settings_from"]["method idarts"]) == {*by_method, "nesterov"}
    again = resolve(["--config", str(run / "config.yaml"), "--save", str(tmp_path / "again")])
    expected = {**asdict(resolve(["--resume", str(run)]).settings), "save": str(tmp_path / "again")}
    assert asdict(again.settings) == expected


def test_the_flag_unrolled_means_hypergradient_unrolled(tmp_path):
    resolved = resolve(["--unrolled", "--save", str(tmp_path / "run")])
    assert resolved.settings.hypergradient == "unrolled"
    assert replace(resolved.settings, save="") == SCRIPT.settings_of("lambda-darts", hypergradient="unrolled")
