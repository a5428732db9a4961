"""Retraining: the recipe, the run folder, interruptions, several processes, and the score of a checkpoint.

`test_two_processes_train_and_score_a_compiled_network_like_one` runs this file as a script.
"""

import json
import math
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import model
from genotypes import load_genotype
from lib import checkpoints, datasets, devices, options
from lib.batches import Augmentation, Batch
from lib.cli import InputError
from lib.data_modules import TensorDataModule
from lib.datasets import DataSet, ImageSet
from lib.retraining import Retraining
from lib.schedules import cosine_schedule
from lib.trainer import CheckpointIO, fit, make_module, make_trainer
from tests.helpers import (
    CELL,
    RECIPE,
    RETRAINING,
    ROOT,
    assert_rejected,
    interrupt,
    last_checkpoint,
    metrics,
    retrain,
    script,
    script_in_process,
    weights_of,
)
from train.train import PROG, TrainSettings

pytestmark = pytest.mark.usefixtures("no_figures")


def result(run):
    return json.loads((run / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return retrain(RETRAINING, tmp_path_factory.mktemp("retrain") / "run")


class Recorder(nn.Module):
    """A linear network without batch norm that records the numbers of its images and the drop path probabilities.

    Every pixel of an image of `numbered` holds the image's number.
    """

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(16, 3)
        self.probabilities, self.trained, self.tested = [], [], []

    def forward(self, images, drop_path_prob=0.0):
        numbers = self.trained if self.training else self.tested
        numbers += (images[:, 0, 0, 0] * 40).round().int().tolist()
        if self.training:
            self.probabilities.append(drop_path_prob)
        return self.classifier(images.flatten(1)), None


def numbered(count):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 4, 4).contiguous()
    return ImageSet(images, torch.arange(count) % 3)


def fit_numbered(run, devices=1, accumulate=1, compile=False):
    """Train the recorder on 40 numbered images, in batches of 10, and test it on 11."""
    dataset = DataSet(numbered(40), numbered(11), ("a", "b", "c"), (0.0,), (40 / 255,), flip=False)
    settings = replace(
        RETRAINING, epochs=4, batch_size=10, devices=devices, accumulate=accumulate, compile=compile, cutout=False
    )
    images = TensorDataModule(dataset, 10, Augmentation.none(dataset), seed=0)
    trainer = make_trainer(settings, run)
    torch.manual_seed(0)
    module = make_module(Recorder(), "cifar", RECIPE, images, trainer, settings, load_genotype(CELL))
    return module.network, fit(trainer, module, images, run, "script")


def test_the_learning_rate_follows_the_papers_cosine_schedule(finished):
    rates = [float(row["learning_rate"]) for row in metrics(finished)]
    assert rates == pytest.approx([0.025, 0.025 * 3 / 4, 0.025 / 4])  # (1 + cos 0, cos 60, cos 120) / 2
    assert cosine_schedule(600)(599) == pytest.approx(math.sin(math.pi / 1200) ** 2)
    used = checkpoints.load(last_checkpoint(finished))["optimizer_states"][0]["param_groups"][0]
    assert used["initial_lr"] == rates[0] and used["lr"] == pytest.approx(0)  # the scheduler has stepped
    assert (used["momentum"], used["weight_decay"]) == (0.9, 3e-4)


def test_drop_path_ramps_up_and_every_epoch_trains_on_each_image_once_in_a_new_order(tmp_path):
    network, rows = fit_numbered(tmp_path)
    assert len(rows) == 4
    assert network.probabilities == pytest.approx([0.0] * 4 + [0.05] * 4 + [0.1] * 4 + [0.15] * 4)
    epochs = [network.trained[start : start + 40] for start in range(0, 160, 40)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    assert network.tested == list(range(11)) * 4


def test_the_loss_includes_the_weighted_loss_of_the_auxiliary_head():
    torch.manual_seed(0)
    network = model.NetworkCIFAR(load_genotype(CELL), 4, 3, auxiliary=True).double()
    batch = Batch(torch.randn(4, 3, 29, 29, dtype=torch.float64), torch.tensor([1, 0, 9, 3]))
    module = Retraining(network, 10, replace(RECIPE, drop_path_prob=0))

    def cross_entropy(logits):
        return -torch.stack([row.softmax(0)[label].log() for row, label in zip(logits, batch.labels, strict=True)])

    logits, auxiliary_logits = network(batch.images)
    expected = cross_entropy(logits).mean() + 0.4 * cross_entropy(auxiliary_logits).mean()
    assert module.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("moment", ["SIGTERM in the second epoch", "Ctrl-C after a checkpoint"])
def test_an_interrupted_and_resumed_run_ends_like_an_uninterrupted_one(finished, tmp_path, monkeypatch, moment):
    run, step = tmp_path / "run", Retraining.training_step

    def stop_in_second_epoch(module, batch, batch_idx):
        if (module.current_epoch, batch_idx) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        if moment == "SIGTERM in the second epoch":
            patch.setattr(Retraining, "training_step", stop_in_second_epoch)
        else:
            interrupt(patch, CheckpointIO, "save_checkpoint", 2)
        stopped = script_in_process("train/train.py", "--config", finished / "config.yaml", "--save", run)
    assert stopped.returncode == 130
    assert re.fullmatch(f".*after 1 of 3 epochs; resume with: python train/train.py --resume {run}\n", stopped.stderr)
    assert "\r" not in stopped.stdout and "\x1b" not in stopped.stdout  # there are no progress bars without a terminal
    assert not (run / "result.json").exists()
    resumed = script_in_process("train/train.py", "--resume", run)
    assert f"run {run}: 2 epochs of 3 left on cpu" in resumed.stdout
    assert metrics(run) == metrics(finished)
    assert weights_of(run) == weights_of(finished)
    assert result(run)["accuracy"] == result(finished)["accuracy"]


def test_a_run_folder_holds_its_settings_and_results(finished):
    assert options.parse(TrainSettings, PROG, "", ["--config", str(finished / "config.yaml")]) == RETRAINING
    genotype = load_genotype(CELL)
    assert load_genotype(str(finished)) == genotype
    with torch.device("meta"):
        size = model.size(model.NetworkCIFAR(genotype, 4, 3, in_channels=1), 1, 8)
    came = result(finished)
    assert {name: came[name] for name in size} == size
    assert came["seed"] == came["settings"]["seed"] == 0
    assert came["accuracy"] == float(metrics(finished)[-1]["test_accuracy"])
    assert list((finished / "tensorboard").glob("events*"))

    again = script_in_process("train/train.py", "--resume", finished)
    assert again.returncode == 0
    assert "is finished" in again.stdout


def test_the_score_is_the_accuracy_of_the_saved_network_on_the_test_images(finished):
    digits = datasets.load("digits")
    network = model.NetworkCIFAR(load_genotype(CELL), 4, 3, in_channels=1)
    state = checkpoints.load(last_checkpoint(finished))["state_dict"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    images = (digits.test.images / 255 - digits.mean[0]) / digits.std[0]
    with torch.no_grad():
        logits, _ = network.eval()(images)
    right = (logits.argmax(1) == digits.test.labels).sum().item()

    scored = script_in_process("train/test.py", finished)
    assert scored.returncode == 0, scored.stderr
    said = json.loads(scored.stdout)
    assert said["images"] == 360
    assert said["accuracy"] == result(finished)["accuracy"] == pytest.approx(right / 360, abs=1e-6)
    assert said["loss"] == pytest.approx(F.cross_entropy(logits, digits.test.labels).item(), rel=1e-5)


@pytest.mark.slow
def test_a_cell_learns_the_digits(tmp_path):
    settings = replace(RETRAINING, init_channels=8, epochs=4, batch_size=48, learning_rate=0.1, drop_path_prob=0.0)
    settings = replace(settings, cutout=False)
    assert result(retrain(settings, tmp_path / "run"))["accuracy"] > 0.9


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tmp_path):
    with pytest.raises(FloatingPointError, match="train_loss is nan in epoch 1, step 2"):
        retrain(replace(RETRAINING, learning_rate=1e30), tmp_path / "run")
    assert not last_checkpoint(tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["DARTS_V2", "MdeNAS", CELL])
def test_every_weight_of_a_published_cell_has_a_gradient(name):
    torch.manual_seed(0)
    network = model.NetworkCIFAR(load_genotype(name), 4, 3, auxiliary=True)
    logits, auxiliary_logits = network(torch.randn(2, 3, 29, 29), drop_path_prob=0.2)
    Retraining(network, 10, RECIPE).loss(logits, auxiliary_logits, torch.tensor([3, 7])).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


def test_accumulated_passes_train_like_whole_batches(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    network, rows = fit_numbered(tmp_path / "whole")
    other, other_rows = fit_numbered(tmp_path / "parts", accumulate=3)  # 10 images as 4, 3 and 3
    assert other.trained == network.trained
    torch.testing.assert_close(other.state_dict(), network.state_dict())
    for row, expected in zip(other_rows, rows, strict=True):
        assert row["test_accuracy"] == expected["test_accuracy"]
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_and_score_a_compiled_network_like_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        run.mkdir()
    network, rows = fit_numbered(one)
    both = script("tests/test_retraining.py", two, env={**os.environ, "PYTHONPATH": str(ROOT)})  # to import `tests`
    assert both.returncode == 0, both.stderr
    tested = [json.loads((two / f"tested_{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(part) for part in tested] == [6 * 4, 5 * 4]  # the shares and their numbers of batches differ
    assert sorted(tested[0] + tested[1]) == sorted(network.tested)
    checkpoint = checkpoints.load(last_checkpoint(two))
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(checkpoint["state_dict"][f"network.{name}"], weight)
    for row, expected in zip(checkpoint["callbacks"]["EpochLog"]["rows"], rows, strict=True):
        assert row["test_accuracy"] == expected["test_accuracy"]
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 1438}, "--batch_size: 1438, expected at most 1437, the number of training"),
        ({"batch_size": 3, "devices": 2}, "expected 4 or more: two images for each of 2 device"),
        ({"batch_size": 7, "accumulate": 4}, "expected 8 or more: .* in each of --accumulate 4 passes"),
        ({"precision": "16-mixed", "device": "cpu"}, "bf16-mixed"),
    ],
)
def test_impossible_settings_are_rejected_before_anything_is_written(tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        retrain(replace(RETRAINING, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checkpoints_with_code_or_of_other_programs_are_rejected(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    path = tmp_path / "model.ckpt"
    for content, says in (({"state_dict": Bomb()}, "corrupt or not"), ({"state_dict": {}}, "not a checkpoint of")):
        torch.save(content, path)
        assert_rejected(script_in_process("train/test.py", path), f"{path.name} is {says}")
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_a_compiled_network_trains_like_an_uncompiled_one(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "COMPILER", "aot_eager")
    plain = retrain(replace(RETRAINING, epochs=1), tmp_path / "plain")
    compiled = retrain(replace(RETRAINING, epochs=1, compile=True), tmp_path / "compiled")
    a, b = (checkpoints.load(last_checkpoint(run))["state_dict"] for run in (plain, compiled))
    torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    devices.COMPILER = "eager"
    recorder, _ = fit_numbered(folder, devices=2, compile=True)
    (folder / f"tested_{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(recorder.tested))
