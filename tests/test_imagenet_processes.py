"""Retraining on ImageNet in several processes: equal to one process, kills, signals, faults of one process, nodes."""

import json
import socket

import pytest

from tests.helpers import last_checkpoint
from tests.imagenet_runs import (
    CLOSE,
    TRAIN,
    assert_same_weights,
    decoded,
    ended_well,
    environment,
    finish,
    make_tree,
    recorded,
    scores,
    settings,
    start,
    trained,
    with_truncated,
)
from trainer import load_checkpoint


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("pictures") / "ILSVRC")


@pytest.fixture(scope="module")
def finished(tree, tmp_path_factory):
    """A run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    trained(*settings(tree, run))
    return run


def assert_shared(record):
    """Two processes have decoded every picture once an epoch, half of them each."""
    parts = decoded(record)
    assert len(parts) == 2
    assert sorted(parts[0] + parts[1]) == [(epoch, picture) for epoch in range(3) for picture in range(45)]
    assert abs(len(parts[0]) - len(parts[1])) <= 3


def test_two_processes_end_as_one_does(tree, finished, tmp_path):
    ended_well(recorded(tmp_path / "record", *settings(tree, tmp_path / "run", "--devices", 2)))
    assert_shared(tmp_path / "record")
    assert_same_weights(tmp_path / "run", finished, **CLOSE)
    mine, other = (json.loads((path / "result.json").read_text()) for path in (tmp_path / "run", finished))
    assert (mine["accuracy"], mine["top5"]) == (other["accuracy"], other["top5"])


@pytest.mark.slow
def test_two_processes_share_accumulated_passes_in_an_allocation_without_srun(tree, tmp_path):
    """An allocation of SLURM's is no launcher: the first process starts the second one."""
    one, two = tmp_path / "one", tmp_path / "two"
    trained(*settings(tree, one, "--accumulate", 2))
    allocation = environment(SLURM_NTASKS=1, SLURM_JOB_NAME="x", SLURM_JOB_ID=5, SLURM_NTASKS_PER_NODE=1)
    both = start(TRAIN, *settings(tree, two, "--accumulate", 2, "--devices", 2), env=allocation)
    ((status, output, errors),) = finish(both)
    assert status == 0, errors
    assert "3 epochs on 2 x cpu" in output
    assert_same_weights(one, two, **CLOSE)


@pytest.mark.slow
def test_two_nodes_start_a_killed_process_again_and_the_run_ends_as_if_not(tree, finished, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launcher = (
        "-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 1, "--rdzv_backend", "c10d", "--rdzv_id",
        "test", "--rdzv_endpoint", f"127.0.0.1:{port}", "--local_addr", "127.0.0.1", "--max_restarts", 2,
    )  # fmt: skip
    arguments = settings(tree, tmp_path / "run", "--checkpoint_steps", 1)
    # Rank 1, in the last step of the second epoch. Torch's launcher shares its store with those it starts again, which
    # find there what the dead have written (pytorch issue 135712), unless it is told not to.
    env = environment(FAULT='["kill", 1, 1, 2]', TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1)
    ended = finish(*(recorded(tmp_path / "record", *arguments, env=env, launcher=launcher) for _ in range(2)))
    output, errors = ("".join(parts) for parts in list(zip(*ended, strict=True))[1:])
    assert all(status == 0 for status, *_ in ended), errors
    assert "exitcode: -9" in errors  # it was killed indeed
    assert output.count(f"run {tmp_path / 'run'}: 2 epochs on 2 x cpu, the first from batch 3 of 3") == 1
    assert_same_weights(tmp_path / "run", finished, **CLOSE)
    assert [row["epoch"] for row in scores(tmp_path / "run")] == ["1", "2", "3"]


def failed(tree, run, fault):
    """The status and the errors of a run of two processes with a fault, and the last checkpoint that it left."""
    env = environment(FAULT=fault)
    both = recorded(run.parent / f"{run.name}.record", *settings(tree, run, "--devices", 2), env=env)
    ((status, _, errors),) = finish(both)
    return status, errors, load_checkpoint(last_checkpoint(run))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_one_of_two_processes_while_the_test_pictures_are_scored_costs_one_step(
    tree, finished, tmp_path, rank
):
    run = tmp_path / "run"
    status, errors, checkpoint = failed(tree, run, f'["stop", {rank}, 1, 0]')
    assert (status, len(errors.splitlines())) == (130, 1), errors
    assert (checkpoint["global_step"], len(checkpoint["rows"])) == (5, 1)  # of three steps an epoch
    trained("--resume", run, "--devices", 1)
    assert_same_weights(run, finished, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_not_finite_on_one_of_two_devices_ends_both(tree, finished, tmp_path, rank):
    """Its device's process names it, and the run goes on from the checkpoint before, as if nothing had been."""
    run = tmp_path / "run"
    status, errors, checkpoint = failed(tree, run, f'["spoil", {rank}, 1, 1]')
    first, *others = errors.splitlines()
    assert (status, first) == (1, "train.py: failed: train_loss is nan in epoch 2, step 2"), errors
    assert len(others) == rank and all("another device's process failed" in line for line in others), errors
    assert len(checkpoint["rows"]) == 1
    trained("--resume", run, "--devices", 1)
    assert_same_weights(run, finished, **CLOSE)


@pytest.mark.slow
def test_two_processes_refuse_or_skip_a_truncated_picture(tree, tmp_path):
    truncated = with_truncated(tree, tmp_path / "data")
    one, two, refused = (tmp_path / name for name in ("one", "two", "refused"))
    # The other process waits for its worker, meanwhile nothing may kill it.
    both = start(TRAIN, *settings(tmp_path / "data", refused, "--devices", 2, "--workers", 1))
    ((status, _, errors),) = finish(both)
    assert (status, len(errors.splitlines())) == (2, 1), errors
    assert str(truncated) in errors and "--broken_images skip" in errors

    more = ("--epochs", 2, "--broken_images", "skip")
    trained(*settings(tmp_path / "data", one, *more))
    ((status, _, errors),) = finish(start(TRAIN, *settings(tmp_path / "data", two, *more, "--devices", 2)))
    assert status == 0, errors
    assert 1 <= errors.count("skipped:") <= 2 and str(truncated) in errors  # each process names it once
    assert_same_weights(one, two, **CLOSE)


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(tree, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        env = environment(MASTER_PORT=listener.getsockname()[1], MASTER_ADDR="127.0.0.1")
        process = start(TRAIN, *settings(tree, tmp_path / "run", "--devices", 2), env=env)
        ((status, _, errors),) = finish(process)
    assert (status, len(errors.splitlines())) == (2, 1), errors
    assert all(part in errors for part in ("MASTER_PORT", env["MASTER_PORT"], "taken"))
