"""Tables as grids of runs: their flags, their entries, and the tables that are refused."""

import shlex
import subprocess

import pytest
import yaml

from cli import InputError
from scripts.grid import TABLES, expand, load_table, slug
from tests.helpers import ROOT, TABLE, script_in_process, write_table


def test_flags_of_the_scale_win_over_the_methods_over_the_columns_over_those_of_all():
    table = {
        **TABLE,
        "search": {"layers": 4, "init_channels": 2, "momentum": 0.5, "epochs": 9},
        "columns": {"S2": {"search": {"space": "s2", "init_channels": 3, "momentum": 0.6, "epochs": 8}}},
        "methods": {"DARTS": {"search": {"method": "darts", "momentum": 0.7, "epochs": 7}}},
        "scales": {"x": {"seeds": 1, "search": {"epochs": 5}, "override": {"DARTS": {"search": {"grad_clip": 2}}}}},
    }
    (unit,) = expand(table, "x", overrides={"search": {"batch_size": 8}})
    flags = {"layers": 4, "init_channels": 3, "momentum": 0.7, "epochs": 5, "space": "s2", "method": "darts"}
    assert unit.steps[0].flags == {**flags, "grad_clip": 2, "batch_size": 8, "seed": 0}
    assert unit.steps[0].epochs == 5


def test_a_table_expands_into_every_method_in_every_column_with_every_seed():
    units = expand(TABLE, "tiny")
    assert [(u.method, u.seed) for u in units] == [("DARTS", 0), ("DARTS-", 0), ("DARTS", 1), ("DARTS-", 1)]
    assert len(expand(TABLE, "paper")) == 8 and len(expand(TABLE, "paper", seeds=1, methods=["DARTS"])) == 1
    assert len({unit.folder for unit in units}) == 4
    # without a number of epochs in the table, the script's own
    assert [step.epochs for step in expand(TABLE, "paper")[0].steps] == [50, 600]


def test_names_that_differ_in_signs_have_folders_of_their_own():
    assert slug("DARTS-") != slug("DARTS") and slug("Λ-DARTS, exact") == "lambda-darts-exact"
    assert slug("λ 0.25") == "lambda-0.25" and slug("../../x") == "x"


@pytest.mark.parametrize("name", sorted(path.stem for path in TABLES.glob("*.yaml")))
def test_the_tables_that_come_along_are_taken_by_their_scripts(name):
    table = load_table(name)
    assert {"paper", "small"} <= set(table["scales"])
    for scale in table["scales"]:
        units = expand(table, scale)
        assert units and all(step.epochs >= 1 for unit in units for step in unit.steps)
        folders = [unit.folder for unit in units]
        assert len(set(folders)) == len(folders)


def test_the_paper_scale_of_s1_to_s4_is_that_of_the_papers():
    units = {(u.column, u.method): u for u in expand(load_table("robust"), "paper", seeds=1)}
    for column, channels, layers in (("S1 CIFAR-10", 36, 20), ("S2 CIFAR-10", 16, 20), ("S4 SVHN", 16, 8)):
        flags = units[column, "DARTS"].steps[1].flags
        assert (flags["init_channels"], flags["layers"], flags["auxiliary"]) == (channels, layers, True)
        assert units[column, "DARTS"].steps[1].epochs == 600
    assert units["S2 CIFAR-10", "FairDARTS"].steps[0].epochs == 50


def test_every_table_has_a_script_which_takes_the_users_own_folder_for_its_paths(tmp_path):
    scripts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "scripts").glob("*.sh")}
    for table in TABLES.glob("*.yaml"):
        assert any(f'/table.sh" {table.stem} ' in text for text in scripts.values()), table
    if not (ROOT / ".venv" / "bin" / "python").exists():
        pytest.skip("no .venv here: the scripts would make one")
    (tmp_path / "images").mkdir()
    command = ["bash", ROOT / "scripts" / "s1_s4.sh", "--scale", "small", "--data", "images", "--out", "o", "--dry_run"]
    said = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"--data {tmp_path / 'images'}" in said and f"--save {tmp_path / 'o'}/" in said


def changed(**parts) -> dict:
    return {**TABLE, **parts}


@pytest.mark.parametrize(
    ("table", "mentions"),
    [
        ({}, ["has no", "title"]),
        (changed(colums={}), ["colums"]),
        (changed(scripts={"search": "rm.py"}), ["rm.py", "search/train_search.py"]),
        (changed(scripts={"retrain": "train/train.py"}), ["no search"]),
        (changed(columns={}), ["columns", "empty"]),
        (changed(methods={"DARTS": 3}), ["methods: DARTS"]),
        (changed(methods={"DARTS": {"train": {}}}), ["train"]),
        (changed(methods={"a b": {}, "A-B": {}}), ["one folder"]),
        (changed(scales={"x": {"seeds": 0}}), ["seeds: 0"]),
        (changed(scales={"x": {"seeds": True}}), ["seeds"]),
        (changed(scales={"x": {"seeds": 1, "columns": [10]}}), ["10", "S2"]),
        (changed(search={"arch": "DARTS_V2"}), ["search", "arch"]),
        (changed(scales={"x": {"seeds": 1, "columns": ["S9"]}}), ["S9", "S2"]),
        (changed(scales={"x": {"seeds": 1, "override": {"PT": {}}}}), ["PT"]),
        ("- a\n- b\n", ["names"]),
        ("a: [", ["YAML"]),
    ],
)
def test_a_table_that_makes_no_grid_is_refused_in_a_line(tmp_path, table, mentions):
    path = tmp_path / "table.yaml"
    path.write_text(table if isinstance(table, str) else yaml.safe_dump(table), encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_table(str(path))
    for mention in [str(path), "--table", *mentions]:
        assert mention in str(error.value)


def test_a_dry_run_prints_the_commands_and_writes_nothing(tmp_path):
    table = write_table(tmp_path)
    before = sorted(tmp_path.iterdir())
    lines = script_in_process(
        "scripts/reproduce.py", "--table", table, "--scale", "tiny", "--dry_run", "--out", tmp_path / "o"
    ).stdout
    commands = [shlex.split(line)[:2] for line in lines.splitlines()]
    assert commands == [["python", name] for name in ("search/train_search.py", "train/train.py", "train/test.py")] * 4
    assert sorted(tmp_path.iterdir()) == before
