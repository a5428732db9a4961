"""Tables as grids of runs, and the runs on machines that die."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from cli import InputError
from scripts.grid import TABLES, expand, load_table, slug
from scripts.sweep import (
    Sweep,
    _environment,
    _process,
    locked,
    open_unit,
    progress_of,
    published_for,
    run_step,
)
from tests.helpers import ROOT, TABLE, assert_refused, script


def write(folder: Path, table: dict = TABLE) -> Path:
    path = folder / "digits.yaml"
    path.write_text(yaml.safe_dump(table, allow_unicode=True), encoding="utf-8")
    return path


# --- grids


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
    table = write(tmp_path)
    before = sorted(tmp_path.iterdir())
    lines = script(
        "scripts/reproduce.py", "--table", table, "--scale", "tiny", "--dry_run", "--out", tmp_path / "o"
    ).stdout
    commands = [shlex.split(line)[:2] for line in lines.splitlines()]
    assert commands == [["python", name] for name in ("search/train_search.py", "train/train.py", "train/test.py")] * 4
    assert sorted(tmp_path.iterdir()) == before


# --- runs


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "scripts/reproduce.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes(out: Path) -> dict[int, int]:
    """The scripts that run in a table's folder: their process and its parent, Ray's worker."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
            if any(part.endswith(b"reproduce.py") for part in line[:3]) or not any(
                str(out).encode() in p for p in line
            ):
                continue
            if not line[0].rpartition(b"/")[2].startswith(b"python"):
                continue
            status = (entry / "status").read_text()
            found[int(entry.name)] = int(status.split("PPid:")[1].split()[0])
        except (OSError, ValueError):
            continue
    return found


def wait_for(condition, timeout: float = 240):
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)
    return value


