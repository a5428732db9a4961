"""Retraining on ImageNet: its recipe, its pictures, several processes and nodes, interruption, and wrong input.

Run as a script, it is imagenet/train.py with a record of the pictures it decodes: see `recorded`.
"""

import csv
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import model
from genotypes import load_genotype
from imagenet.images import Decoder, Key, begin_worker, collate, colour_jitter, read_tree, shift_hue
from recipes import IGNORED, Recipe, cosine, cross_entropy, linear, warm_up
from tests.helpers import ROOT, assert_refused, last_checkpoint, script
from trainer import load_checkpoint

CELL = "LambdaDARTS_corr_0"
TRAIN, TEST, EXPORT = (f"imagenet/{name}.py" for name in ("train", "test", "export"))
#: three steps an epoch, of 16, 16 and 13 pictures
SMALL = (
    "--arch", CELL, "--init_channels", 4, "--layers", 3, "--image_size", 32, "--no_auxiliary", "--batch_size", 16,
    "--epochs", 3, "--workers", 0, "--device", "cpu", "--precision", "64-true",
)  # fmt: skip
CLASSES = ("n01440764", "n01443537", "n01484850")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Fifteen and four pictures of three classes, of a colour each, in several sizes."""
    root = tmp_path_factory.mktemp("pictures") / "ILSVRC"
    generator = np.random.default_rng(0)
    for split, count in (("train", 15), ("val", 4)):
        for label, name in enumerate(CLASSES):
            folder = root / "Data" / "CLS-LOC" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                width, height = generator.integers(33, 60, 2)
                pixels = generator.integers(0, 120, (height, width, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{name}_{number}.JPEG")
    return root


def settings(tree, run, *more):
    return (*SMALL, "--data", tree, "--save", run, *more)


def environment(**more):
    """That of a process which nobody has launched."""
    launchers = ("SLURM", "TORCHELASTIC", "MASTER", "RANK", "LOCAL", "WORLD", "GROUP", "ROLE", "NODE_RANK")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    return {**clean, **{name: str(value) for name, value in more.items()}}


def start(*command, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=options.pop("env", environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(*processes):
    """What came of processes: their exit statuses, what they printed, and their errors."""
    said = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, said, strict=True)]


def ended_well(*processes):
    for status, _, errors in finish(*processes):
        assert status == 0, errors


def weights(run):
    return load_checkpoint(last_checkpoint(run))["state_dict"]


def assert_same_weights(run, other, **tolerance):
    a, b = weights(run), weights(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


EXACT = {"rtol": 0, "atol": 0}
#: float64, whose sums were added up in another order
CLOSE = {"rtol": 1e-6, "atol": 1e-9}


@pytest.fixture(scope="module")
def finished(tree, tmp_path_factory):
    """A run of one process, and what it decoded."""
    folder = tmp_path_factory.mktemp("one")
    ended_well(recorded(folder / "record", *settings(tree, folder / "run")))
    return folder / "run", decoded(folder / "record")


def recorded(record, *arguments, env=None, launcher=()):
    """Start imagenet/train.py with a record of what it decodes."""
    record.mkdir(exist_ok=True)
    options = {**(env or environment()), "RECORD": str(record)}
    return start(*launcher, "tests/test_imagenet.py", *arguments, env=options)


def decoded(record):
    """[(epoch, picture)] of each process."""
    return [[tuple(pair) for pair in json.loads(path.read_text())] for path in sorted(record.glob("*.json"))]


def main():
    """Train, and remember the training pictures; die where KILL says, unless this is the second time."""
    from imagenet import train

    seen = []
    record = Path(os.environ["RECORD"])
    read = Decoder.__getitem__
    kill = tuple(json.loads(os.environ.get("KILL", "[]")))

    def remember(decoder, key):
        if decoder.seed is not None:
            seen.append((key.epoch, key.number))
            here = (int(os.environ.get("RANK", 0)), key.epoch, key.pass_)
            if here == kill and not (record / "killed").exists():
                (record / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return read(decoder, key)

    Decoder.__getitem__ = remember
    train.main()
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    (record / f"{rank}.json").write_text(json.dumps(seen))


# The recipe


def test_the_learning_rate_is_that_of_a_table_worked_out_by_hand():
    schedule = warm_up(linear(0.5, 250), 5)
    # 0.5 * (245 - epoch) / 245, under (epoch + 1) / 5 before the sixth epoch
    first = [0.1, 0.2 * 244 / 245, 0.3 * 243 / 245, 0.4 * 242 / 245, 0.5 * 241 / 245, 0.5 * 240 / 245]
    # 1/490 is one step of that line; then five epochs fall by a fifth of it each
    last = [1 / 490, 1 / 490, 4 / 2450, 3 / 2450, 2 / 2450, 1 / 2450]
    assert [schedule(epoch) for epoch in range(6)] == pytest.approx(first, rel=1e-12)
    assert [schedule(epoch) for epoch in range(244, 250)] == pytest.approx(last, rel=1e-12)
    assert schedule(250) == 0
    assert [linear(1.0, 3)(epoch) for epoch in range(3)] == pytest.approx([3 / 5, 2 / 5, 1 / 5])
    assert warm_up(cosine(1.0, 10), 2)(1) == cosine(1.0, 10)(1)
    assert warm_up(cosine(1.0, 10), 0)(0) == 1


def test_label_smoothing_is_torchs_own_and_the_papers_formula():
    logits = torch.randn(8, 10, dtype=torch.float64)
    labels = torch.arange(8)
    recipe = Recipe(epochs=1, learning_rate=linear(1, 1), momentum=0, weight_decay=0, label_smoothing=0.1)
    ours = recipe.loss(logits, None, labels)
    targets = 0.9 * F.one_hot(labels, 10) + 0.1 / 10
    torch.testing.assert_close(ours, -(targets * logits.log_softmax(1)).sum(1).mean())
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_pictures_that_do_not_count_add_nothing_to_the_loss():
    logits = torch.randn(4, 3, dtype=torch.float64)
    labels = torch.tensor([0, IGNORED, 2, IGNORED])
    torch.testing.assert_close(cross_entropy(logits, labels, 0.1), cross_entropy(logits[::2], labels[::2], 0.1) / 2)
    assert cross_entropy(logits, torch.full((4,), IGNORED)) == 0


def test_drop_path_is_never_on_an_identity(monkeypatch):
    genotype = load_genotype("DARTS_V2")
    network = model.NetworkImageNet(genotype, 4, 3, 10)
    dropped = []
    monkeypatch.setattr(model, "drop_path", lambda x, p: dropped.append(p) or x)
    network.train()(torch.randn(2, 3, 64, 64), drop_path_prob=0.3)
    # in a reduction cell a skip connection of an input is a factorized reduction, which is no identity
    identities = sum(
        edge.operation == "skip_connect" and (kind == "normal" or edge.source >= 2)
        for kind in ("normal", "reduce", "reduce")
        for edge in genotype.edges(kind)
    )
    assert identities > 0
    assert dropped == [0.3] * (3 * 8 - identities)


def test_the_defaults_are_the_papers():
    from imagenet.train import TrainSettings

    own = TrainSettings()
    assert (own.init_channels, own.layers, own.image_size, own.auxiliary) == (48, 14, 224, True)
    assert (own.epochs, own.batch_size, own.learning_rate, own.schedule, own.warm_up) == (250, 1024, 0.5, "linear", 5)
    assert (own.momentum, own.weight_decay, own.label_smoothing, own.grad_clip) == (0.9, 3e-5, 0.1, 5.0)
    assert (own.auxiliary_weight, own.drop_path_prob, own.ema_decay, own.precision) == (0.4, 0.0, 0.0, "32-true")


# The pictures


def test_the_jitter_of_a_batch_is_torchvisions_of_each_image():
    torch.manual_seed(0)
    images = torch.rand(24, 3, 8, 8, dtype=torch.float64)
    images[0] = 0.5  # gray has no hue
    images[1, 0] = images[1, 1]  # two channels are the brightest
    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.2)
    drawn = [jitter.make_params([]) for _ in images]
    factors = torch.tensor(
        [[p[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")] for p in drawn]
    ).double()
    orders = torch.stack([p["fn_idx"] for p in drawn])
    assert len(orders.unique(dim=0)) > 10
    expected = torch.stack([jitter.transform(image, p) for image, p in zip(images, drawn, strict=True)])
    torch.testing.assert_close(colour_jitter(images, factors, orders), expected, rtol=0, atol=1e-5)


def test_a_hue_turned_by_a_third_moves_the_channels():
    images = torch.rand(4, 3, 5, 5, dtype=torch.float64)
    third = torch.full((4, 1, 1), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(shift_hue(images, third), images[:, [2, 0, 1]])
    torch.testing.assert_close(shift_hue(images, 0 * third), images)


def split(tree, name):
    return read_tree(tree / "Data" / "CLS-LOC" / name)


def test_a_picture_is_cropped_and_mirrored_as_the_papers_do(tree):
    pictures = split(tree, "train")
    assert pictures.classes == CLASSES and pictures.labels.bincount().tolist() == [15] * 3
    sample = Decoder(pictures, 32, seed=3)[Key(5, 7, 0, 1.0)]
    assert sample.label == 0 and sample.image.shape == (3, 32, 32) and sample.image.dtype == torch.uint8
    papers = v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    import data

    torch.manual_seed(data.mix(3, 5, 7))
    torch.testing.assert_close(sample.image, papers(Image.open(pictures.path(7)).convert("RGB")))
    assert sorted(sample.order) == [0, 1, 2, 3]

    test = Decoder(pictures, 32)[Key(0, 7, 0, 1.0)]
    picture = Image.open(pictures.path(7)).convert("RGB")
    papers = v2.Compose([v2.Resize(37), v2.CenterCrop(32), v2.PILToTensor()])  # 224 of 256
    torch.testing.assert_close(test.image, papers(picture))


def test_workers_do_not_change_what_is_drawn(tree):
    decoder = Decoder(split(tree, "train"), 32, seed=0)
    keys = [[Key(1, number, 0, 1.0) for number in range(first, first + 9)] for first in (0, 9, 18)]

    def batches(workers):
        options = {"collate_fn": collate, "num_workers": workers, "worker_init_fn": begin_worker}
        return list(DataLoader(decoder, batch_sampler=keys, **options))

    before = torch.get_rng_state()
    other = collate([decoder[key._replace(epoch=2)] for key in keys[0]])
    assert torch.equal(torch.get_rng_state(), before)
    one = batches(0)
    for workers in (1, 3):
        for a, b in zip(one, batches(workers), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
    assert not torch.equal(other.images, one[0].images)


# Runs


def test_an_epoch_takes_every_picture_once(finished):
    run, (seen,) = finished
    assert len(seen) == 3 * 45
    for epoch in range(3):
        assert sorted(number for at, number in seen if at == epoch) == list(range(45))
    orders = [[number for at, number in seen if at == epoch] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert (run / "model_card.md").exists() and (run / "curves.png").exists() and (run / "cells/reduce.png").exists()


def assert_shared(record, seen_by_one):
    """Two processes have decoded what one did, half each and nothing twice."""
    parts = decoded(record)
    assert len(parts) == 2
    assert sorted(parts[0] + parts[1]) == sorted(seen_by_one)
    assert abs(len(parts[0]) - len(parts[1])) <= 3


def test_two_processes_end_as_one_does(tree, finished, tmp_path):
    run, (seen,) = finished
    ended_well(recorded(tmp_path / "record", *settings(tree, tmp_path / "run", "--devices", 2)))
    assert_shared(tmp_path / "record", seen)
    assert_same_weights(tmp_path / "run", run, **CLOSE)
    mine, other = (json.loads((path / "result.json").read_text()) for path in (tmp_path / "run", run))
    assert (mine["accuracy"], mine["top5"]) == (other["accuracy"], other["top5"])


def test_accumulated_passes_are_shared_too(tree, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for run, devices in ((one, 1), (two, 2)):
        ended_well(start(TRAIN, *settings(tree, run, "--accumulate", 2, "--devices", devices)))
    assert_same_weights(one, two, **CLOSE)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun(nodes, port, *more):
    """One node's launcher of two processes on `nodes` nodes, which meet at the port."""
    return (
        "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc_per_node", 2 // nodes, "--rdzv_backend", "c10d",
        "--rdzv_id", "test", "--rdzv_endpoint", f"127.0.0.1:{port}", "--local_addr", "127.0.0.1", *more,
    )  # fmt: skip


