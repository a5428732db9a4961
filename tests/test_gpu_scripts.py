"""The scripts that run on a GPU, at toy size on a CPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import smoke
from tests.helpers import ROOT, script

SCRIPTS = ("first_gpu_run.sh", "second_gpu_run.sh")


def run_script(name, out, *flags, site="", timeout):
    """Run a script for a GPU on the CPU, at toy size; its summary and results."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(site)}
    command = ["bash", f"benchmarks/{name}", out, "--device", "cpu", *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()
    assert len(list(out.iterdir())) <= 8
    summary = dict(line.split("\t")[:2] for line in (out / "summary.tsv").read_text().splitlines())
    return summary, json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_the_first_run_on_a_gpu_at_toy_size(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'a').close()\n")
    summary, results = run_script(SCRIPTS[0], tmp_path / "out", "--seconds", "500", site=site, timeout=600)
    names = ["tests", "search", "resume", "resumed", "s5", "nasbench201", "depthwise", "s5_channels_last", "methods"]
    assert summary == dict.fromkeys(names, "ok")
    assert (tmp_path / "seen").exists()  # PYTHONPATH is extended, not replaced
    assert (tmp_path / "out/search.tar.gz").exists()
    assert [row["way"] for row in results["s5"]["rows"]] == ["contiguous", "plain"]
    assert [row["method"] for row in results["methods"]["rows"]] == ["darts", "lambda-darts-exact"]
    assert len(results["depthwise"]["rows"]) == 20


@pytest.mark.slow
def test_the_second_run_on_a_gpu_at_toy_size(tmp_path):
    """The compiler takes minutes, and is stopped on a CPU."""
    summary, results = run_script(SCRIPTS[1], tmp_path / "out", "--seconds", "500", timeout=600)
    names = ["low_precision_s2", "low_precision_s5", "search", "search_tf32", "search_bf16"]
    names += ["retraining", "retraining_tf32", "retraining_bf16", "imagenet"]
    assert {name: summary[name] for name in names} == dict.fromkeys(names, "ok")
    assert set(summary) - set(names) == {"retraining_compiled", "search_compiled"}
    assert all(row["seconds_per_step"] > 0 for name in names if "_step" in name for row in results[name]["rows"])
    assert results["imagenet"]["rates"]["model"] > 0
    assert [row["way"] for row in results["retraining"]["rows"]] == ["contiguous", "plain"]


def stubborn(tmp_path):
    """An interpreter of searches and smoke tests that do not end, not by Ctrl-C either; of all else it is Python."""
    stub = tmp_path / "python"
    stub.write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in *smoke.py* | *train_search.py*) ;; *) exec ' + sys.executable + ' "$@" ;; esac\n'
        "trap '' INT TERM\n"
        f"echo $$ >>{tmp_path / 'started'}\n"
        "while true; do sleep 1; done\n"
    )
    stub.chmod(0o755)
    return stub


def is_alive(pid):
    """A zombie is not alive: in a container, the first process may never wait for orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_search_that_hangs_is_killed_with_its_step(tmp_path):
    environment = {**os.environ, "PYTHON": str(stubborn(tmp_path))}
    out, command = tmp_path / "out", ["bash", f"benchmarks/{SCRIPTS[0]}", tmp_path / "out", "--device", "cpu"]
    subprocess.run(
        [*command, "--seconds", "60"], cwd=ROOT, env=environment, capture_output=True, check=False, timeout=150
    )
    assert "search\tfailed with status" in (out / "summary.tsv").read_text()
    pids = (tmp_path / "started").read_text().split()
    deadline = time.monotonic() + 15
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert pids and not any(map(is_alive, pids))


@pytest.mark.slow
def test_the_smoke_run_imports_all_and_takes_a_step_of_each_kind():
    """Without the script's limit of a minute, which a busy machine may exceed."""
    done = script("benchmarks/smoke.py", "--device", "cpu", env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    parts = ["imports", "depthwise", "nasbench201", "s5", "retraining, bf16-mixed", "resumed search", "low precision"]
    for part in [*parts, "ImageNet's loader", "GPU tests"]:
        assert f"\n{part}: ok, " in f"\n{done.stdout}"


def test_a_part_of_the_smoke_run_that_fails_keeps_its_traceback_and_the_others_go_on(monkeypatch, capsys):
    def broken(device, *arguments):
        raise RuntimeError("no such kernel")

    names = [name for name, part in vars(smoke).items() if getattr(part, "__module__", "") == smoke.__name__]
    for name in set(names) - {"Settings", "main", "depthwise"}:
        monkeypatch.setattr(smoke, name, lambda device, *arguments: None)
    monkeypatch.setattr(smoke, "depthwise", broken)
    monkeypatch.setattr(sys, "argv", ["smoke.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="failed: depthwise"):
        smoke.main()
    said = capsys.readouterr()
    assert "RuntimeError: no such kernel" in said.err
    assert "depthwise: failed" in said.out and "GPU tests: ok" in said.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "OUT: missing"),
        (["OUT", "--device", "tpu"], "--device: 'tpu'"),
        (["OUT", "--seconds", "ten"], "--seconds: 'ten'"),
        (["OUT", "--fast"], "--fast: unknown"),
        (["tests"], "OUT: tests is not empty"),
    ],
)
def test_the_gpu_scripts_refuse_what_they_do_not_know(arguments, says):
    for name in SCRIPTS:
        done = subprocess.run(
            ["bash", f"benchmarks/{name}", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and not (ROOT / "OUT").exists()
        expected = "expected OUT [--smoke] [--device cpu|cuda] [--seconds N]"
        assert done.stderr == f"{name}: error: {says}; {expected}\n"
