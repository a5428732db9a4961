"""Retraining on ImageNet in several processes: sharing the pictures, kills, signals, faults, and several nodes.

On a CPU, each process normalizes by the statistics of its own images, because SyncBatchNorm needs GPUs.
"""

import json
import socket
from pathlib import Path

import pytest

from lib import checkpoints
from lib.scoring import epochs_done
from tests.helpers import assert_rejected, last_checkpoint, metrics
from tests.imagenet_runs import (
    CLOSE,
    assert_same_weights,
    assert_success,
    environment,
    finish,
    make_tree,
    recorded,
    settings,
    train,
    trained,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("pictures") / "ILSVRC")


def two(run, tree, env=None):
    """Start a run of two processes, with 11 steps in each epoch."""
    return recorded(f"{run}.record", *settings(tree, run, "--devices", 2, "--batch_size", 4), env=env)


@pytest.fixture(scope="module")
def finished(tree, tmp_path_factory):
    """A finished run of two processes."""
    run = tmp_path_factory.mktemp("two") / "run"
    assert_success(two(run, tree))
    return run


def test_two_processes_share_the_pictures(finished):
    """Each picture is decoded once in each epoch."""
    parts = [json.loads(path.read_text()) for path in Path(f"{finished}.record").glob("*.json")]
    assert len(parts) == 2
    assert sorted(parts[0] + parts[1]) == [[epoch, picture] for epoch in range(3) for picture in range(45)]
    assert abs(len(parts[0]) - len(parts[1])) <= 3
    orders = [[picture for at, picture in parts[0] if at == epoch] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert json.loads((finished / "result.json").read_text())["test_images"] == 12


def stopped_at(tree, run, fault):
    """Run two processes until a fault ends them; return the exit status, stderr and the last checkpoint."""
    ((status, _, errors),) = finish(two(run, tree, env=environment(FAULT=json.dumps(fault))))
    return status, errors, checkpoints.load(last_checkpoint(run))


def assert_goes_on(run, finished):
    """Resume the run and check that it ends like the finished one."""
    assert_success(recorded(run.parent / "again", "--resume", run, "--devices", 2))
    assert_same_weights(run, finished, **CLOSE)


@pytest.mark.parametrize(
    ("fault", "step", "epochs"),
    [
        (["terminate", 1, 0, 3], 10, 0),
        pytest.param(["preempt", 0, 1, 3], 20, 1, marks=pytest.mark.slow),
        pytest.param(["interrupt", 0, 1, 3], 20, 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_of_two_processes_stops_both_within_an_epoch(tree, finished, tmp_path, fault, step, epochs):
    """The processes tell each other of signals at every tenth step."""
    run = tmp_path / "run"
    status, errors, checkpoint = stopped_at(tree, run, fault)
    assert (status, len(errors.splitlines())) == (130, 1), errors
    assert checkpoint["global_step"] == step and epochs_done(checkpoint) == epochs
    assert_goes_on(run, finished)
    for row, expected in zip(metrics(run), metrics(finished), strict=True):
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(float(value), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_while_the_test_pictures_are_scored_costs_one_step(tree, finished, tmp_path, rank):
    run = tmp_path / "run"
    status, errors, checkpoint = stopped_at(tree, run, ["stop", rank, 1, 0])
    assert (status, len(errors.splitlines())) == (130, 1), errors
    assert (checkpoint["global_step"], epochs_done(checkpoint)) == (21, 1)
    assert_goes_on(run, finished)


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_devices_between_epochs(tree, finished, tmp_path):
    run = tmp_path / "run"
    stopped_at(tree, run, ["stop", 0, 1, 0])
    assert_rejected(
        train("--resume", run, "--devices", 1, "--accumulate", 2), "--devices, --accumulate"
    )  # within an epoch
    last_checkpoint(run).unlink()
    assert "2 epochs of 3 left on cpu" in trained("--resume", run, "--devices", 1).stdout
    assert [row["epoch"] for row in metrics(run)] == ["1", "2", "3"]
    assert metrics(run)[0] == metrics(finished)[0]


@pytest.mark.slow
def test_two_nodes_restart_a_killed_process_and_the_run_ends_like_an_undisturbed_one(tree, finished, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launcher = (
        "-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 1, "--rdzv_backend", "c10d", "--rdzv_id",
        "test", "--rdzv_endpoint", f"127.0.0.1:{port}", "--local_addr", "127.0.0.1", "--max_restarts", 2,
    )  # fmt: skip
    run = tmp_path / "run"
    arguments = settings(tree, run, "--checkpoint_steps", 1, "--batch_size", 4)
    # Rank 1 is killed in the second epoch. By default, torchrun shares its store with the processes that it restarts,
    # and they read the values of the killed ones there (pytorch issue 135712).
    env = environment(FAULT='["kill", 1, 1, 5]', TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1)
    ended = finish(*(recorded(tmp_path / "record", *arguments, env=env, launcher=launcher) for _ in range(2)))
    output, errors = ("".join(parts) for parts in list(zip(*ended, strict=True))[1:])
    assert all(status == 0 for status, *_ in ended), errors
    assert "exitcode: -9" in errors  # a process was really killed
    assert output.count(f"run {run}: 2 epochs of 3 left on 2 x cpu, starting at batch 6 of 11") == 1
    assert_same_weights(run, finished, **CLOSE)
    assert [row["epoch"] for row in metrics(run)] == ["1", "2", "3"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_of_two_devices_ends_both(tree, finished, tmp_path):
    """The run can be resumed from the previous checkpoint and ends like an undisturbed one."""
    run = tmp_path / "run"
    status, errors, checkpoint = stopped_at(tree, run, ["spoil", 1, 1, 1])
    assert status and "train.py: failed: gradient_norm is nan in epoch 2, step 2" in errors.splitlines(), errors
    assert "Traceback" not in errors and epochs_done(checkpoint) == 1
    assert_goes_on(run, finished)
