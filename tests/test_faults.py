"""Faults that users have reported: output that cannot be written, files that block, unclear messages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.size import sizes_of_run
from lib import datasets
from lib.cli import epochs_left
from lib.files import check_new_file
from search.metrics import new_warnings
from tests.helpers import (
    CELL,
    ROOT,
    assert_rejected,
    run_search,
    run_search_201,
    script_in_process,
    settings_of,
    settings_of_201,
    write_folder,
)

QUERY = (sys.executable, "nasbench201/table.py", "query", "1462")
SEARCH = ("search/train_search.py", "--dataset", "digits", "--space", "s2", "--layers", 4, "--init_channels", 2)
RETRAIN = ("train/train.py", "--arch", CELL, "--dataset", "digits", "--init_channels", 4, "--layers", 3, "--epochs", 1)


def start_run(*arguments):
    """Start a run and wait until its first epoch has ended."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "epoch 1/" not in process.stdout.readline():
        assert process.poll() is None
    return process


# Standard output


def run_with_output(output, *arguments, **variables):
    environment = {**os.environ, **variables}
    return subprocess.run(
        [str(word) for word in arguments], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.PIPE, check=False
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [QUERY, (sys.executable, "search/train_search.py", "--help")])
def test_a_full_or_closed_output_is_reported_in_one_line(command, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does
    with open("/dev/full", "w") as full, os.fdopen(writer, "w") as closed:
        for output, reason in ((full, "No space left on device"), (closed, "Broken pipe")):
            result = run_with_output(output, *command, PYTHONUNBUFFERED=unbuffered)
            name = os.path.basename(command[1])
            assert result.stderr.decode() == f"{name}: failed: standard output: {reason}\n"
            assert result.returncode == 1


def test_a_search_whose_output_is_closed_fails_with_one_line(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        result = run_with_output(closed, sys.executable, *SEARCH, "--epochs", 1, "--save", tmp_path / "run")
    assert result.returncode == 1 and result.stderr.count(b"\n") == 1 and b"Broken pipe" in result.stderr


def test_characters_that_the_encoding_lacks_are_escaped():
    result = run_with_output(
        subprocess.PIPE, sys.executable, "search/train_search.py", "--help", PYTHONIOENCODING="ascii"
    )
    assert result.returncode == 0 and b"\\u039b-DARTS" in result.stdout and not result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [SEARCH, RETRAIN], ids=["search", "retraining"])
def test_repeated_ctrl_c_prints_one_line(tmp_path, command):
    process = start_run(*command, "--epochs", 500, "--save", tmp_path / "run")
    for pause in (0.0, 0.05, 0.3):
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert errors.count("\n") == 1 and "stopped: after" in errors and "--resume" in errors


# Files


@pytest.mark.parametrize(
    "arguments",
    [
        ("search/train_search.py", "--dataset", "cifar10", "--halves"),
        ("search/train_search.py", "--plugin"),
        ("train/train.py", "--dataset", "digits", "--arch"),
        ("train/test.py",),
        ("train/import_released.py", "--arch", "DARTS_V2"),
        ("nasbench201/table.py", "query", "--table"),
        ("nasbench201/table.py", "query"),
        ("analysis/size.py",),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_pipe_is_rejected_as_an_input_file(tmp_path, arguments):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    rest = ("1462",) if arguments[-1] == "--table" else ()
    if "--halves" in arguments:  # the script would load the images first
        with pytest.raises(ValueError, match="is a pipe, a socket or a device; expected a regular file"):
            datasets.benchmark_halves(datasets.load("digits").train, pipe)
        return
    says = "there is no file" if "--plugin" in arguments else "is a pipe, a socket or a device; expected a regular file"
    assert_rejected(script_in_process(*arguments, pipe, *rest), says)


def test_an_empty_file_left_by_a_full_disk_may_be_overwritten(tmp_path):
    figure = tmp_path / "figure.png"
    check_new_file(figure)
    figure.touch()
    check_new_file(figure)
    figure.write_bytes(b"PNG")
    for taken in (figure, tmp_path):
        with pytest.raises(ValueError, match="exists; name a new file"):
            check_new_file(taken)


# Explanations


def test_extending_a_finished_run_is_rejected_with_an_explanation(tmp_path):
    run = run_search(settings_of(epochs=1, batch_size=240), tmp_path / "run")
    result = script_in_process("search/train_search.py", "--resume", run, "--epochs", 100)
    longer = f"for more epochs, start a new run with --config {run}/config.yaml --epochs 100"
    assert_rejected(result, "Schedules, such as the learning rate's, end with the last epoch", longer)
    assert "Schedules" not in script_in_process("search/train_search.py", "--resume", run, "--seed", 1).stderr


def test_deriving_a_cell_twice_is_rejected_and_blames_a_flag_only_if_it_was_given(tmp_path):
    run = run_search(settings_of(epochs=1, batch_size=240), tmp_path / "run")
    command = ("search/derive.py", run, "--selection", "argmax", "--device", "cpu")
    assert script_in_process(*command).returncode == 0
    result = script_in_process(*command)
    assert_rejected(
        result, f"error: run: {run}/selections/argmax already has a cell; choose another folder with --save"
    )
    result = script_in_process(*command, "--save", run / "selections/argmax")
    assert_rejected(result, f"error: --save: {run}/selections/argmax already has a cell; expected another folder")


def test_a_folder_of_several_runs_and_a_cell_of_another_space_are_rejected(tmp_path):
    run_search_201(settings_of_201(epochs=1), tmp_path / "series" / "seed-3")
    result = script_in_process("nasbench201/table.py", "query", tmp_path / "series")
    assert_rejected(result, hint := f"; it holds runs of several seeds, such as {tmp_path}/series/seed-3")
    for command in (("analysis/size.py",), ("analysis/hessian.py",), ("train/test.py",), ("train/train.py", "--arch")):
        assert_rejected(script_in_process(*command, tmp_path / "series"), hint)
    run = run_search(settings_of(epochs=1, batch_size=240), tmp_path / "run")
    for command in ("query", "rank"):
        result = script_in_process("nasbench201/table.py", command, run)
        assert_rejected(result, "a genotype of DARTS's cells; expected a cell of NAS-Bench-201")


def test_a_regularizer_gradient_far_longer_than_that_of_the_loss_gives_one_warning():
    def row(lambda_, regularizer):
        return {"lambda": lambda_, "regularizer_gradient_norm": regularizer, "loss_gradient_norm": 2.0}

    rows = [row(0.0, None) | {"gradient_norm_layer_0": 1.0}, row(0.1, 1000.0) | {"gradient_norm_layer_0": 1.0}]
    assert new_warnings(rows[:1]) == []
    (warning,) = new_warnings(rows)
    assert "is 50 times as long as the loss's gradient" in warning and "--derivatives exact" in warning
    assert new_warnings([*rows, rows[-1]]) == []
    assert "exact" not in new_warnings(rows, exact=True)[0]
    assert new_warnings([rows[0], row(0.1, 199.0) | {"gradient_norm_layer_0": 1.0}]) == []


def test_a_resumed_run_counts_the_epochs_that_are_left():
    left = [epochs_left(3, done) for done in range(4)]
    assert left == ["3 epochs", "2 epochs of 3 left", "1 epoch of 3 left", "0 epochs of 3 left"]
    assert epochs_left(1, 0) == "1 epoch"


def size(*arguments):
    return json.loads(script_in_process("analysis/size.py", *arguments).stdout)


def test_the_size_of_a_run_is_that_of_its_network(tmp_path):
    run = tmp_path / "run"
    small = (*RETRAIN, "--images", 200, "--batch_size", 100, "--device", "cpu", "--save", run)
    assert script_in_process(*small).returncode == 0
    result = json.loads((run / "result.json").read_text())
    assert size(run) == {name: result[name] for name in ("params", "multiply_adds")}
    wider = ("--init_channels", 8)
    assert size(run, *wider) == size(CELL, *wider, "--layers", 3, "--dataset", "digits") != size(run)
    assert sizes_of_run(run_search(settings_of(epochs=1, batch_size=240), tmp_path / "search")) is None


@pytest.mark.slow
def test_a_killed_loader_process_is_reported_in_one_line_that_tells_how_to_resume(tmp_path):
    data = write_folder(tmp_path / "data", per_class=30, size=(40, 40))
    command = ("imagenet/train.py", "--arch", CELL, "--data", data, "--classes", 0, "--image_size", 32, "--workers", 2)
    command += (
        "--init_channels",
        4,
        "--layers",
        3,
        "--epochs",
        300,
        "--batch_size",
        20,
        "--no_auxiliary",
        "--device",
        "cpu",
    )
    process = start_run(*command, "--save", tmp_path / "run")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert errors.count("\n") == 1 and "a process that loads images was killed" in errors and "--resume" in errors
