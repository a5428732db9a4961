"""Deriving another cell from a search with search/derive.py."""

from dataclasses import replace

import pytest

from genotypes import load_genotype
from lib.cli import InputError
from search.metrics import Meters
from search.perturbation import Perturbation
from tests.helpers import few_images, interrupt, run_derive, run_search, settings_of

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Settings of a search on few images, with one step in each epoch."""
    return {
        **few_images(tmp_path_factory.mktemp("images") / "data"),
        "batch_size": 24,
        "finetune_epochs": 0,
        "layers": 3,
    }


@pytest.fixture(scope="module")
def gates(images, tmp_path_factory):
    """A finished FairDARTS search, in which all gates are about 1/2."""
    return run_search(settings_of("fair-darts", **images), tmp_path_factory.mktemp("gates") / "run")


@pytest.fixture(scope="module")
def tiny(images, tmp_path_factory):
    """A finished DARTS search, and its settings with selection by perturbation."""
    settings = settings_of("darts", **images)
    return run_search(settings, tmp_path_factory.mktemp("tiny") / "run"), replace(settings, selection="perturbation")


def contents(run):
    """The content of each file of a run, except those of its selections."""
    return {
        path: path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and "selections" not in path.relative_to(run).parts
    }


def test_the_rule_of_the_search_derives_the_same_cell_and_does_not_change_the_run(tiny):
    run, _ = tiny
    before = contents(run)
    run_derive(run)
    folder = run / "selections/argmax"
    assert load_genotype(str(folder)) == load_genotype(str(run))
    assert contents(run) == before
    with pytest.raises(InputError, match=f"run: {folder} already has a cell"):
        run_derive(run)


def test_a_threshold_keeps_the_gates_above_it_in_a_fair_darts_genotype(gates, tmp_path):
    run_derive(gates, "--selection", "threshold_edge", "--threshold", 0.4, "--save", tmp_path / "cell")
    genotype = load_genotype(str(tmp_path / "cell"))
    assert genotype.sums_nodes("normal") and all(len(edge) == 3 for edge in genotype.normal)
    sparse = load_genotype(str(gates))
    assert set(sparse.normal) <= set(genotype.normal)


def test_a_threshold_that_leaves_no_cell_is_rejected_and_the_largest_gate_reported(gates):
    with pytest.raises(InputError, match=r"--threshold: 0.9999 .* largest gate"):
        run_derive(gates, "--threshold", 0.9999)
    assert not (gates / "selections/threshold_sparse-0.9999").exists()


@pytest.mark.slow
def test_perturbation_derives_a_cell_from_an_interrupted_search_and_can_be_resumed(
    images, tmp_path, monkeypatch, capsys
):
    settings = settings_of("darts", **{**images, "epochs": 3})
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, Meters, "add_weight_step", 2)
        with pytest.raises(KeyboardInterrupt):
            run_search(settings, run)
    flags = ("--selection", "perturbation", "--finetune_epochs", 1, "--save")
    run_derive(run, *flags, tmp_path / "undisturbed")
    printed = capsys.readouterr().out
    assert "(1 of 3 epochs)" in printed and "decision 17/17" in printed
    with monkeypatch.context() as patch:
        interrupt(patch, Perturbation, "evaluate", 40)
        with pytest.raises(KeyboardInterrupt):
            run_derive(run, *flags, tmp_path / "stopped")
    with pytest.raises(InputError, match="finetune_epochs 1, not 2"):
        run_derive(run, "--selection", "perturbation", "--finetune_epochs", 2, "--save", tmp_path / "stopped")
    run_derive(run, *flags, tmp_path / "stopped")
    for name in ("genotype.json", "scores.csv"):
        assert (tmp_path / "undisturbed" / name).read_text() == (tmp_path / "stopped" / name).read_text()
    lines = (tmp_path / "stopped/scores.csv").read_text().splitlines()
    # in each of two cells: 2 operations on 14 edges, then 3, 4 + 3 and 5 + 4 + 3 removals of edges
    assert len(lines) == 1 + 2 * (14 * 2 + 3 + 7 + 12)


FLAGS = ("--selection", "perturbation", "--finetune_epochs", 0)


def test_perturbation_prints_a_line_for_each_decision_and_does_not_change_the_run(tiny, tmp_path, monkeypatch, capsys):
    run, _ = tiny
    before, folder, stopped = contents(run), run / "selections/perturbation", tmp_path / "stopped"
    run_derive(run, *FLAGS)
    assert contents(run) == before
    decisions = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("decision ")]
    assert decisions == [f"{number}/17" for number in range(1, 18)]
    genotype = load_genotype(str(folder))
    assert len(genotype.normal) == len(genotype.reduce) == 8
    rows = (folder / "scores.csv").read_text().splitlines()[1:]
    assert len({tuple(row.split(",")[1:4]) for row in rows}) == 2 * 14

    with monkeypatch.context() as patch:
        interrupt(patch, Perturbation, "evaluate", 9)
        with pytest.raises(KeyboardInterrupt, match="after 2 of 17 stages of the selection; resume with: python"):
            run_derive(run, *FLAGS, "--save", stopped)
    run_derive(run, *FLAGS, "--save", stopped)
    for name in ("genotype.json", "scores.csv"):
        assert (stopped / name).read_text() == (folder / name).read_text()


@pytest.mark.slow
def test_perturbation_finds_the_cell_of_a_search_by_perturbation_again(images, tmp_path):
    run = run_search(settings_of("darts-pt", **images), tmp_path / "run")
    run_derive(run)
    selection = run / "selections/perturbation"
    assert (selection / "genotype.json").read_text() == (run / "genotype.json").read_text()
    assert (selection / "scores.csv").read_text() == (run / "perturbation/scores.csv").read_text()


def test_a_selection_does_not_continue_in_the_folder_of_another_search(tiny, images, tmp_path, monkeypatch):
    run, stopped = tiny[0], tmp_path / "stopped"
    with monkeypatch.context() as patch:
        interrupt(patch, Perturbation, "evaluate", 9)
        with pytest.raises(KeyboardInterrupt):
            run_derive(run, *FLAGS, "--save", stopped)
    other = run_search(settings_of("darts", **images, seed=1), tmp_path / "other")
    with pytest.raises(InputError, match="began on another search"):
        run_derive(other, *FLAGS, "--save", stopped)
