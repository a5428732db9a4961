"""Helpers of the ImageNet retraining tests: tiny images, and runs on them in this process and in others."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from lib import checkpoints
from lib.retraining import Retraining
from tests.helpers import ROOT, last_checkpoint, script_in_process, without_figures

CELL = "LambdaDARTS_corr_0"
TRAIN, TEST = "imagenet/train.py", "imagenet/test.py"
#: three steps per epoch, with 16, 16 and 13 images
SMALL = (
    "--arch", CELL, "--init_channels", 4, "--layers", 3, "--image_size", 32, "--no_auxiliary", "--batch_size", 16,
    "--epochs", 3, "--workers", 0, "--device", "cpu", "--precision", "64-true",
)  # fmt: skip
CLASSES = ("n01440764", "n01443537", "n01484850")
#: tolerances for float64 sums in another order
CLOSE = {"rtol": 1e-6, "atol": 1e-9}
#: environment variables of a SLURM job with one process
JOB = {
    "SLURM_JOB_ID": 4711, "SLURM_JOB_NAME": "retrain", "SLURM_NTASKS": 1, "SLURM_NNODES": 1, "SLURM_STEP_ID": 0,
    "SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NODEID": 0, "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS_PER_NODE": 1,
}  # fmt: skip


def make_tree(root):
    """Write 15 training and 4 validation images for each of three classes. Each class has a color; sizes vary."""
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


def with_truncated(tree, root):
    """Copy the images, truncate one of them, and return its path."""
    shutil.copytree(tree, root)
    truncated = root / "Data/CLS-LOC/train" / CLASSES[1] / f"{CLASSES[1]}_3.JPEG"
    truncated.write_bytes(truncated.read_bytes()[:300])
    return truncated


def settings(tree, run, *more):
    return (*SMALL, "--data", tree, "--save", run, *more)


# Runs in this process


def train(*arguments, figures=False):
    """Call imagenet/train.py."""
    with nullcontext() if figures else without_figures():
        return script_in_process(TRAIN, *arguments)


def trained(*arguments, **options):
    """Call imagenet/train.py and assert that the training finishes."""
    result = train(*arguments, **options)
    assert result.returncode == 0, result.stderr
    return result


def stopped(*arguments, signum=signal.SIGTERM):
    """Call imagenet/train.py and send it a signal in the second step of the second epoch."""
    own = Retraining.training_step

    def step(module, batch, number):
        if (module.current_epoch, number) == (1, 1):
            os.kill(os.getpid(), signum)
        return own(module, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Retraining, "training_step", step)
        result = train(*arguments)
    assert result.returncode == 130, result.stderr
    return result


# Runs in other processes


def environment(**more):
    """Return the environment without the variables of launchers (SLURM, torchrun), and with `more`."""
    launchers = ("SLURM", "TORCHELASTIC", "MASTER", "RANK", "LOCAL", "WORLD", "GROUP", "ROLE", "NODE_RANK")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    return {**clean, **{name: str(value) for name, value in more.items()}}


def recorded(record, *arguments, env=None, launcher=()):
    """Start imagenet/train.py in a process that records the images that it decodes."""
    os.makedirs(record, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *map(str, (*launcher, "tests/imagenet_process.py", *arguments))],
        cwd=ROOT,
        env={**(env or environment()), "RECORD": str(record)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    """Wait for the processes. Return the exit status, the output and the errors of each."""
    said = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, said, strict=True)]


def assert_success(*processes):
    for status, _, errors in finish(*processes):
        assert status == 0, errors


# Results


def weights(run):
    return checkpoints.load(last_checkpoint(run))["state_dict"]


def assert_same_weights(run, other, rtol=0, atol=0):
    a, b = weights(run), weights(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
