"""Another cell of a search that has been: search/select.py."""

import runpy
from dataclasses import replace

import pytest

import search.loop
from cli import InputError
from genotypes import load_genotype
from search.perturbation import Perturbation
from tests.helpers import ROOT, assert_refused, few_images, interrupt, run_search, script, settings_of

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


def select(monkeypatch, *arguments):
    """search/select.py in this process."""
    monkeypatch.setattr("sys.argv", ["search/select.py", *map(str, arguments), "--device", "cpu"])
    runpy.run_path(str(ROOT / "search/select.py/__main__.py"), run_name="select")["main"]()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished DARTS search on few images, and its settings with the perturbation rule."""
    folder = tmp_path_factory.mktemp("tiny")
    settings = settings_of("darts", **few_images(folder / "data"), finetune_epochs=0)
    return run_search(settings, folder / "run"), replace(settings, selection="perturbation")


def test_perturbation_leaves_the_run_as_it_was_and_prints_a_line_a_decision(tiny, monkeypatch, capsys):
    run, _ = tiny
    before = contents(run)
    select(monkeypatch, run, "--selection", "perturbation", "--finetune_epochs", 0)
    assert contents(run) == before
    lines = capsys.readouterr().out.splitlines()
    decisions = [line.split()[1] for line in lines if line.startswith("decision ")]
    assert decisions == [f"{number}/17" for number in range(1, 18)]
    genotype = load_genotype(str(run / "selections/perturbation"))
    assert len(genotype.normal) == len(genotype.reduce) == 8
    rows = (run / "selections/perturbation/scores.csv").read_text().splitlines()[1:]
    edges = {tuple(row.split(",")[1:4]) for row in rows}
    assert len(edges) == 2 * 14
    with pytest.raises(InputError, match="holds a cell already"):
        select(monkeypatch, run, "--selection", "perturbation", "--finetune_epochs", 0)


@pytest.mark.parametrize(
    "flags",
    [
        ("--selection", "perturbation"),
        (),
    ],
)
def test_the_same_command_goes_on_with_a_stopped_selection(tmp_path, monkeypatch, flags):
    settings = settings_of("darts-pt", **few_images(tmp_path / "data"), finetune_epochs=0)
    run = run_search(settings, tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt(patch, Perturbation, "evaluate", 9)
        with pytest.raises(KeyboardInterrupt, match="after 2 of 17 stages of the selection; the same command"):
            select(monkeypatch, run, *flags)
    selection = run / "selections/perturbation"
    for left in (".scores.csv.tmp", "checkpoints/.epoch_00003.safetensors.tmp"):  # as SIGKILL within a write would
        (selection / left).write_bytes(b"half")
    select(monkeypatch, run, *flags)
    assert not list(selection.rglob(".*.tmp"))
    for name in ("genotype.json", "scores.csv"):
        own = run / ("perturbation/scores.csv" if name == "scores.csv" else name)
        assert (selection / name).read_text() == own.read_text()


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


def test_perturbation_does_not_write_among_the_files_of_others(tiny, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    flags = ("--selection", "perturbation", "--finetune_epochs", 0, "--save", tmp_path)
    with pytest.raises(InputError, match="--save"):
        select(monkeypatch, tiny[0], *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_without_a_checkpoint_is_left_as_it_was(tmp_path, monkeypatch):
    from dataclasses import asdict

    import yaml

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(settings_of("darts"))))
    with pytest.raises(InputError, match="no checkpoint"):
        select(monkeypatch, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
