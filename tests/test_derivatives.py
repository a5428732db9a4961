"""analysis/derivatives.py: differences against exact derivatives, after two weight steps and at a run's checkpoint."""

import json

import pytest

from tests.helpers import script_in_process

SMALL = ["--dataset", "digits", "--space", "s2", "--layers", "4", "--init_channels", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("derivatives") / "run"
    finished = script_in_process("search/train_search.py", *SMALL, "--epochs", 1, "--batch_size", 256, "--save", folder)
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.mark.parametrize("start", [pytest.param("after weight steps", marks=pytest.mark.slow), "at a run's checkpoint"])
def test_differences_match_the_derivative_for_small_steps_in_float64_but_not_for_large_ones(tmp_path, run, start):
    place = ("--run", run) if start == "at a run's checkpoint" else (*SMALL, "--steps", 2)
    arguments = ("--epsilons", 1e-10, 1.0, "--batch_size", 8, "--out", tmp_path / "out")
    result = script_in_process("analysis/derivatives.py", *place, *arguments)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out/derivatives.json").read_text())["rows"]
    terms = ("regularizer", "unrolled", "implicit")
    assert [(row["epsilon"], row["term"]) for row in rows] == 2 * [(e, term) for e in (1e-10, 1.0) for term in terms]
    assert (tmp_path / "out/derivatives.png").stat().st_size > 1000
    for row in rows:
        if row["epsilon"] == 1e-10 and row["precision"] == "float64":
            assert row["cosine"] > 0.9999
            assert row["norm"] == pytest.approx(row["exact_norm"], rel=1e-3)
        elif row["epsilon"] == 1.0:
            assert row["cosine"] < 0.99
