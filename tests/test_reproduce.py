"""The runs of a table on machines that die. All but one table are of tests/stub_run.py, which trains nothing."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import InputError
from scripts.grid import SCRIPTS, expand, load_table
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
from tests.helpers import ROOT, TABLE, assert_refused, metrics, script, script_in_process, write_table
from tests.stub_run import SCRIPT
from tests.stub_table import allow

STUBS = {
    "title": "Stubs",
    "scripts": {"search": SCRIPT, "retrain": SCRIPT},
    "columns": {"A": {}},
    "methods": {
        "Dying": {"search": {"die_at": 1, "times": 9}},
        "Whole": {},
        "Failing": {"retrain": {"fail_at": 1}},
        "Killed": {"search": {"die_at": 2}},
        "Waiting": {"search": {"wait_at": 2, "times": 2}},
    },
    "scales": {
        "short": {"seeds": 1, "methods": ["Dying", "Whole", "Failing", "Killed"]},
        "stopped": {"seeds": 1, "methods": ["Waiting"]},
        "long": {"seeds": 4, "methods": ["Whole"], "search": {"epochs": 6, "pause": 1}, "retrain": {"epochs": 4}},
    },
}
#: flags of all runs for one that nothing disturbs
UNDISTURBED = ("--set", "search.die_at=0", "search.wait_at=0", "pause=0")


@pytest.fixture(scope="module", autouse=True)
def stubs():
    """Tables of tests/stub_run.py are taken in this process."""
    allow()
    yield
    for scripts in SCRIPTS.values():
        del scripts[SCRIPT]


def start(*arguments: object, program: str = "tests/stub_table.py") -> subprocess.Popen:
    command = [sys.executable, program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes(out: Path) -> dict[int, int]:
    """The scripts that run in a table's folder: their process and its parent, Ray's worker."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
            if any(part.endswith((b"reproduce.py", b"stub_table.py")) for part in line[:3]) or not any(
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


def run_commands(out: Path, *arguments: object) -> Path:
    """A table by its plain commands, one after another: no Ray, nothing dies."""
    printed = script_in_process("scripts/reproduce.py", *arguments, "--out", out, "--dry_run").stdout
    for line in printed.splitlines():
        _, name, *rest = shlex.split(line)
        result = script(name, *rest)
        assert result.returncode == 0, result.stderr
        if not rest[0].startswith("--"):
            unit = (ROOT / rest[0]).resolve().parent
            (unit / "score.json").write_text(json.dumps({"command": line, **json.loads(result.stdout)}))
    return out


def assert_same_results(out: Path, reference: Path) -> None:
    """All that the runs of `reference` leave, but for time and place."""
    units = [path.parent.relative_to(reference) for path in reference.rglob("score.json")]
    assert units
    for unit in units:
        for step in ("search", "retrain"):
            one, other = (place / unit / step for place in (out, reference))
            assert metrics(one) == metrics(other)
            assert (one / "genotype.json").read_text() == (other / "genotype.json").read_text()
        scores = [json.loads((place / unit / "score.json").read_text()) for place in (out, reference)]
        assert {**scores[0], "command": ""} == {**scores[1], "command": ""}


def attempts(out: Path) -> dict[Path, int]:
    """How often each step was begun."""
    logs = (path for path in out.rglob("*.log") if path.stem in ("search", "retrain", "score"))
    return {log.relative_to(out): log.read_text().count("$ python") for log in logs}


def test_a_table_goes_on_when_runs_die_and_fail(tmp_path):
    table, out = write_table(tmp_path, STUBS), tmp_path / "out"
    result = script_in_process("scripts/reproduce.py", "--table", table, "--scale", "short", "--out", out)
    assert result.returncode == 1, result.stderr
    failing, dying = sorted(result.stderr.splitlines(), key=lambda line: "Dying" in line)
    assert "Failing" in failing and "exit status 1" in failing and "--fail_at" in failing and str(out) in failing
    assert "Dying" in dying and "lost 5 times (killed by SIGKILL) without an epoch in between" in dying
    assert "Killed · seed 0: search lost its process (killed by SIGKILL) after 1 epochs; again" in result.stdout
    assert "2 of 4 entries finished" in result.stdout
    assert {path.parent.name for path in out.rglob("seed-0") if not (path / "score.json").exists()} == {
        "dying",
        "failing",
    }
    arguments = ("--table", table, "--scale", "short", "--methods", "Whole", "Killed", *UNDISTURBED)
    assert_same_results(out, run_commands(tmp_path / "reference", *arguments))
    assert attempts(out) == {
        **{Path(f"a/{name}/seed-0/{step}.log"): 1 for name in ("whole", "killed") for step in ("retrain", "score")},
        **{Path(f"a/{name}/seed-0/search.log"): 1 for name in ("whole", "failing")},
        Path("a/failing/seed-0/retrain.log"): 1,
        Path("a/killed/seed-0/search.log"): 2,
        Path("a/dying/seed-0/search.log"): 5,
    }


def test_the_folder_of_a_table_belongs_to_one_process(tmp_path):
    table, out = write_table(tmp_path, STUBS), tmp_path / "out"
    out.mkdir()
    with locked(out / ".lock", wait=False):
        result = script_in_process("scripts/reproduce.py", "--table", table, "--scale", "short", "--out", out)
    assert_refused(result, "--out", "another reproduce.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_table_on_two_nodes_survives_killed_workers_and_the_loss_of_a_node(tmp_path):
    from ray.cluster_utils import Cluster

    out, arguments = tmp_path / "out", ("--table", write_table(tmp_path, STUBS), "--scale", "long")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        run = start(*arguments, "--out", out, "--address", cluster.address)
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
    assert_same_results(out, run_commands(tmp_path / "reference", *arguments, *UNDISTURBED))
    lost = said.count("lost its process")
    assert lost >= 3, said
    # Every step was begun once, and once more for each time that it was lost.
    begun = attempts(out)
    assert len(begun) == 12
    assert sum(begun.values()) <= 12 + lost
    assert "4 of 4 entries finished" in said
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".csv", ".log")}
    again = script_in_process("scripts/reproduce.py", *arguments, "--out", out)
    assert again.returncode == 0 and "4 of 4" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_stopping_a_table_stops_its_runs_and_the_same_command_goes_on(tmp_path):
    out, arguments = tmp_path / "out", ("--table", write_table(tmp_path, STUBS), "--scale", "stopped")
    for number, signum in enumerate((signal.SIGINT, signal.SIGTERM), start=1):
        run = start(*arguments, "--out", out)
        wait_for(lambda number=number: len(list(out.rglob("time-*"))) == number)  # its search waits for ten minutes
        if signum == signal.SIGINT:
            assert_refused(
                script_in_process("scripts/reproduce.py", *arguments, "--out", out), "--out", "another reproduce.py"
            )
        run.send_signal(signum)
        said, _ = run.communicate(timeout=100)
        assert run.returncode == 130, said
        assert "Traceback" not in said and "goes on" in said
        assert not processes(out)
    # The settings of what is begun are kept.
    changed = script_in_process("scripts/reproduce.py", *arguments, "--out", out, "--set", "search.epochs=7")
    assert_refused(changed, "--out", "epochs not given", "7")
    run = start(*arguments, "--out", out)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert_same_results(out, run_commands(tmp_path / "reference", *arguments, *UNDISTURBED))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_real_runs_of_a_table_end_like_their_plain_commands_though_one_is_killed(tmp_path):
    out = tmp_path / "out"
    small = ("search.epochs=3", "retrain.epochs=2", "search.batch_size=256", "retrain.batch_size=256")
    arguments = ("--table", write_table(tmp_path), "--scale", "tiny", "--seeds", 1, "--methods", "DARTS-")
    run = start(*arguments, "--out", out, "--set", *small, program="scripts/reproduce.py")
    wait_for(lambda: any(progress_of(path.parent)[0] for path in out.rglob("metrics.csv")))
    os.kill(next(iter(processes(out))), signal.SIGKILL)
    said, _ = run.communicate(timeout=500)
    assert run.returncode == 0 and "killed by SIGKILL" in said, said
    assert_same_results(out, run_commands(tmp_path / "reference", *arguments, "--set", *small))


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
    table = write_table(tmp_path)
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
    unit = expand({**STUBS, "scripts": {"search": SCRIPT}}, "short", methods=["Whole"])[0]
    folder = tmp_path / unit.folder
    (folder / "search").mkdir(parents=True)
    (folder / "search" / ".config.yaml.tmp").write_text("half")
    assert run_step(unit, 0, str(tmp_path), 1) == ""
    assert progress_of(folder / "search")[0] == 2
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
