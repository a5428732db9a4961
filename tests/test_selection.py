"""Another cell of a search that has been: search/select.py."""

from dataclasses import replace

import pytest

import search.loop
from cli import InputError
from genotypes import load_genotype
from search.perturbation import Perturbation
from search.settings import method_settings
from tests.conftest import assert_refused, script
from tests.test_combinations import interrupt, settings_of
from tests.test_search import run_search

SELECT = "search/select.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_search(settings_of("darts"), tmp_path_factory.mktemp("selection") / "run")


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    return run_search(settings_of("fair-darts"), tmp_path_factory.mktemp("selection") / "gates")


def contents(run):
    """The files of a run, but for its selections."""
    return {
        path: path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and "selections" not in path.relative_to(run).parts
    }


def test_the_run_s_own_rule_gives_its_own_cell_and_leaves_the_run_as_it_was(finished):
    before = contents(finished)
    result = script(SELECT, finished)
    assert result.returncode == 0, result.stderr
    folder = finished / "selections/argmax"
    assert load_genotype(str(folder)) == load_genotype(str(finished))
    assert (folder / "cells/normal.png").stat().st_size > 100
    assert contents(finished) == before
    assert_refused(script(SELECT, finished), "--save", str(folder), "holds a cell already")


def test_a_threshold_keeps_the_gates_over_it_in_fair_darts_form(gates, tmp_path):
    result = script(SELECT, gates, "--selection", "threshold_edge", "--threshold", 0.4, "--save", tmp_path / "cell")
    assert result.returncode == 0, result.stderr
    genotype = load_genotype(str(tmp_path / "cell"))
    assert genotype.sums_nodes("normal") and all(len(edge) == 3 for edge in genotype.normal)
    sparse = load_genotype(str(gates))
    assert set(sparse.normal) <= set(genotype.normal)


def test_a_threshold_that_leaves_no_cell_is_named_with_the_largest_gate(gates):
    result = script(SELECT, gates, "--threshold", 0.9999)
    assert_refused(result, "--threshold: 0.9999", "largest gate")
    assert not (gates / "selections/threshold_sparse-0.9999").exists()


def test_an_interrupted_search_gives_a_cell_by_perturbation_which_resumes(tmp_path, monkeypatch, capsys):
    from search.bilevel import Search

    settings = settings_of("darts", batch_size=718, epochs=3)  # one step an epoch
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, Search, "weight_step", 2)
        with pytest.raises(KeyboardInterrupt):
            run_search(settings, run)
    chosen = replace(settings, selection="perturbation", finetune_epochs=1)
    search.loop.select_again(chosen, run, tmp_path / "undisturbed", "")
    printed = capsys.readouterr().out
    assert "after 1 of 3 epochs" in printed and "decision 17/17" in printed
    with monkeypatch.context() as patch:
        interrupt(patch, Perturbation, "evaluate", 40)
        with pytest.raises(KeyboardInterrupt, match="the same command"):
            search.loop.select_again(chosen, run, tmp_path / "stopped", "the same command goes on")
    with pytest.raises(InputError, match="finetune_epochs 1, expected 2"):
        search.loop.select_again(replace(chosen, finetune_epochs=2), run, tmp_path / "stopped", "")
    search.loop.select_again(chosen, run, tmp_path / "stopped", "")
    for name in ("genotype.json", "scores.csv"):
        assert (tmp_path / "undisturbed" / name).read_text() == (tmp_path / "stopped" / name).read_text()
    lines = (tmp_path / "stopped/scores.csv").read_text().splitlines()
    # two operations on 14 edges, then 3, 4 + 3 and 5 + 4 + 3 removals at the nodes; in two kinds of cell
    assert len(lines) == 1 + 2 * (14 * 2 + 3 + 7 + 12)


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (("--selection", "threshold_edge"), ("--selection", "--relaxation sigmoid")),
        (("--selection", "argmax", "--threshold", "0.5"), ("--threshold", "--relaxation sigmoid")),
        (("--finetune_epochs", "3"), ("--finetune_epochs", "--selection perturbation")),
        (("--selection", "random"), ("--selection", "random")),
        (("--save", "search"), ("--save", "search", "not empty")),
    ],
)
def test_what_makes_no_sense_is_refused(finished, arguments, mentions):
    assert_refused(script(SELECT, finished, *arguments), *mentions)


def test_a_threshold_without_a_threshold_rule_is_refused(gates):
    result = script(SELECT, gates, "--selection", "argmax", "--threshold", 0.5)
    assert_refused(result, "--threshold: argmax has none", "threshold_sparse")


def test_what_is_no_run_is_refused(tmp_path):
    from dataclasses import asdict

    import yaml

    assert_refused(script(SELECT, tmp_path / "none"), "run:", "no run folder")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(method_settings("darts", dataset="digits"))))
    assert_refused(script(SELECT, tmp_path), "run:", "no checkpoint")
    assert not (tmp_path / "selections").exists()