def test_two_nodes_end_as_one_does(tree, finished, tmp_path):
    run, (seen,) = finished
    port = free_port()
    arguments = settings(tree, tmp_path / "run")
    ended_well(*(recorded(tmp_path / "record", *arguments, launcher=torchrun(2, port)) for _ in range(2)))
    assert_shared(tmp_path / "record", seen)
    assert_same_weights(tmp_path / "run", run, **CLOSE)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_killed_process_is_started_again_and_the_run_ends_as_if_not(tree, finished, tmp_path, nodes):
    run, _ = finished
    arguments = settings(tree, tmp_path / "run", "--checkpoint_steps", 1)
    # Rank 1, in the last step of the second epoch. Torch's launcher shares its store with those it starts again, which
    # find there what the dead have written (pytorch issue 135712), unless it is told not to.
    env = environment(KILL="[1, 1, 2]", TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1)
    launcher = torchrun(nodes, free_port(), "--max_restarts", 2)
    ended = finish(*(recorded(tmp_path / "record", *arguments, env=env, launcher=launcher) for _ in range(nodes)))
    output, errors = ("".join(parts) for parts in list(zip(*ended, strict=True))[1:])
    assert all(status == 0 for status, *_ in ended), errors
    assert "exitcode: -9" in errors  # it was killed indeed
    assert output.count(f"run {tmp_path / 'run'}: 2 epochs on 2 x cpu, the first from batch 3 of 3") == 1
    assert_same_weights(tmp_path / "run", run, **CLOSE)
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]


