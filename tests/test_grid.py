"""Tables as grids of runs: their flags, their entries, and tables that are rejected."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from lib.cli import InputError
from lib.grid import TABLES, expand, load_table
from tests.helpers import ROOT, TABLE, assert_rejected, script_in_process, write_table


def test_flags_of_a_scale_override_the_method_which_overrides_the_column_which_overrides_the_table():
    table = {
        **TABLE,
        "search": {"layers": 4, "init_channels": 2, "momentum": 0.5, "epochs": 9},
        "columns": {"S2": {"search": {"space": "s2", "init_channels": 3, "momentum": 0.6, "epochs": 8}}, "S3": {}},
        "methods": {
            "DARTS": {
                "search": {"method": "darts", "momentum": 0.7, "epochs": 7, "workers": 1},
                "columns": {"S2": {"search": {"workers": 2, "epochs": 6}}, "S3": {"search": {"grad_clip": 9}}},
            }
        },
        "scales": {"x": {"seeds": 1, "search": {"epochs": 5}, "override": {"DARTS": {"search": {"grad_clip": 2}}}}},
    }
    (unit,) = expand(table, "x", columns=["S2"], overrides={"search": {"batch_size": 8}})
    flags = {"layers": 4, "init_channels": 3, "momentum": 0.7, "epochs": 5, "space": "s2", "method": "darts"}
    flags |= {"workers": 2}
    assert unit.steps["search"] == {**flags, "grad_clip": 2, "batch_size": 8, "seed": 0}


def test_a_table_expands_into_every_method_in_every_column_with_every_seed():
    units = expand(TABLE, "tiny")
    assert [(u.method, u.seed) for u in units] == [("DARTS", 0), ("DARTS-", 0), ("DARTS", 1), ("DARTS-", 1)]
    assert len(expand(TABLE, "paper")) == 8 and len(expand(TABLE, "paper", seeds=1, methods=["DARTS"])) == 1
    assert len({unit.folder for unit in units}) == 4
    assert list(units[0].steps) == ["search", "retrain"]


@pytest.mark.parametrize("name", sorted(path.stem for path in TABLES.glob("*.yaml")))
def test_the_scripts_accept_the_tables_of_the_repository(name):
    table = load_table(name)
    assert {"small", "study" if name in ("collapse", "idarts") else "paper"} <= set(table["scales"])
    for scale in table["scales"]:
        folders = [unit.folder for unit in expand(table, scale)]
        assert len(set(folders)) == len(folders) > 0


def test_the_accuracy_table_is_passed_to_the_searches_and_their_scores(tmp_path):
    (tmp_path / "mine.npz").touch()
    flags = ["--table", "nasbench201", "--seeds", 1, "--methods", "darts", "--dry_run"]
    mine = ["--nasbench_table", tmp_path / "mine.npz"]
    for given, end in (([], "--json"), (mine, f"--json --table {tmp_path / 'mine.npz'}")):
        search, score = script_in_process("scripts/reproduce.py", *flags, *given).stdout.splitlines()
        assert ("--table" in search) == bool(given)
        assert score.startswith("python nasbench201/table.py query") and score.endswith(end)


def test_the_paper_scale_of_s1_to_s4_has_the_settings_of_the_papers():
    units = {(u.column, u.method): u for u in expand(load_table("robust"), "paper", seeds=1)}
    for column, channels, layers in (("S1 CIFAR-10", 36, 20), ("S2 CIFAR-10", 16, 20), ("S4 SVHN", 16, 8)):
        flags = units[column, "DARTS"].steps["retrain"]
        assert (flags["init_channels"], flags["layers"], flags["auxiliary"]) == (channels, layers, True)
        assert "epochs" not in flags  # the default of train/train.py, 600
    assert "epochs" not in units["S2 CIFAR-10", "FairDARTS"].steps["search"]
    for column in ("S1 CIFAR-10", "S2 CIFAR-10", "S3 CIFAR-10", "S4 CIFAR-10"):  # the protocol of DARTS-PT
        for method in ("DARTS-PT", "blank-PT"):
            flags = units[column, method].steps["retrain"]
            assert (flags["init_channels"], flags["layers"]) == (36, 20)
    assert units["S4 SVHN", "DARTS-PT"].steps["retrain"] == units["S4 SVHN", "DARTS"].steps["retrain"]


def test_methods_are_chosen_by_their_name_in_the_table_or_by_their_value_of_method():
    def rows(name: str, *methods: str) -> list[str]:
        return list(dict.fromkeys(unit.method for unit in expand(load_table(name), "small", 1, (), methods)))

    assert rows("robust", "lambda-darts", "darts-pt") == ["Λ-DARTS", "DARTS-PT"]
    assert rows("robust", "Λ-DARTS, exact", "darts") == ["DARTS", "Λ-DARTS, exact"]
    assert len(rows("lambda", "lambda-darts")) == 6  # all runs use this method
    with pytest.raises(InputError, match="--methods: 'lambda', expected some of"):
        rows("robust", "lambda")


def test_table_scripts_print_help_and_dry_runs_without_installing_anything(tmp_path):
    """The test uses a copy of the repository without .venv. The Python called `bare` has no packages."""
    for table in TABLES.glob("*.yaml"):
        scripts = [path for path in (ROOT / "scripts").glob("*.sh") if f'/table.sh" {table.stem} ' in path.read_text()]
        assert len(scripts) == 1, table
    root, bare = tmp_path / "copy", tmp_path / "python3"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "data", "docs"))
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    (tmp_path / "images").mkdir()

    def answer(python: object, *arguments: str) -> subprocess.CompletedProcess:
        command = ["bash", str(root / "scripts/s1_s4.sh"), *arguments]
        environment = {**os.environ, "PYTHONPATH": "", "PYTHON": str(python)}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)

    said = answer(sys.executable, "--scale", "small", "--data", "images", "--out", "o", "--dry_run").stdout
    assert f"--data {tmp_path / 'images'}" in said and f"--save {tmp_path / 'o'}/" in said
    assert_rejected(answer(bare, "--dry_run"), "pip install -r requirements.txt")
    usage = answer(bare, "--help")
    assert usage.returncode == 0 and "python scripts/reproduce.py --table" in usage.stdout
    assert not (root / ".venv").exists() and not (tmp_path / "o").exists()


#: flag and value, given in a table or with --set, and a part of the message
REJECTED = [
    ("space", "!!python/object/apply:os.system [touch executed]", "not plain YAML"),
    ("space", "!mine s2", "not plain YAML"),
    ("space", "[1", "not plain YAML"),
    ("space", "!!binary czI=", "expected a number, a word"),
    ("space", "[s2, --save=elsewhere]", "expected a number, a word"),
    ("space", "{s2: --save=elsewhere}", "expected a number, a word"),
    ("space", "--save=elsewhere", "does not begin with -"),
    ("space", "-h", "does not begin with -"),
    ("space", '"s2\\0"', "does not begin with -"),
    ("space", "s9", "--space"),
    ("Epochs", "3", "--Epochs"),
    ("print_config", "3", "cannot be set in a table"),
    ("batch-size", "3", "without dashes"),
]


@pytest.mark.parametrize(("name", "value", "reason"), REJECTED)
def test_a_table_and_set_accept_only_known_flags_with_plain_values(tmp_path, name, value, reason):
    text = yaml.safe_dump(changed(columns={"S2": {"search": {"name": "value"}}}))
    (tmp_path / "table.yaml").write_text(text.replace("name: value", f"{name}: {value}"))
    given = ("--scale", "tiny", "--out", tmp_path / "out", "--dry_run")
    for table, own in ((tmp_path / "table.yaml", ()), (write_table(tmp_path), ("--set", f"search.{name}={value}"))):
        result = script_in_process("scripts/reproduce.py", "--table", table, *given, *own)
        assert_rejected(result, reason, "--set" if own else "--table")
    assert not (tmp_path / "out").exists() and not (ROOT / "executed").exists() and not (ROOT / "elsewhere").exists()


@pytest.mark.parametrize("text", ["=3", "search.=1", "search.search.epochs=1"])
def test_set_expects_a_flag_with_an_optional_step(tmp_path, text):
    result = script_in_process("scripts/reproduce.py", "--table", write_table(tmp_path), "--dry_run", "--set", text)
    assert_rejected(result, "--set", "expected flag=value")


def changed(**parts) -> dict:
    return {**TABLE, **parts}


@pytest.mark.parametrize(
    ("table", "mentions"),
    [
        (changed(scripts={"retrain": "train/train.py"}), ["lacks a search script"]),
        (changed(columns={}), ["lacks columns"]),
        (changed(methods={"DARTS": {"train": {}}}), ["train"]),
        (changed(methods={"a b": {}, "A-B": {}}), ["do not give distinct folders"]),
        (changed(methods={"DARTS": {"columns": {"S9": {}}}}), ["methods: DARTS: columns", "S9", "S2"]),
        (changed(scales={"x": {"seeds": 0}}), ["seeds: 0"]),
        (changed(search={"arch": "DARTS_V2"}), ["search", "arch"]),
        (changed(scales={"x": {"seeds": 1, "columns": ["S9"]}}), ["S9", "S2"]),
        (changed(scales={"x": {"seeds": 1, "override": {"PT": {}}}}), ["PT"]),
    ],
)
def test_an_invalid_table_is_rejected_with_the_reason(tmp_path, table, mentions):
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(table), encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_table(str(path))
    for mention in [str(path), "--table", *mentions]:
        assert mention in str(error.value)


def test_a_dry_run_prints_the_commands_and_writes_nothing(tmp_path):
    table = write_table(tmp_path)
    before = sorted(tmp_path.iterdir())
    arguments = ("--table", table, "--scale", "tiny", "--dry_run", "--out", tmp_path / "o")
    lines = script_in_process("scripts/reproduce.py", *arguments).stdout
    commands = [shlex.split(line)[:2] for line in lines.splitlines()]
    assert commands == [["python", name] for name in ("search/train_search.py", "train/train.py", "train/test.py")] * 4
    assert sorted(tmp_path.iterdir()) == before
