"""Another cell of a search that has been: search/select.py."""

import io
from contextlib import redirect_stdout
from dataclasses import asdict, replace

import pytest
import yaml

import search.loop
from analysis.draw import draw_genotype
from cli import InputError
from genotypes import load_genotype
from search.bilevel import Search
from search.perturbation import Perturbation
from tests.helpers import assert_refused, few_images, interrupt, run_search, run_select, script, settings_of

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Settings of a search on few images: one step an epoch."""
    return {
        **few_images(tmp_path_factory.mktemp("images") / "data"),
        "batch_size": 24,
        "finetune_epochs": 0,
        "layers": 3,
    }


@pytest.fixture(scope="module")
def gates(images, tmp_path_factory):
    """A finished FairDARTS search, whose gates are all about 1/2."""
    return run_search(settings_of("fair-darts", **images), tmp_path_factory.mktemp("gates") / "run")


@pytest.fixture(scope="module")
def tiny(images, tmp_path_factory):
    """A finished DARTS search, and its settings with the perturbation rule."""
    settings = settings_of("darts", **images)
    return run_search(settings, tmp_path_factory.mktemp("tiny") / "run"), replace(settings, selection="perturbation")


def contents(run):
    """The files of a run, but for its selections."""
    return {
        path: path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and "selections" not in path.relative_to(run).parts
    }


def test_the_run_s_own_rule_gives_its_own_cell_and_leaves_the_run_as_it_was(tiny, monkeypatch):
    run, _ = tiny
    before = contents(run)
    monkeypatch.setattr(search.loop, "draw_genotype", draw_genotype)
    run_select(run)
    folder = run / "selections/argmax"
    assert load_genotype(str(folder)) == load_genotype(str(run))
    assert (folder / "cells/normal.png").stat().st_size > 100
    assert contents(run) == before
    with pytest.raises(InputError, match=f"--save: {folder} holds a cell already"):
        run_select(run)


@pytest.mark.slow
def test_the_command_line_selects_and_refuses_a_folder_with_a_cell(tiny, tmp_path):
    command = ("search/select.py", tiny[0], "--save", tmp_path / "cell")
    result = script(*command)
    assert result.returncode == 0, result.stderr
    assert load_genotype(str(tmp_path / "cell")) == load_genotype(str(tiny[0]))
    assert_refused(script(*command), "--save", str(tmp_path / "cell"), "holds a cell already")


def test_a_threshold_keeps_the_gates_over_it_in_fair_darts_form(gates, tmp_path):
    run_select(gates, "--selection", "threshold_edge", "--threshold", 0.4, "--save", tmp_path / "cell")
    genotype = load_genotype(str(tmp_path / "cell"))
    assert genotype.sums_nodes("normal") and all(len(edge) == 3 for edge in genotype.normal)
    sparse = load_genotype(str(gates))
    assert set(sparse.normal) <= set(genotype.normal)


def test_a_threshold_that_leaves_no_cell_is_named_with_the_largest_gate(gates):
    with pytest.raises(InputError, match=r"--threshold: 0.9999 .* largest gate"):
        run_select(gates, "--threshold", 0.9999)
    assert not (gates / "selections/threshold_sparse-0.9999").exists()


@pytest.mark.slow
def test_an_interrupted_search_gives_a_cell_by_perturbation_which_resumes(images, tmp_path, monkeypatch, capsys):
    settings = settings_of("darts", **{**images, "epochs": 3})
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


FLAGS = ("--selection", "perturbation", "--finetune_epochs", 0)


@pytest.fixture(scope="module")
def perturbed(tiny):
    """A finished selection by perturbation: its folder, its output, and the files of the run before it."""
    run, _ = tiny
    before = contents(run)
    with redirect_stdout(io.StringIO()) as output:
        run_select(run, *FLAGS)
    return run / "selections/perturbation", output.getvalue(), before


def test_perturbation_leaves_the_run_as_it_was_and_prints_a_line_a_decision(tiny, perturbed):
    run, _ = tiny
    folder, output, before = perturbed
    assert contents(run) == before
    decisions = [line.split()[1] for line in output.splitlines() if line.startswith("decision ")]
    assert decisions == [f"{number}/17" for number in range(1, 18)]
    genotype = load_genotype(str(folder))
    assert len(genotype.normal) == len(genotype.reduce) == 8
    rows = (folder / "scores.csv").read_text().splitlines()[1:]
    edges = {tuple(row.split(",")[1:4]) for row in rows}
    assert len(edges) == 2 * 14
    with pytest.raises(InputError, match="holds a cell already"):
        run_select(run, *FLAGS)


def stop_and_go_on(monkeypatch, selection, *arguments):
    """Stop a selection after two decisions, and go on with it by the same command."""
    with monkeypatch.context() as patch:
        interrupt(patch, Perturbation, "evaluate", 9)
        with pytest.raises(KeyboardInterrupt, match="after 2 of 17 stages of the selection; the same command"):
            run_select(*arguments)
    for left in (".scores.csv.tmp", "checkpoints/.stage_00003.ckpt.tmp"):  # as SIGKILL within a write would
        (selection / left).write_bytes(b"half")
    run_select(*arguments)
    assert not list(selection.rglob(".*.tmp"))


def test_the_same_command_goes_on_with_a_stopped_selection(tiny, perturbed, tmp_path, monkeypatch):
    selection = tmp_path / "selection"
    stop_and_go_on(monkeypatch, selection, tiny[0], *FLAGS, "--save", selection)
    for name in ("genotype.json", "scores.csv"):
        assert (selection / name).read_text() == (perturbed[0] / name).read_text()


@pytest.mark.slow
def test_a_stopped_selection_by_the_run_s_own_rule_finds_the_run_s_own_cell(images, tmp_path, monkeypatch):
    run = run_search(settings_of("darts-pt", **images), tmp_path / "run")
    selection = run / "selections/perturbation"
    stop_and_go_on(monkeypatch, selection, run)
    assert (selection / "genotype.json").read_text() == (run / "genotype.json").read_text()
    assert (selection / "scores.csv").read_text() == (run / "perturbation/scores.csv").read_text()


def test_a_stopped_selection_of_another_search_is_not_gone_on_with(tiny, tmp_path, monkeypatch):
    run, settings = tiny
    longer = replace(settings, epochs=2)
    other = run_search(replace(longer, selection="argmax"), tmp_path / "other")
    with monkeypatch.context() as patch:
        interrupt(patch, Perturbation, "evaluate", 9)
        with pytest.raises(KeyboardInterrupt):
            search.loop.select_again(settings, run, tmp_path / "cell", "")
    with pytest.raises(InputError):
        search.loop.select_again(longer, other, tmp_path / "cell", "")


def test_perturbation_does_not_write_among_the_files_of_others(tiny, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="--save"):
        run_select(tiny[0], *FLAGS, "--save", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_without_a_checkpoint_is_left_as_it_was(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(settings_of("darts"))))
    with pytest.raises(InputError, match="no checkpoint"):
        run_select(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
