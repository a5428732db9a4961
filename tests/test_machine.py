"""Run folders on machines that fail: killed processes, two of them in one folder, full disks, lost folders."""

import errno
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import files
from cli import InputError, open_folder
from files import LOCK, hold, is_passing, write_atomically
from lib import checkpoints
from scripts.die_in_write import cut_short
from scripts.torture import differences, scalars
from tests.helpers import (
    RETRAINING,
    ROOT,
    SMALL,
    assert_refused,
    few_images,
    last_checkpoint,
    retrain,
    run_search,
    script_in_process,
    settings_of,
    without_figures,
)
from utils import Board

#: a step an epoch, of few images
TINY = replace(SMALL, init_channels=2, reg="none", epochs=2, images=64, batch_size=30)
TINY_RETRAINING = replace(RETRAINING, epochs=2, images=100, batch_size=40)
SEARCH = "search/train_search.py"
#: script and flags
COMMANDS = {
    "search": (
        SEARCH,
        "--dataset digits --space s2 --layers 4 --init_channels 2 --images 64 --batch_size 30 --epochs 3 --device cpu"
        " --method darts",
    ),
    "retraining": (
        "train/train.py",
        "--arch DARTS_V2 --dataset digits --layers 3 --init_channels 4 --images 500 --epochs 2 --device cpu",
    ),
}


@pytest.fixture(autouse=True, scope="module")
def no_figures():
    with without_figures():
        yield


class Killed(BaseException):
    """Stands for the death of the process: nothing catches it."""


def die() -> None:
    raise Killed


@pytest.mark.parametrize(
    ("begin", "settings", "writes"),
    [
        # config.yaml, the checkpoint, metrics.csv, genotypes.jsonl, alphas.npz and genotype.json at least
        (run_search, replace(TINY, epochs=1), 6),
        # config.yaml, genotype.json, the checkpoint, result.json and model_card.md (CSVLogger writes metrics.csv)
        pytest.param(retrain, replace(TINY_RETRAINING, epochs=1), 5, marks=pytest.mark.slow),
    ],
    ids=["search", "retraining"],
)
def test_a_run_killed_in_any_moment_of_any_write_ends_like_one_that_was_not(tmp_path, begin, settings, writes):
    undisturbed = begin(settings, tmp_path / "undisturbed")
    for moment in itertools.count():
        run = tmp_path / str(moment)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", os.fsync)  # to be put back
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


# --- one process a folder


def holder(folder: Path) -> subprocess.Popen:
    code = (
        "import sys, time; from pathlib import Path; from files import hold\n"
        "with hold(Path(sys.argv[1])):\n print(1, flush=True); time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, folder], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_folder_has_one_writer_until_that_ends(tmp_path, end):
    with holder(tmp_path) as process:
        said = rf"^--resume: {tmp_path} is in use by another process$"
        with pytest.raises(InputError, match=said), open_folder(tmp_path, "--resume", new=False):
            pass
        with pytest.raises(InputError, match="in use"), open_folder(tmp_path, "--save", new=True):
            pass
        process.send_signal(end)
        process.wait()
    with open_folder(tmp_path, "--save", new=True):
        pass


@pytest.mark.parametrize("target", ["thesis.tex", "missing", "."])
def test_a_lock_that_is_a_link_is_not_followed(tmp_path, target):
    run, mine = tmp_path / "run", tmp_path / "thesis.tex"
    run.mkdir()
    mine.write_text("mine")
    (run / LOCK).symlink_to(tmp_path / target)
    said = rf"^--save: {run / LOCK}: Too many levels of symbolic links"
    with pytest.raises(InputError, match=said), open_folder(run, "--save", new=True):
        pass
    assert mine.read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["run", "thesis.tex"]


def test_a_child_does_not_inherit_the_lock(tmp_path):
    """Such as the workers that decode pictures, which outlive their process by seconds."""
    code = (
        "import os, sys, time; from pathlib import Path; from files import hold\n"
        "with hold(Path(sys.argv[1])):\n if os.fork() == 0: time.sleep(30)\n os._exit(0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, start_new_session=True)
    assert process.wait() == 0
    try:
        with hold(tmp_path):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module", params=["search", "retraining"])
def whole(request, tmp_path_factory):
    """A finished run, and the function that begins one like it or goes on with it."""
    run = tmp_path_factory.mktemp("whole") / request.param
    if request.param == "search":
        return run_search(TINY, run), lambda run, resumed: run_search(TINY, run, resumed)
    return retrain(TINY_RETRAINING, run), lambda run, resumed: retrain(TINY_RETRAINING, run, resumed)


def unfinished(whole: Path, run: Path) -> Path:
    """A copy of a run that has its checkpoints and not yet what it leaves in the end."""
    shutil.copytree(whole, run)
    for name in ("genotype.json", "result.json", "model_card.md"):
        (run / name).unlink(missing_ok=True)
    return run


def test_a_run_refuses_a_folder_in_use(tmp_path, whole):
    run, go_on = unfinished(whole[0], tmp_path / "run"), whole[1]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != LOCK}
    with holder(run) as process:
        with pytest.raises(InputError, match=r"^--resume: .* is in use by another process"):
            go_on(run, True)
        process.kill()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != LOCK} == before