def until(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def long(tree, run, *more):
    """Fifteen small steps an epoch, so that a signal comes in the midst of one."""
    return settings(tree, run, "--batch_size", 3, "--workers", 2, "--checkpoint_steps", 5, *more)


@pytest.fixture(scope="module")
def uninterrupted(tree, tmp_path_factory):
    run = tmp_path_factory.mktemp("long") / "run"
    ended_well(start(TRAIN, *long(tree, run)))
    return run


def stop_midway(tree, run):
    """Begin a run, stop it in the midst of an epoch, and give the checkpoint it leaves."""
    process = start(TRAIN, *long(tree, run))
    until(lambda: last_checkpoint(run).exists(), process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    return last_checkpoint(run).read_bytes()


def test_sigterm_saves_after_the_step_and_the_run_goes_on_with_the_next_batch(tree, uninterrupted, tmp_path):
    run = tmp_path / "run"
    process = start(TRAIN, *long(tree, run))
    until(lambda: last_checkpoint(run).exists(), process)
    process.send_signal(signal.SIGTERM)
    ((status, _, errors),) = finish(process)
    assert status == 130, errors
    assert len(errors.splitlines()) == 1 and f"go on with: python {TRAIN} --resume {run}" in errors
    stopped = load_checkpoint(last_checkpoint(run))
    steps = stopped["global_step"]
    assert 5 <= steps < 45 and steps % 15  # in the midst of an epoch
    resumed = script(TRAIN, "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert f"from batch {steps % 15 + 1} of 15" in resumed.stdout
    assert_same_weights(run, uninterrupted, **EXACT)
    assert scores(run) == scores(uninterrupted)


def test_a_stop_while_the_test_pictures_are_scored_costs_one_step(tree, tmp_path):
    """The signal reaches one of two processes, whichever it is: both stop."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys\n"
        "from imagenet import train\n"
        "from modules import Retraining\n"
        "step = Retraining.validation_step\n"
        "def validation_step(module, batch, number):\n"
        "    if (os.environ.get('LOCAL_RANK', '0'), module.current_epoch) == (os.environ['STOP'], 1):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return step(module, batch, number)\n"
        "Retraining.validation_step = validation_step\n"
        "import cli\n"
        "cli.run(train.main, 'train.py')\n"
    )
    whole = tmp_path / "whole"
    ended_well(start(TRAIN, *settings(tree, whole, "--devices", 2)))
    for rank in (0, 1):
        run = tmp_path / f"stopped_{rank}"
        env = environment(STOP=rank, PYTHONPATH=ROOT)
        ((status, _, errors),) = finish(start(program, *settings(tree, run, "--devices", 2), env=env))
        assert (status, len(errors.splitlines())) == (130, 1), errors
        stopped = load_checkpoint(last_checkpoint(run))
        assert (stopped["global_step"], len(stopped["rows"])) == (5, 1)  # of three steps an epoch
        ended_well(start(TRAIN, "--resume", run))
        assert_same_weights(run, whole, **EXACT)


def test_a_loss_that_is_not_finite_on_one_of_two_devices_ends_both(tree, tmp_path):
    """Its device's process names it, and the run goes on from the checkpoint before, as if nothing had been."""
    program, whole = tmp_path / "program.py", tmp_path / "whole"
    program.write_text(
        "import os\n"
        "from imagenet import train\n"
        "from modules import Retraining\n"
        "step = Retraining.training_step\n"
        "def training_step(module, batch, number):\n"
        "    loss = step(module, batch, number)\n"
        "    if (os.environ.get('LOCAL_RANK', '0'), module.current_epoch, number) == (os.environ['SPOIL'], 1, 1):\n"
        "        module.watched['train_loss'] = loss.detach() * float('nan')\n"
        "    return loss\n"
        "Retraining.training_step = training_step\n"
        "import cli\n"
        "cli.run(train.main, 'train.py')\n"
    )
    ended_well(start(TRAIN, *settings(tree, whole, "--devices", 2)))
    for rank in (0, 1):
        run = tmp_path / f"spoiled_{rank}"
        env = environment(SPOIL=rank, PYTHONPATH=ROOT)
        ((status, _, errors),) = finish(start(program, *settings(tree, run, "--devices", 2), env=env))
        first, *others = errors.splitlines()
        assert (status, first) == (1, "train.py: failed: train_loss is nan in epoch 2, step 2"), errors
        assert len(others) == rank and all("another device's process failed" in line for line in others), errors
        assert len(load_checkpoint(last_checkpoint(run))["rows"]) == 1
        ended_well(start(TRAIN, "--resume", run))
        assert_same_weights(run, whole, **EXACT)


def hears(process, signum):
    """Whether a process has a handler for a signal (proc(5))."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signum - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc when a signal is heard")
def test_slurm_is_asked_again_before_the_training_has_begun(tree, tmp_path):
    asked, path = stand_in(tmp_path)
    job = {**JOB, "PATH": path}
    process = start(TRAIN, *long(tree, tmp_path / "run"), env=environment(**job))
    until(lambda: hears(process, signal.SIGUSR1), process)
    assert not (tmp_path / "run").exists()  # torch is being loaded
    process.send_signal(signal.SIGUSR1)
    ((status, _, errors),) = finish(process)
    assert status == 130, errors
    assert asked.read_text() == "requeue 4711\n"
    asked.unlink()
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\necho access denied >&2\nexit 1\n")
    process = start(TRAIN, *long(tree, tmp_path / "other"), env=environment(**job))
    until(lambda: last_checkpoint(tmp_path / "other").exists(), process)
    process.send_signal(signal.SIGUSR1)
    ((status, _, errors),) = finish(process)
    assert status == 130 and "SLURM does not start the job again: scontrol requeue 4711: access denied" in errors


def scores(run):
    return [line.rsplit(",", 1)[0] for line in (run / "metrics.csv").read_text().splitlines()]  # without the seconds


#: the environment of a job of SLURM with one process
JOB = {
    "SLURM_JOB_ID": 4711, "SLURM_JOB_NAME": "retrain", "SLURM_NTASKS": 1, "SLURM_NNODES": 1, "SLURM_STEP_ID": 0,
    "SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NODEID": 0, "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS_PER_NODE": 1,
}  # fmt: skip


def stand_in(folder):
    """A stand-in for scontrol: what it was asked, and the path on which it lies."""
    (folder / "bin").mkdir()
    scontrol = folder / "bin/scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {folder / "asked"}\n')
    scontrol.chmod(0o755)
    return folder / "asked", f"{folder / 'bin'}:{os.environ['PATH']}"


def test_slurm_is_asked_to_start_a_preempted_job_again(tree, uninterrupted, tmp_path):
    asked, path = stand_in(tmp_path)
    job = {**JOB, "PATH": path}
    run = tmp_path / "run"
    process = start(TRAIN, *long(tree, run), env=environment(**job))
    until(lambda: last_checkpoint(run).exists(), process)
    process.send_signal(signal.SIGUSR1)
    ((status, _, errors),) = finish(process)
    assert status == 130, errors
    assert asked.read_text() == "requeue 4711\n"
    assert load_checkpoint(last_checkpoint(run))["global_step"] < 45

    ended_well(start(TRAIN, *long(tree, run), env=environment(**job)))  # the same command
    assert_same_weights(run, uninterrupted, **EXACT)
    assert asked.read_text() == "requeue 4711\n"
    other = script(TRAIN, *long(tree, run, "--seed", 1, "--layers", 4), env=environment(**job))
    assert_refused(other, "--save", "another --layers, --seed")


def test_a_running_mean_of_the_weights_is_saved_and_resumed(tree, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    ended_well(start(TRAIN, *long(tree, whole, "--ema_decay", 0.9)))
    saved = load_checkpoint(last_checkpoint(whole))
    name = "network.classifier.weight"
    assert not torch.equal(saved["state_dict"][name], saved["current_model_state"][name])
    process = start(TRAIN, *long(tree, run, "--ema_decay", 0.9))
    until(lambda: last_checkpoint(run).exists(), process)
    process.send_signal(signal.SIGINT)
    ((status, _, errors),) = finish(process)
    assert status == 130, errors
    assert script(TRAIN, "--resume", run).returncode == 0
    assert_same_weights(run, whole, **EXACT)
    scored = json.loads(script(TEST, run).stdout)  # what is scored is what is saved
    assert scored["accuracy"] == json.loads((run / "result.json").read_text())["accuracy"]


def plain_network(run):
    """The network of a run, made by hand."""
    network = model.NetworkImageNet(load_genotype(CELL), 4, 3, 3).double().eval()
    network.load_state_dict({name.removeprefix("network."): value for name, value in weights(run).items()})
    return network


def test_the_scores_are_those_of_the_saved_network(tree, finished):
    run, _ = finished
    pictures = split(tree, "val")
    papers = v2.Compose([v2.Resize(37), v2.CenterCrop(32), v2.PILToTensor()])
    images = torch.stack([papers(Image.open(pictures.path(number)).convert("RGB")) for number in range(12)])
    images = v2.functional.normalize(images.double() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        logits = plain_network(run)(images)[0]
    right = (logits.argmax(1) == pictures.labels).double().mean().item()
    scored = script(TEST, run, "--batch_size", 5, "--workers", 1)
    assert scored.returncode == 0, scored.stderr
    said = json.loads(scored.stdout)
    assert said["accuracy"] == pytest.approx(right, abs=1e-6)
    assert said["accuracy"] == json.loads((run / "result.json").read_text())["accuracy"]
    assert said["loss"] == pytest.approx(F.cross_entropy(logits, pictures.labels).item(), rel=1e-6)
    assert (said["top5"], said["images"], said["epochs"]) == (1.0, 12, 3)


def test_the_exported_network_gives_the_logits_of_the_saved_one(finished, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    safetensors = pytest.importorskip("safetensors.torch")
    run, _ = finished
    exported = script(EXPORT, run, "--out", tmp_path / "out")
    assert exported.returncode == 0, exported.stderr
    said = json.loads(exported.stdout)
    assert said["largest_relative_difference"] < 1e-4
    network = plain_network(run).float()
    session = onnxruntime.InferenceSession(said["onnx"], providers=["CPUExecutionProvider"])
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)[0]
    (came,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(came), expected, rtol=1e-4, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES)
    state = safetensors.load_file(said["safetensors"])
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())
    assert_refused(script(EXPORT, run, "--out", tmp_path / "out"), "--out", "model.onnx exists")


def test_the_card_says_what_the_network_is(finished):
    run, _ = finished
    card = (run / "model_card.md").read_text()
    result = json.loads((run / "result.json").read_text())
    origin = yaml.safe_load((run / "config.yaml").read_text())["provenance"]
    for said in (
        f"| test accuracy (top-1) | {100 * result['accuracy']:.2f} % |",
        f"| parameters | {result['params'] / 1e6:.3f} M",
        f"| multiply-adds | {result['multiply_adds'] / 1e6:.1f} M",
        f"`{origin['commit']}`",
        "cells/normal.png",
        "| `--label_smoothing` | 0.1 |",
        "3 classes",
    ):
        assert said in card


# Wrong input


def test_a_folder_that_is_no_finished_retraining_has_no_card(finished, tmp_path):
    assert_refused(script("analysis/card.py", tmp_path), "has no result.json")
    run, _ = finished
    for damaged, content in (("result.json", "{}"), ("config.yaml", "- a"), ("metrics.csv", "a,b\n1,2\n")):
        copied = shutil.copytree(run, tmp_path / damaged)
        (copied / damaged).write_text(content)
        (copied / "model_card.md").unlink()
        assert_refused(script("analysis/card.py", copied), "is not as a retraining leaves it")
        assert not (copied / "model_card.md").exists()


def copy(tree, root, without=()):
    for path in tree.rglob("*.JPEG"):
        place = root / path.relative_to(tree)
        if place.parent.relative_to(root) not in without:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return root


def with_truncated(tree, root):
    """A copy of the pictures, and the one of them that is cut short."""
    copy(tree, root)
    truncated = root / "Data/CLS-LOC/train" / CLASSES[1] / f"{CLASSES[1]}_3.JPEG"
    truncated.write_bytes(truncated.read_bytes()[:300])
    return truncated


@pytest.mark.parametrize(("devices", "workers"), [(1, 2), (2, 0), (2, 1)])
def test_a_truncated_picture_is_named_and_refused(tree, tmp_path, devices, workers):
    truncated = with_truncated(tree, tmp_path / "data")
    arguments = (*settings(tmp_path / "data", tmp_path / "run"), "--workers", workers, "--devices", devices)
    refused = script(TRAIN, *arguments, env=environment())
    assert_refused(refused, "--data", str(truncated), "--broken_images skip")


def test_a_run_goes_on_without_a_truncated_picture(tree, tmp_path):
    truncated = with_truncated(tree, tmp_path / "data")
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    arguments = ("--epochs", 2, "--broken_images", "skip")
    runs = [start(TRAIN, *settings(tmp_path / "data", one, *arguments))]
    runs += [start(TRAIN, *settings(tmp_path / "data", two, *arguments, "--devices", 2))]
    for devices, (status, _, errors) in enumerate(finish(*runs), 1):
        assert status == 0, errors
        assert 1 <= errors.count("skipped:") <= devices and str(truncated) in errors  # each process names it once
    assert_same_weights(one, two, **CLOSE)
    columns, row, _ = (one / "metrics.csv").read_text().splitlines()
    assert dict(zip(columns.split(","), row.split(","), strict=True))["train_images"] == "44"
    assert json.loads((one / "result.json").read_text())["test_images"] == 12

    # A run that was refused goes on with the advice that it was given.
    assert script(TRAIN, *settings(tmp_path / "data", resumed, "--epochs", 2), env=environment()).returncode == 2
    went_on = script(TRAIN, "--resume", resumed, "--broken_images", "skip")
    assert went_on.returncode == 0, went_on.stderr
    assert_same_weights(one, resumed, **EXACT)


def test_a_run_goes_on_without_a_picture_that_is_damaged_meanwhile(tree, tmp_path):
    root, run = copy(tree, tmp_path / "data"), tmp_path / "run"
    process = start(TRAIN, *long(root, run))
    until(lambda: (run / "metrics.csv").exists(), process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    epochs = len((run / "metrics.csv").read_text().splitlines()) - 1
    assert epochs < 3
    truncated = with_truncated(tree, root)
    assert_refused(script(TRAIN, "--resume", run), str(truncated))
    resumed = script(TRAIN, "--resume", run, "--broken_images", "skip")
    assert resumed.returncode == 0, resumed.stderr
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["train_images"] for row in rows[:epochs]] == [""] * epochs
    assert rows[-1]["train_images"] == "44" and rows[-1]["test_images"] == "12"


def test_a_test_picture_that_cannot_be_read_is_not_counted(tree, finished, tmp_path):
    root = copy(tree, tmp_path / "data")
    broken = root / "Data/CLS-LOC/val" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    broken.write_bytes(b"no picture")
    run, _ = finished
    assert_refused(script(TEST, run, "--data", root), str(broken))
    said = script(TEST, run, "--data", root, "--broken_images", "skip")
    broken.unlink()
    expected = json.loads(script(TEST, run, "--data", root).stdout)
    scored = json.loads(said.stdout)
    assert scored["images"] == 11
    assert scored["accuracy"] == pytest.approx(expected["accuracy"], abs=2e-6)
    assert scored["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_wrong_pictures_are_refused_and_no_run_begun(tree, finished, tmp_path):
    run = tmp_path / "run"
    lacking = copy(tree, tmp_path / "lacking", without=[Path("Data/CLS-LOC/val") / CLASSES[2]])
    assert_refused(script(TRAIN, *settings(lacking, run)), "--data", "val has no class n01484850")
    assert_refused(script(TEST, finished[0], "--data", lacking), "--data", "2 classes, expected the 3")
    (tmp_path / "raw/train/a").mkdir(parents=True)
    (tmp_path / "raw/train/b").mkdir()
    (tmp_path / "raw/val").mkdir()
    assert_refused(script(TRAIN, *settings(tmp_path / "raw", run)), "no pictures in", "raw/train/a")
    for name in ("a", "b"):
        Image.new("RGB", (40, 40)).save(tmp_path / f"raw/train/{name}/1.png")
        Image.new("RGB", (40, 40)).save(tmp_path / f"raw/val/{name}.png")
    assert_refused(script(TRAIN, *settings(tmp_path / "raw", run)), "raw/val has 0 class", "imagenet/prepare.py")
    assert not run.exists()


def test_a_run_goes_on_with_its_own_pictures_and_passes(tree, uninterrupted, tmp_path):
    run = tmp_path / "run"
    before = stop_midway(tree, run)

    other = copy(tree, tmp_path / "other")
    for split in ("train", "val"):
        (other / "Data/CLS-LOC" / split / CLASSES[1]).rename(other / "Data/CLS-LOC" / split / "n09999999")
    assert_refused(script(TRAIN, "--resume", run, "--data", other), "--resume", "n01443537, n09999999")
    fewer = copy(tree, tmp_path / "fewer")
    (fewer / "Data/CLS-LOC/train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG").unlink()
    assert_refused(script(TRAIN, "--resume", run, "--data", fewer), "--resume", "45 training images", "has 44")
    # a step of three in an epoch of fifteen passes cannot be one of two passes, or of thirty
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "batch_size": 6}))
    assert_refused(script(TRAIN, "--resume", run), "--devices", "an epoch of 15 passes", "has 8")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert last_checkpoint(run).read_bytes() == before
    ended_well(start(TRAIN, "--resume", run, "--data", copy(tree, tmp_path / "same")))
    assert_same_weights(run, uninterrupted, **EXACT)


def test_an_allocation_without_srun_is_no_launcher(tree, tmp_path):
    env = environment(SLURM_NTASKS=1, SLURM_JOB_NAME="x", SLURM_JOB_ID=5, SLURM_NTASKS_PER_NODE=1)
    ((status, output, errors),) = finish(start(TRAIN, *settings(tree, tmp_path / "run", "--devices", 2), env=env))
    assert status == 0, errors
    assert "3 epochs on 2 x cpu" in output


def test_more_devices_than_there_are_are_refused_and_no_run_begun(tree, tmp_path):
    refused = script(TRAIN, *settings(tree, tmp_path / "run", "--devices", 1000), env=environment())
    assert_refused(refused, "--devices: 1000", "expected at most")
    assert not (tmp_path / "run").exists()


def test_what_a_launcher_started_must_be_what_is_asked_for(tree, tmp_path):
    launched = environment(
        TORCHELASTIC_RUN_ID="x", LOCAL_WORLD_SIZE=1, WORLD_SIZE=1, RANK=0, LOCAL_RANK=0, GROUP_RANK=0
    )
    asked = script(TRAIN, *settings(tree, tmp_path / "run", "--devices", 2), env=launched)
    assert_refused(asked, "--devices: 2", "torchrun has started 1")
    without = [part for part in settings(tree, tmp_path / "run") if part not in ("--save", tmp_path / "run")]
    assert_refused(script(TRAIN, *without, env=launched), "--save", "all processes of torchrun share")


def test_a_port_that_is_taken_is_named(tree, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        env = environment(MASTER_PORT=listener.getsockname()[1], MASTER_ADDR="127.0.0.1")
        result = script(TRAIN, *settings(tree, tmp_path / "run", "--devices", 2), env=env)
    assert_refused(result, "MASTER_PORT", str(env["MASTER_PORT"]), "taken")


def test_a_full_disk_is_named_and_the_checkpoint_before_is_kept(tree, uninterrupted, tmp_path):
    run = tmp_path / "run"
    before = stop_midway(tree, run)
    there = set(os.listdir(run / "checkpoints"))

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # half a checkpoint

    ((status, _, errors),) = finish(start(TRAIN, "--resume", run, preexec_fn=no_room))
    assert status == 2, errors
    assert len(errors.splitlines()) == 1
    assert all(part in errors for part in (str(run), "step_", "too large", f"go on with: python {TRAIN} --resume"))
    assert last_checkpoint(run).read_bytes() == before
    assert set(os.listdir(run / "checkpoints")) == there
    assert script(TRAIN, "--resume", run).returncode == 0
    assert_same_weights(run, uninterrupted, **EXACT)


if __name__ == "__main__":
    main()