def same_results(one: Path, other: Path) -> None:
    """All that two runs of a table leave, but for time and place."""
    for unit in sorted(path.parent.relative_to(one) for path in one.rglob("unit.json")):
        for step in ("search", "retrain"):
            a, b = (
                np.genfromtxt(place / unit / step / "metrics.csv", delimiter=",", names=True) for place in (one, other)
            )
            for name in set(a.dtype.names) - {"seconds", "peak_memory_mib"}:
                assert np.array_equal(a[name], b[name], equal_nan=True), (unit, step, name)
            texts = [(place / unit / step / "genotype.json").read_text() for place in (one, other)]
            assert texts[0] == texts[1]
        scores = [json.loads((place / unit / "score.json").read_text()) for place in (one, other)]
        assert next({**score, "command": ""} for score in scores) == {**scores[1], "command": ""}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The table by its plain commands, one after another: no Ray, nothing dies."""
    folder = tmp_path_factory.mktemp("reference")
    out = folder / "out"
    arguments = ("--table", write(folder), "--scale", "tiny", "--out", out)
    for line in script("scripts/reproduce.py", *arguments, "--dry_run").stdout.splitlines():
        _, name, *rest = shlex.split(line)
        result = script(name, *rest)
        assert result.returncode == 0, result.stderr
        if name == "train/test.py":
            unit = (ROOT / rest[0]).resolve().parent
            (unit / "score.json").write_text(json.dumps({"command": line, **json.loads(result.stdout)}))
            (unit / "unit.json").write_text("{}")
    return out


def attempts(out: Path) -> dict[Path, int]:
    """How often each step was begun."""
    logs = (path for path in out.rglob("*.log") if path.stem in ("search", "retrain", "score"))
    return {log.relative_to(out): log.read_text().count("$ python") for log in logs}


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_table_on_two_nodes_survives_killed_workers_and_the_loss_of_a_node(tmp_path, reference):
    from ray.cluster_utils import Cluster

    out, table = tmp_path / "out", write(tmp_path)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        run = start("--table", table, "--scale", "tiny", "--out", out, "--address", cluster.address)
        killed = 0
        struck: set[int] = set()
        while killed < 3:
            wait_for(lambda: any(progress_of(path.parent)[0] for path in out.rglob("metrics.csv")))
            child, worker = wait_for(lambda: next(((c, w) for c, w in processes(out).items() if w not in struck), None))
            time.sleep(0.7 * killed)
            try:
                os.kill(worker, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it had just finished
            struck.add(worker)
            killed += 1
            wait_for(lambda child=child: child not in processes(out), 60)
        wait_for(lambda: len(processes(out)) == 2)
        cluster.remove_node(second, allow_graceful=False)
        said, _ = run.communicate(timeout=500)
    finally:
        cluster.shutdown()
    assert run.returncode == 0, said
    same_results(out, reference)
    lost = said.count("lost its process")
    assert lost >= 3, said
    # Every step was begun once, and once more for each time that it was lost.
    begun = attempts(out)
    assert len(begun) == 12
    assert sum(begun.values()) <= 12 + lost
    assert "4 of 4 entries finished" in said
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".csv", ".log", ".ckpt")}
    again = script("scripts/reproduce.py", "--table", table, "--scale", "tiny", "--out", out)
    assert again.returncode == 0 and "4 of 4" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_stopping_a_table_stops_its_runs_and_the_same_command_goes_on(tmp_path, reference):
    out, table = tmp_path / "out", write(tmp_path)
    arguments = ("--table", table, "--scale", "tiny", "--seeds", 1, "--out", out)
    run = start(*arguments)
    wait_for(lambda: any(progress_of(path.parent)[0] for path in out.rglob("metrics.csv")))
    other = script("scripts/reproduce.py", *arguments)
    assert_refused(other, "--out", "another reproduce.py")
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 130, said
    assert "Traceback" not in said and "goes on" in said
    assert not processes(out)
    # the table's own settings are kept
    changed = script("scripts/reproduce.py", *arguments, "--set", "search.epochs=7")
    assert_refused(changed, "--out", "epochs 6", "7")
    run = start(*arguments)
    wait_for(lambda: processes(out))
    run.terminate()
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 130 and "goes on" in said, said
    assert not processes(out)
    run = start(*arguments)
    said, _ = run.communicate(timeout=500)
    assert run.returncode == 0, said
    same_results(out, reference)


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    out = tmp_path / "out"
    result = script("scripts/reproduce.py", "--table", write(tmp_path), "--scale", "broken", "--out", out)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "DARTS-" in line and "--threshold" in line and str(out) in line
    assert (out / "s2/darts/seed-0/score.json").exists() and not (out / "s2/darts-minus/seed-0/score.json").exists()


def test_a_script_that_is_killed_is_started_again(tmp_path, reference):
    out = tmp_path / "out"
    run = start("--table", write(tmp_path), "--scale", "tiny", "--seeds", 1, "--out", out)
    wait_for(lambda: any(progress_of(path.parent)[0] for path in out.rglob("metrics.csv")))
    os.kill(next(iter(processes(out))), signal.SIGKILL)
    said, _ = run.communicate(timeout=500)
    assert run.returncode == 0 and "killed by SIGKILL" in said, said
    same_results(out, reference)


def test_a_long_run_is_stopped_at_once(tmp_path):
    out = tmp_path / "out"
    arguments = ("--table", write(tmp_path), "--scale", "tiny", "--seeds", 1, "--set", "search.epochs=500")
    run = start(*arguments, "--out", out)
    wait_for(lambda: any(progress_of(path.parent)[0] for path in out.rglob("metrics.csv")))
    run.send_signal(signal.SIGINT)
    begin = time.monotonic()
    said, _ = run.communicate(timeout=200)
    assert time.monotonic() - begin < 40, said
    assert run.returncode == 130 and not processes(out)


def test_a_script_that_says_nothing_fails_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.sweep.ROOT", tmp_path)
    (tmp_path / "silent.py").write_text("import sys\nprint('what was wrong\\n\\n')\nsys.exit(3)\n")
    log = tmp_path / "silent.log"
    with locked(tmp_path / ".lock", wait=False) as lock:
        assert _process(["silent.py"], log, 1, lock) == "exit status 3: what was wrong"
    (tmp_path / "silent.py").write_text("import sys\nsys.exit(4)\n")
    with locked(tmp_path / ".lock", wait=False) as lock:
        assert _process(["silent.py"], tmp_path / "other.log", 1, lock).startswith("exit status 4")


def test_a_run_does_not_take_its_launcher_for_its_own(tmp_path, monkeypatch):
    """Ray's processes are often started by srun; a retraining would wait for the others of its job."""
    for name in ("SLURM_NTASKS", "SLURM_STEP_ID", "SLURM_PROCID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    kept = _environment(3)
    assert not {"SLURM_NTASKS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"} & set(kept)
    assert kept["OMP_NUM_THREADS"] == "3" and kept["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/mine"]
    assert "PATH" in kept


def test_a_published_figure_belongs_to_its_space_data_and_method():
    def both(flags: dict) -> dict:
        return {"search": flags, "retrain": flags}

    def whose(change: dict | None = None, **overrides) -> dict:
        table = {**load_table("darts"), **(change or {})}
        unit = next(u for u in expand(table, "small", overrides=both(overrides)) if u.method == "FairDARTS")
        return published_for(unit, table)

    figure = {"space": "s5", "dataset": "cifar10", "method": "fair-darts"}
    assert whose() == figure
    assert whose(dataset="folder") == figure  # the table says of what
    assert whose(dataset="digits")["dataset"] == "digits"
    assert whose({"search": {"space": "s2"}}) == {**figure, "space": "s2"}
    assert whose({"search": {"space": "s5", "lambda_": 3, "reg": "corr"}}) == {}


def test_a_table_is_corrected_while_nothing_is_begun(tmp_path):
    table = write(tmp_path)
    unit, changed_unit = (expand(TABLE, scale, seeds=1, methods=["DARTS"])[0] for scale in ("tiny", "broken"))
    open_unit(tmp_path, unit, TABLE)
    open_unit(tmp_path, changed_unit, TABLE)  # with another number of epochs
    stored = json.loads((tmp_path / unit.folder / "unit.json").read_text())
    assert stored["steps"]["search"]["epochs"] == 1
    (tmp_path / unit.folder / "search").mkdir()
    (tmp_path / unit.folder / "search" / "config.yaml").write_text("begun")
    with pytest.raises(InputError, match="epochs 1, and the table says 6"):
        open_unit(tmp_path, unit, TABLE)
    assert table.exists()


def test_a_step_whose_folder_was_never_made_whole_is_begun_again(tmp_path):
    unit = expand({**TABLE, "scripts": {"search": "search/train_search.py"}}, "broken", methods=["DARTS"])[0]
    folder = tmp_path / unit.folder
    (folder / "search").mkdir(parents=True)
    (folder / "search" / ".config.yaml.tmp").write_text("half")
    assert run_step(unit, 0, str(tmp_path), 1) == ""
    assert progress_of(folder / "search")[0] == 1
    # and one that is finished is left alone
    before = (folder / "search.log").read_text()
    assert run_step(unit, 0, str(tmp_path), 1) == ""
    assert (folder / "search.log").read_text() == before


def test_a_lock_is_held_until_its_last_process_is_gone(tmp_path):
    path = tmp_path / ".lock"
    with locked(path, wait=False) as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    with pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    child.kill()
    child.wait()
    with locked(path, wait=False):
        pass


def test_what_remains_is_reckoned_from_the_nearest_kind_of_run(tmp_path):
    units = expand(TABLE, "tiny")  # 6 epochs of search, 4 of retraining
    sweep = Sweep(tmp_path, units, 1, 0, print)
    assert sweep.remaining(1) is None and sweep.epochs() == (0, 40)
    first, minus, _, last = units
    sweep.known.update({(first, 0): (6, 12.0), (first, 1): (4, 4.0), (minus, 0): (3, 30.0)})
    # DARTS: 6 x 2 s and 4 x 1 s with seed 1; DARTS-: 3 x 10 s and 6 x 10 s, and 8 x 1 s as DARTS's retraining
    assert sweep.remaining(1) == pytest.approx(12 + 4 + 30 + 60 + 8)
    assert sweep.remaining(2) == pytest.approx(57)
    assert sweep.epochs() == (13, 40)
    sweep.failed[last] = "no"
    assert sweep.remaining(1) == pytest.approx(12 + 4 + 30 + 4)
