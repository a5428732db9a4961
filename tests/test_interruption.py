"""SIGKILL at random moments, then --resume: the end is that of the uninterrupted run, for every method."""

import random
import signal
import subprocess
import sys
import time

import pytest

from search.settings import load_settings
from tests.conftest import ROOT
from tests.test_data import write_folder
from tests.test_search import assert_same_run, run_search

METHODS = ("darts", "darts-2nd", "lambda-darts", "darts-minus", "fair-darts", "idarts", "darts-pt")
FLAGS = (
    "--dataset digits --space s2 --layers 4 --init_channels 4 --batch_size 64 --epochs 3 --device cpu"
    " --arch_learning_rate 0.1"
)
OWN = {"fair-darts": "--threshold 0.5", "darts-pt": "--finetune_epochs 0"}


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_search_ends_like_one_that_was_not(tmp_path, method):
    moments = random.Random(METHODS.index(method))
    run = tmp_path / "run"
    command = [*FLAGS.split(), "--method", method, *OWN.get(method, "").split(), "--save", str(run)]
    kills = 0
    for attempt in range(3):
        # The last kill falls into the selection where that is a long one.
        marker = run / ("perturbation" if method == "darts-pt" and attempt == 2 else "config.yaml")
        with subprocess.Popen(
            [sys.executable, "search/train_search.py", *command],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None and not marker.exists():
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 4))
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
        command = ["--resume", str(run)]
    assert kills >= 1
    run_search(load_settings(run), run, resumed=True)
    undisturbed = run_search(load_settings(run), tmp_path / "undisturbed")
    assert_same_run(undisturbed, run)
    if method == "darts-pt":
        scores = [(folder / "perturbation/scores.csv").read_text() for folder in (undisturbed, run)]
        assert scores[0] == scores[1]


def test_a_selection_killed_between_and_in_its_fine_tunings_ends_like_one_that_was_not(tmp_path):
    moments = random.Random(17)
    root, run = write_folder(tmp_path / "data", per_class=24, size=(4, 4)), tmp_path / "run"
    command = (
        f"--method darts-pt --dataset folder --data {root} --space s2 --layers 4 --init_channels 2 --batch_size 12"
        f" --epochs 1 --finetune_epochs 1 --device cpu --save {run}"
    ).split()
    checkpoints, done = run / "perturbation/checkpoints", ""
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "search/train_search.py", *command],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            # Until it has got on by a stage, and a while into one of the next: a selection takes about ten seconds.
            while process.poll() is None and max((p.name for p in checkpoints.glob("epoch_*")), default="") <= done:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 2))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        done = max(path.name for path in checkpoints.glob("epoch_*"))
        command = ["--resume", str(run)]
    assert not (run / "genotype.json").exists()
    run_search(load_settings(run), run, resumed=True)
    undisturbed = run_search(load_settings(run), tmp_path / "undisturbed")
    assert_same_run(undisturbed, run)
    scores = [(folder / "perturbation/scores.csv").read_text() for folder in (undisturbed, run)]
    assert scores[0] == scores[1]
