"""The runs of a table when processes and machines die. Most tables run tests/stub_run.py, which trains nothing."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.grid import SCRIPTS, expand, load_table
from scripts.reproduce import write_unit
from tests.helpers import ROOT, TABLE, assert_rejected, metrics, script, script_in_process, write_table
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
#: flags with which no run dies, waits or pauses
UNDISTURBED = ("--set", "search.die_at=0", "search.wait_at=0", "pause=0")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture(scope="module", autouse=True)
def stubs():
    """Let this process run tables of tests/stub_run.py."""
    allow()
    yield
    for scripts in SCRIPTS.values():
        del scripts[SCRIPT]


def start(*arguments: object, program: str = "tests/stub_table.py") -> subprocess.Popen:
    command = [sys.executable, program, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # so that stub_table.py can import `tests` and `scripts`
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def processes(of: object) -> set[int]:
    """The ids of Ray's processes whose command line or title contains a text."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes()
            if line.startswith(b"ray::") and str(of).encode() in line:
                found.add(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def wait_for(condition, timeout: float = 240):
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"the condition did not hold within {timeout} seconds"
        time.sleep(0.1)
    return value


def run_commands(out: Path, *arguments: object) -> Path:
    """Run the plain commands of a table one after another, without Ray and without faults."""
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
    """Check that the results in `reference` and in `out` are equal, except for times and paths."""
    units = [path.parent.relative_to(reference) for path in reference.rglob("score.json")]
    assert units
    for unit in units:
        for step in ("search", "retrain"):
            one, other = (place / unit / step for place in (out, reference))
            assert metrics(one) == metrics(other)
            assert (one / "genotype.json").read_text() == (other / "genotype.json").read_text()
        scores = [json.loads((place / unit / "score.json").read_text()) for place in (out, reference)]
        assert {**scores[0], "command": ""} == {**scores[1], "command": ""}


def attempts(out: Path) -> dict[str, int]:
    """The number of times that each step was started."""
    return {str(log.relative_to(out)): log.read_text().count("$ python") for log in out.rglob("*.log")}


def begun(out: Path) -> bool:
    """Return True if a run has finished an epoch."""
    return any(path.read_text().count("\n") > 1 for path in out.rglob("metrics.csv"))


def test_a_table_continues_when_runs_die_and_fail(tmp_path):
    table, out = write_table(tmp_path, STUBS), tmp_path / "out"
    result = script_in_process("scripts/reproduce.py", "--table", table, "--scale", "short", "--out", out)
    assert result.returncode == 1, result.stderr
    failing, dying = sorted(result.stderr.splitlines(), key=lambda line: "Dying" in line)
    assert "Failing" in failing and "exit status 1" in failing and str(out) in failing
    assert "Dying" in dying and "died" in dying
    assert "2 of 4 entries finished" in result.stdout
    unfinished = {path.parent.name for path in out.rglob("seed-0") if not (path / "score.json").exists()}
    assert unfinished == {"dying", "failing"}
    arguments = ("--table", table, "--scale", "short", "--methods", "Whole", "Killed", *UNDISTURBED)
    assert_same_results(out, run_commands(tmp_path / "reference", *arguments))
    started = attempts(out)
    assert (started.pop("a/killed/seed-0/search.log"), started.pop("a/dying/seed-0/search.log")) == (2, 5)
    assert len(started) == 7 and set(started.values()) == {1}


@pytest.mark.slow
@linux
def test_a_table_on_two_nodes_survives_killed_workers_and_the_loss_of_a_node(tmp_path):
    from ray.cluster_utils import Cluster

    out, arguments = tmp_path / "out", ("--table", write_table(tmp_path, STUBS), "--scale", "long")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        run = start(*arguments, "--out", out, "--address", cluster.address)
        wait_for(lambda: begun(out))
        for killed in range(3):
            worker = wait_for(lambda: next(iter(processes(f"search {out}")), None))
            time.sleep(0.7 * killed)
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda worker=worker: worker not in processes(out), 60)
        wait_for(lambda: len(processes(out)) == 2)
        cluster.remove_node(second, allow_graceful=False)
        said, _ = run.communicate(timeout=500)
    finally:
        cluster.shutdown()
    assert run.returncode == 0 and "4 of 4 entries finished" in said, said
    assert_same_results(out, run_commands(tmp_path / "reference", *arguments, *UNDISTURBED))
    # Every step was started once, and again after each death.
    started = attempts(out)
    assert len(started) == 12 and 15 <= sum(started.values()) <= 17, started
    again = script_in_process("scripts/reproduce.py", *arguments, "--out", out)
    assert again.returncode == 0 and "4 of 4" in again.stdout and attempts(out) == started


