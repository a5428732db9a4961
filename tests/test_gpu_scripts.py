"""The scripts for GPUs, run at toy size on a CPU."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT, script

SCRIPTS = ("first_gpu_run.sh", "second_gpu_run.sh")


def run_script(name, out):
    """Run a GPU script at toy size on the CPU. Return its summary and its results."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""}
    command = ["bash", f"benchmarks/{name}", out, "--device", "cpu", "--seconds", "500"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()
    assert len(list(out.iterdir())) <= 8
    summary = dict(line.split("\t")[:2] for line in (out / "summary.tsv").read_text().splitlines())
    return summary, json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_the_first_gpu_run_succeeds_at_toy_size_on_a_cpu(tmp_path):
    summary, results = run_script(SCRIPTS[0], tmp_path / "out")
    names = ["tests", "search", "resume", "resumed", "s5", "nasbench201", "depthwise", "s5_channels_last", "methods"]
    assert summary == dict.fromkeys(names, "ok")
    assert (tmp_path / "out/search.tar.gz").exists()
    assert [row["way"] for row in results["s5"]["rows"]] == ["contiguous", "plain"]
    assert [row["method"] for row in results["methods"]["rows"]] == ["darts", "lambda-darts-exact"]
    assert len(results["depthwise"]["rows"]) == 20


@pytest.mark.slow
def test_the_second_gpu_run_succeeds_at_toy_size_on_a_cpu(tmp_path):
    """Compiling takes minutes, so the script stops it on a CPU. The compiled parts may have any status."""
    summary, results = run_script(SCRIPTS[1], tmp_path / "out")
    names = ["low_precision_s2", "low_precision_s5", "search_tf32", "search_bf16"]
    names += ["retraining", "retraining_tf32", "retraining_bf16", "imagenet"]
    assert {name: summary[name] for name in names} == dict.fromkeys(names, "ok")
    assert set(summary) - set(names) == {"retraining_compiled", "search_compiled"}
    assert all(row["seconds_per_step"] > 0 for name in names if "_step" in name for row in results[name]["rows"])
    assert results["imagenet"]["rates"]["model"] > 0
    assert [row["way"] for row in results["retraining"]["rows"]] == ["contiguous", "plain"]


@pytest.mark.slow
def test_the_smoke_run_imports_all_modules_and_takes_a_step_of_each_kind():
    """The limit of one minute does not apply here because a busy machine may exceed it."""
    done = script("benchmarks/smoke.py", "--device", "cpu", env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    parts = ["imports", "depthwise", "nasbench201", "s5", "retraining, bf16-mixed", "resumed search", "low precision"]
    for part in [*parts, "ImageNet's loader", "GPU tests"]:
        assert f"\n{part}: ok, " in f"\n{done.stdout}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["OUT", "--device", "tpu"], "--device: 'tpu'"),
        (["OUT", "--fast"], "--fast: unknown flag"),
        (["tests"], "OUT: tests is not empty"),
    ],
)
def test_the_gpu_scripts_reject_wrong_arguments(arguments, says):
    for name in SCRIPTS:
        done = subprocess.run(
            ["bash", f"benchmarks/{name}", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and not (ROOT / "OUT").exists()
        expected = "expected OUT [--smoke] [--device cpu|cuda] [--seconds N]"
        assert done.stderr == f"{name}: error: {says}; {expected}\n"
