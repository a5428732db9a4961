"""Run folders when things go wrong: killed processes, two processes in one folder, full disks, changed images."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

from lib import checkpoints
from lib.cli import InputError, open_folder
from lib.files import hold
from tests.helpers import (
    RETRAINING,
    ROOT,
    SMALL,
    assert_rejected,
    few_images,
    last_checkpoint,
    retrain,
    run_search,
    script_in_process,
    settings_of,
)
from tools.die_in_write import cut_short
from tools.kill_drill import differences

#: one step in each epoch
TINY = replace(SMALL, init_channels=2, reg="none", epochs=1, images=64, batch_size=30)
TINY_RETRAINING = replace(RETRAINING, epochs=1, images=100, batch_size=40)
pytestmark = pytest.mark.usefixtures("no_figures")


class Killed(BaseException):
    """Stand-in for the death of the process, which no code catches."""


def die() -> None:
    raise Killed


@pytest.mark.parametrize(
    ("begin", "settings", "writes"),
    [
        # at least config.yaml, the checkpoint, metrics.csv, genotypes.jsonl, alphas.npz and genotype.json
        (run_search, TINY, 6),
        # config.yaml, genotype.json, the checkpoint, result.json and model_card.md; CSVLogger writes metrics.csv
        pytest.param(retrain, TINY_RETRAINING, 5, marks=pytest.mark.slow),
    ],
    ids=["search", "retraining"],
)
def test_a_run_killed_at_any_moment_of_any_write_ends_like_an_undisturbed_one(tmp_path, begin, settings, writes):
    undisturbed = begin(settings, tmp_path / "undisturbed")
    for moment in itertools.count():
        run = tmp_path / str(moment)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", os.fsync)  # so that the patch restores it afterwards
            patch.setattr(os, "replace", os.replace)
            cut_short(moment, die)
            try:
                begin(settings, run)
                break
            except Killed:
                pass
        begin(settings, run, resumed=(run / "config.yaml").exists())
        assert list(differences(undisturbed, run)) == [], moment
        shutil.rmtree(run)
    assert moment >= 3 * writes


def holder(folder, then) -> subprocess.Popen:
    """Start a process that locks a run folder while it executes the statement `then`."""
    code = (
        "import os, sys, time; from pathlib import Path; from lib.files import hold\n"
        f"with hold(Path(sys.argv[1])):\n print(1, flush=True); {then}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, folder], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    )
    process.stdout.readline()
    return process


def test_a_run_folder_has_one_writer_at_a_time(tmp_path):
    with holder(tmp_path, "time.sleep(99)") as process:
        for flag, new in (("--resume", False), ("--save", True)):
            said = rf"^{flag}: {tmp_path} is in use by another process$"
            with pytest.raises(InputError, match=said), open_folder(tmp_path, flag, new=new):
                pass
        process.send_signal(signal.SIGKILL)
    with open_folder(tmp_path, "--save", new=True):
        pass


def test_a_child_process_does_not_inherit_the_lock(tmp_path):
    """Workers that decode images, for example, outlive their parent by seconds."""
    with holder(tmp_path, "os.fork() or time.sleep(30); os._exit(0)") as process:
        assert process.wait() == 0
        try:
            with hold(tmp_path):
                pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def disk(tmp_path):
    """The folder of a file system with a size of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system, which the test needs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (
            "search/train_search.py",
            "--method darts --space s2 --layers 4 --init_channels 2 --images 64 --batch_size 30 --epochs 3",
        ),
        ("train/train.py", "--arch DARTS_V2 --layers 3 --init_channels 4 --images 500 --epochs 2"),
    ],
    ids=["search", "retraining"],
)
def test_a_full_disk_ends_a_run_with_a_one_line_error_and_it_resumes_later(tmp_path, disk, monkeypatch, command, flags):
    run, ballast, undisturbed = disk / "run", disk / "ballast", tmp_path / "undisturbed"
    line = (command, *flags.split(), "--dataset", "digits", "--device", "cpu", "--save")
    assert script_in_process(*line, undisturbed).returncode == 0
    save = checkpoints.save

    def save_and_fill(*arguments):
        save(*arguments)
        if not ballast.exists():
            with pytest.raises(OSError, match="No space"):
                ballast.write_bytes(b"\0" * 2**22)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save_and_fill)
        assert_rejected(script_in_process(*line, run), str(disk), "No space left", f"python {command} --resume {run}")
    ballast.unlink()
    resumed = script_in_process(command, "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert list(differences(undisturbed, run)) == []


@pytest.mark.parametrize("begin", [run_search, retrain])
def test_a_run_does_not_resume_with_changed_images(tmp_path, begin):
    images = {**few_images(tmp_path / "images"), "epochs": 2}
    settings = settings_of(**images) if begin is run_search else replace(RETRAINING, **images, cutout=False)
    run = begin(settings, tmp_path / "run")
    for path in (last_checkpoint(run), run / "genotype.json", run / "result.json"):
        path.unlink(missing_ok=True)
    Image.new("RGB", (4, 4), "red").save(next((tmp_path / "images/train").rglob("*.png")))
    with pytest.raises(InputError, match=r"the run began with other (training )?images"):
        begin(settings, run, resumed=True)