@pytest.mark.slow
@linux
def test_stopping_a_table_stops_its_runs_and_the_same_command_continues(tmp_path):
    out, arguments = tmp_path / "out", ("--table", write_table(tmp_path, STUBS), "--scale", "stopped")
    for number, signum in enumerate((signal.SIGINT, signal.SIGTERM), start=1):
        run = start(*arguments, "--out", out)
        wait_for(
            lambda number=number: len(list(out.rglob("time-*"))) == number
        )  # the search has begun to wait, for ten minutes
        if signum == signal.SIGINT:
            other = script_in_process("scripts/reproduce.py", *arguments, "--out", out)
            assert_rejected(other, "--out", "in use")
        run.send_signal(signum)
        said, _ = run.communicate(timeout=100)
        assert run.returncode == 130, said
        assert "Traceback" not in said and "run the same command again to continue" in said
        assert not processes(out)
    # The settings of a run that has begun cannot be changed.
    changed = script_in_process("scripts/reproduce.py", *arguments, "--out", out, "--set", "search.epochs=7")
    assert_rejected(changed, "--out", "epochs not given", "7")
    run = start(*arguments, "--out", out)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert_same_results(out, run_commands(tmp_path / "reference", *arguments, *UNDISTURBED))


@pytest.mark.slow
@linux
def test_runs_of_a_table_end_like_their_plain_commands_even_if_one_is_killed(tmp_path):
    out = tmp_path / "out"
    small = ("search.epochs=3", "retrain.epochs=2", "search.batch_size=256", "retrain.batch_size=256")
    arguments = ("--table", write_table(tmp_path), "--scale", "tiny", "--seeds", 1, "--methods", "darts-minus")
    run = start(*arguments, "--out", out, "--set", *small, program="scripts/reproduce.py")
    wait_for(lambda: begun(out))
    os.kill(next(iter(processes(out))), signal.SIGKILL)
    said, _ = run.communicate(timeout=500)
    assert run.returncode == 0, said
    assert sum(attempts(out).values()) == 4
    assert_same_results(out, run_commands(tmp_path / "reference", *arguments, "--set", *small))


def test_without_ray_a_table_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    table = write_table(tmp_path, STUBS)
    result = script_in_process("scripts/reproduce.py", "--table", table, "--scale", "short", "--out", tmp_path / "out")
    assert_rejected(result, "pip install -e '.[cluster]'")
    assert not (tmp_path / "out").exists()


def failure(folder: Path, text: str, kind: str = "score") -> str:
    """The error of a job whose script is `text`. It runs in a separate process, because it redirects stdout."""
    (folder / "mine.py").write_text(text)
    lines = (
        "from lib.sweep import Failed, Job, Path, run_job",
        f"folder = Path({str(folder)!r})",
        f"job = Job({kind!r}, folder, [str(folder / 'mine.py')], [], 3, 1, 0)",
        "try: run_job(job)",
        "except Failed as error: (folder / 'failure').write_text(str(error))",
    )
    (folder / "failure").write_text("")
    assert script("-c", "\n".join(lines)).returncode == 0
    return (folder / "failure").read_text()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys\nprint('what was wrong\\n\\n')\nsys.exit(3)\n", "exit status 3: what was wrong"),
        ("raise RuntimeError('a bug')\n", "exit status 1: RuntimeError: a bug"),
        ("print('no score')\n", "printed no JSON object: no score"),
        ("print('{\"accuracy\": 0.5}')\n", ""),
    ],
)
def test_a_job_fails_with_the_last_line_of_its_script(tmp_path, text, reason):
    said = failure(tmp_path, text)
    assert reason in said and bool(said) == bool(reason)
    assert (tmp_path / "score.json").exists() == (not reason)
    if not reason:
        assert failure(tmp_path, "raise RuntimeError") == ""  # a finished job does not run again
        assert "wrote no result" in failure(tmp_path, "", kind="search")


def test_a_run_does_not_join_the_process_group_of_its_launcher(tmp_path, monkeypatch):
    """srun often starts Ray; with its variables, a retraining would wait for the other processes of the SLURM job."""
    names = ("SLURM_NTASKS", "SLURM_STEP_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "KEPT")
    for name in names:
        monkeypatch.setenv(name, "2")
    text = "import os, json\nprint(json.dumps(dict(os.environ)))\n"
    assert failure(tmp_path, text) == ""
    environment = json.loads((tmp_path / "score.json").read_text())
    assert [environment.get(name) for name in (*names, "OMP_NUM_THREADS")] == [None] * 6 + ["2", "3"]


def test_a_published_figure_belongs_to_its_space_data_and_method():
    def whose(change: dict | None = None, **flags) -> dict:
        table = {**load_table("darts"), **(change or {})}
        units = expand(table, "small", overrides={"search": flags, "retrain": flags})
        return next(unit.published_for for unit in units if unit.method == "FairDARTS")

    figure = {"space": "s5", "dataset": "cifar10", "method": "fair-darts"}
    assert whose() == figure
    assert whose(dataset="folder") == figure  # the table names the data set
    assert whose(dataset="digits")["dataset"] == "digits"
    assert whose({"search": {"space": "s2"}}) == {**figure, "space": "s2"}
    assert whose({"search": {"space": "s5", "lambda_": 3, "reg": "corr"}}) == {}


def test_a_table_may_change_until_a_run_begins(tmp_path):
    unit, changed = (expand(TABLE, scale, seeds=1, methods=["darts"])[0] for scale in ("tiny", "broken"))
    path = tmp_path / "unit.json"
    write_unit(path, unit, TABLE, True)
    write_unit(path, changed, TABLE, True)  # with another number of epochs
    assert json.loads(path.read_text())["steps"]["search"]["epochs"] == 1
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "config.yaml").write_text("begun")
    with pytest.raises(ValueError, match="epochs 1, but the table has 6"):
        write_unit(path, unit, TABLE, True)
