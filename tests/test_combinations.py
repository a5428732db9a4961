"""Every method and their free combinations: each runs, logs its own quantities, and resumes exactly."""

import math
from dataclasses import asdict, replace

import pytest
import yaml

from cli import InputError
from genotypes import load_genotype
from search.bilevel import Search
from search.loop import search
from search.perturbation import Perturbation
from search.settings import method_settings, resolve
from tests.helpers import (
    SMALL_METHOD,
    assert_same_run,
    few_images,
    interrupt,
    metrics,
    run_search,
    settings_of,
)

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
COMBINATIONS = {
    "lambda-darts with darts-minus": {"reg": "corr", "auxiliary_skip": "conv1", "decay": "cosine"},
    "lambda-darts with idarts": {"reg": "corr", "hypergradient": "implicit", "inner_steps": 2, "derivatives": "exact"},
    "fair-darts with alignment": {"relaxation": "sigmoid", "alpha_reg": "zero_one_l1", "reg": "signcorr"},
    "all of them": {
        "relaxation": "sigmoid",
        "alpha_reg": "zero_one_l2",
        "reg": "corr",
        "auxiliary_skip": "skip",
        "hypergradient": "implicit",
        "implicit_noise": True,
    },
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Settings of a search on few images: two steps an epoch."""
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
        ("s1", "fair-darts", {}),  # gates, where edges differ in their candidates
        ("s3", "darts-pt", {}),  # a removal may leave `none`, but never chooses it
        ("s4", "lambda-darts-exact", {}),  # noise is differentiated twice
        ("s5", "darts-minus", {"auxiliary_skip": "conv1"}),
        pytest.param("s1", "darts-pt", {}, marks=pytest.mark.slow),
        pytest.param("s3", "darts-minus", {}, marks=pytest.mark.slow),
        pytest.param("s4", "idarts", {}, marks=pytest.mark.slow),
        pytest.param("s4", "darts-pt", {}, marks=pytest.mark.slow),
        pytest.param("s5", "darts-2nd", {}, marks=pytest.mark.slow),
    ],
)
def test_every_space_is_searched_and_gives_a_cell_without_none(images, tmp_path, space, method, changes):
    one_step = {**images, "batch_size": 24}
    run = run_search(settings_of(method, space=space, **one_step, **changes), tmp_path / "run")
    genotype = load_genotype(str(run))
    assert all(edge.operation != "none" for kind in ("normal", "reduce") for edge in genotype.edges(kind))


@pytest.mark.parametrize(
    "combination",
    [pytest.param(name, marks=pytest.mark.slow if name != "all of them" else ()) for name in COMBINATIONS],
)
def test_ideas_combine_and_an_interrupted_run_ends_like_an_uninterrupted_one(
    images, tmp_path, monkeypatch, combination
):
    settings = settings_of(**{**COMBINATIONS[combination], **images, "epochs": 2})
    undisturbed = run_search(settings, tmp_path / "undisturbed")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, Search, "weight_step", 3)  # in the second epoch of two steps
        with pytest.raises(KeyboardInterrupt, match="after 1 of 2 epochs"):
            run_search(settings, run)
    run_search(settings, run, resumed=True)
    assert_same_run(undisturbed, run)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["deciding", "fine-tuning"])
def test_all_ideas_combine_with_perturbation_selection_too(images, tmp_path, monkeypatch, moment):
    one_step = {**images, "batch_size": 24, "finetune_epochs": int(moment == "fine-tuning")}
    settings = settings_of(**COMBINATIONS["all of them"], selection="perturbation", **one_step)
    undisturbed = run_search(settings, tmp_path / "undisturbed")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        if moment == "deciding":
            interrupt(patch, Perturbation, "evaluate", 30)
        else:
            interrupt(patch, Search, "weight_step", 5)  # one step an epoch: in the fourth of the fine-tuning
        with pytest.raises(KeyboardInterrupt, match="stages of the selection; go on with"):
            run_search(settings, run)
    assert not (run / "genotype.json").exists()
    run_search(settings, run, resumed=True)
    assert_same_run(undisturbed, run)
    scores = [(folder / "perturbation/scores.csv").read_text() for folder in (undisturbed, run)]
    assert scores[0] == scores[1]
    assert len(scores[0].splitlines()) > 28 * 2
    genotype = load_genotype(str(run))
    assert len(genotype.normal) == len(genotype.reduce) == 8


def test_a_flag_wins_over_the_config_that_over_the_method_and_that_over_the_defaults(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("learning_rate: 0.1\nlearning_rate_min: 0.01\n")
    arguments = f"--method fair-darts --config {config} --learning_rate 0.2 --save {tmp_path / 'run'}"
    resolved = resolve(arguments.split())
    assert resolved.settings == method_settings(
        "fair-darts", learning_rate=0.2, learning_rate_min=0.01, save=str(tmp_path / "run")
    )
    assert resolved.sources["command line"] == ["learning_rate", "method"]
    assert resolved.sources["config file"] == ["learning_rate_min"]
    assert "batch_size" in resolved.sources["method fair-darts"]
    assert "learning_rate" not in resolved.sources["method fair-darts"]
    assert "momentum" in resolved.sources["default"]


def test_a_flag_wins_over_a_config_behind_it(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("learning_rate: 0.1\n")
    resolved = resolve(["--learning_rate", "0.2", "--config", str(config), "--save", str(tmp_path / "run")])
    assert resolved.sources["command line"] == ["learning_rate"]
    assert resolved.settings.learning_rate == 0.2


def test_a_method_before_a_config_of_another_is_refused(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(asdict(method_settings("idarts"))))
    with pytest.raises(InputError, match="--method: darts"):
        resolve(["--method", "darts", "--config", str(config), "--save", str(tmp_path / "run")])


def test_a_run_says_which_setting_came_from_where_and_its_config_makes_the_same_run(images, tmp_path):
    run = tmp_path / "run"
    small = {**SMALL_METHOD, **images, "batch_size": 24}
    flags = [f"--{name}={value}" for name, value in small.items() if name not in ("finetune_epochs", "threshold")]
    search(resolve(["--method", "idarts", *flags, "--save", str(run)]))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["provenance"]["settings_from"]["method idarts"] == ["hypergradient", "inner_steps", "neumann_terms"]
    again = resolve(["--config", str(run / "config.yaml"), "--save", str(tmp_path / "again")])
    expected = {**asdict(resolve(["--resume", str(run)]).settings), "save": str(tmp_path / "again")}
    assert asdict(again.settings) == expected


def test_unrolled_is_another_name_of_its_hypergradient(tmp_path):
    resolved = resolve(["--unrolled", "--save", str(tmp_path / "run")])
    assert resolved.settings.hypergradient == "unrolled"
    assert replace(resolved.settings, save="") == method_settings("lambda-darts", hypergradient="unrolled")