def test_what_an_interrupted_write_left_does_not_count_and_goes(tmp_path):
    for name in (".config.yaml.tmp", LOCK):
        (tmp_path / name).write_text("half")
        assert is_passing(tmp_path / name)
    with open_folder(tmp_path, "--save", new=True):
        assert os.listdir(tmp_path) == [LOCK]
    (tmp_path / ".mine").write_text("")
    assert not is_passing(tmp_path / ".mine")
    with pytest.raises(InputError, match="not empty"), open_folder(tmp_path, "--save", new=True):
        pass


def cut(content: bytes) -> bytes:
    return content[:-100]


def flip_a_bit_of_a_tensor(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        position = content.index(archive.read(largest)) + largest.file_size // 2
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize("damage", [cut, flip_a_bit_of_a_tensor])
def test_a_corrupt_last_checkpoint_is_named_and_the_run_ends_like_one_whose_was_intact(tmp_path, whole, capsys, damage):
    run, go_on = unfinished(whole[0], tmp_path / "run"), whole[1]
    last, before = reversed(checkpoints.paths(run / "checkpoints"))
    last.write_bytes(damage(last.read_bytes()))
    go_on(run, True)
    said = capsys.readouterr().err
    assert said.count(f"{last} is corrupt") == said.count(f"going on from {before.name}") == 1
    assert list(differences(whole[0], run)) == []


# --- machines


@pytest.fixture
def disk(tmp_path):
    """A file system of three MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this test mounts a small file system, which this user may not")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def after_its_first_checkpoint(act: Callable[[], object]) -> Iterator[None]:
    """Have something happen to a run of this process when its first checkpoint is whole."""
    save, saved = checkpoints.save, []

    def save_and_act(path: Path, *content: object) -> None:
        save(path, *content)
        if not saved:
            saved.append(path)
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save", save_and_act)
        yield
    assert saved


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on_when_there_is_room(tmp_path, disk, kind):
    run, ballast = disk / "run", disk / "ballast"
    command, flags = COMMANDS[kind]
    undisturbed = tmp_path / "undisturbed"
    assert script_in_process(command, *flags.split(), "--save", undisturbed).returncode == 0

    def fill() -> None:
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(b"\0" * 2**22)

    with after_its_first_checkpoint(fill):
        result = script_in_process(command, *flags.split(), "--save", run)
    assert_refused(result, str(disk), "No space left", f"python {command} --resume {run}")
    ballast.unlink()
    resumed = script_in_process(command, "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert list(differences(undisturbed, run)) == []


def test_a_folder_that_may_only_be_read_is_named_and_nothing_changes(disk):
    run = disk / "run"
    run_search(replace(TINY, epochs=1), run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert_refused(script_in_process(SEARCH, "--resume", run), "--resume", "Read-only")
    flags = COMMANDS["search"][1].split()
    assert_refused(script_in_process(SEARCH, *flags, "--save", disk / "new"), "--save", "Read-only")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_folder_that_is_removed_under_a_run_is_named_and_not_made_again(tmp_path, kind):
    run = tmp_path / "run"
    command, flags = COMMANDS[kind]
    with after_its_first_checkpoint(lambda: run.rename(tmp_path / "moved")):
        result = script_in_process(command, *flags.split(), "--save", run)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"{Path(command).name}: error: {run} is gone or moved; expected it to stay while the run goes on"
    ]
    assert not run.exists()


def test_the_events_of_a_run_that_was_gone_on_with_are_read_whatever_the_clock(tmp_path, monkeypatch):
    rows = [{"epoch": epoch, "loss": 2.0**-epoch, "rank": None} for epoch in range(1, 6)]
    for hour, (done, end) in enumerate(((0, 3), (2, 4), (4, 5))):  # an epoch of the first part did not count
        monkeypatch.setattr(time, "time", lambda hour=hour: 1e9 - 3600 * hour)
        board = Board(tmp_path, rows[:done])
        for row in rows[done:end]:
            board.add(row)
    assert scalars(tmp_path)[Path("tensorboard")] == {"loss": [(row["epoch"], row["loss"]) for row in rows]}


def test_events_for_which_there_is_no_room_are_an_error_and_those_of_later_parts_are_read(disk, capfd):
    rows = [{"epoch": epoch, "loss": 2.0**-epoch} for epoch in range(1, 1000)]
    board, ballast = Board(disk, []), disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(b"\0" * 2**22)
    with pytest.raises(OSError, match="No space"):
        for row in rows:
            board.add(row)
    ballast.unlink()
    board = Board(disk, rows[: row["epoch"] - 1])
    board.add(row)
    assert scalars(disk)[Path("tensorboard")] == {"loss": [(row["epoch"], row["loss"]) for row in rows[: row["epoch"]]]}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["search", "retraining"])
def test_a_run_does_not_go_on_with_images_that_are_others_now(tmp_path, kind):
    images = few_images(tmp_path / "images")
    if kind == "search":
        settings, go_on = settings_of("darts", **{**images, "epochs": 2}), run_search
    else:
        settings, go_on = replace(RETRAINING, **{**images, "epochs": 2}, cutout=False), retrain
    run = unfinished(go_on(settings, tmp_path / "whole"), tmp_path / "run")
    last_checkpoint(run).unlink()
    picture = next((tmp_path / "images/train").rglob("*.png"))
    content = picture.read_bytes()
    Image.new("RGB", (4, 4), "red").save(picture)
    with pytest.raises(InputError, match=r"the run began with other (training )?images"):
        go_on(settings, run, resumed=True)
    picture.write_bytes(content)
    go_on(settings, run, resumed=True)
    assert list(differences(tmp_path / "whole", run)) == []


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    """The clock goes back by an hour at every look."""
    settings = replace(TINY, epochs=3)
    straight, run = run_search(settings, tmp_path / "straight"), tmp_path / "run"
    now, hours = time.time(), itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - 3600 * next(hours))
        run_search(settings, run)
    assert list(differences(straight, run)) == []
    last_checkpoint(run).unlink()
    os.utime(last_checkpoint(run), (0, 0))  # the last by its number, whatever its time
    (run / "genotype.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - 3600 * next(hours))
        run_search(settings, run, resumed=True)
    assert next(hours) > 10
    assert list(differences(straight, run)) == []


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    said = rf"^--save: {tmp_path}/{LOCK}: No locks available"
    with pytest.raises(InputError, match=said), open_folder(tmp_path, "--save", new=True):
        pass


def test_a_file_is_whole_or_as_before(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_atomically(path, "after")
    assert raised.value.filename == str(path)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]
