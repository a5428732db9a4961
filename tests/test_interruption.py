"""A run that is killed and resumed ends like an undisturbed one, for each mechanism that keeps a state."""

import random
import signal

import pytest

from lib.options import load_settings
from search.settings import SCRIPT
from tests.helpers import assert_same_run, last_checkpoint, run_search, start, wait_until, without_figures
from tools.kill_drill import KINDS, differences, kill_repeatedly


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lambda-darts", "darts-2nd", "nasbench201", "retraining", "imagenet"])
def test_killed_runs_end_like_undisturbed_ones(tmp_path, name):
    """Each run is killed twice. tools/kill_drill.sh repeats this for all kinds of runs."""
    figures = kill_repeatedly(name, 2, tmp_path, random.Random(list(KINDS).index(name)))
    assert figures.faults == [] and figures.kills.total() == 2 and figures.files > 5


def test_a_killed_search_ends_like_an_undisturbed_one(tmp_path):
    run = tmp_path / "run"
    flags = "--dataset digits --space s2 --layers 4 --init_channels 2 --images 64 --batch_size 30 --device cpu"
    command = ("search/train_search.py", *flags.split(), "--method", "lambda-darts", "--epochs", 5, "--save", run)
    with start(*command) as process:
        wait_until(lambda: last_checkpoint(run).exists(), process)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (run / "genotype.json").exists()
    stored = load_settings(SCRIPT.settings, SCRIPT.path, run, "run")
    with without_figures():
        run_search(stored, run, resumed=True)
        undisturbed = run_search(stored, tmp_path / "undisturbed")
    assert_same_run(undisturbed, run)


def test_the_kill_drill_ignores_the_folders_of_runs_but_not_their_settings(tmp_path):
    for name, epochs in (("a", 2), ("b", 2), ("c", 3)):
        run = tmp_path / name
        run.mkdir()
        (run / "config.yaml").write_text(f"arch: {run}/search\nepochs: {epochs}\nsave: {name}\n")
    assert list(differences(tmp_path / "a", tmp_path / "b")) == []
    assert ["config.yaml differs" in line for line in differences(tmp_path / "a", tmp_path / "c")] == [True]
