"""Retraining on ImageNet in one process: the recipe, the pictures, runs, interruptions and wrong input."""

import json
import os
import shutil
import signal
from dataclasses import replace

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
from imagenet.images import Decoder, begin_worker
from lib import checkpoints
from lib.data_modules import Pass
from lib.pictures import read_tree
from lib.preprocessing import papers_preprocessing
from lib.retraining import Retraining
from lib.schedules import cosine_schedule, linear_schedule, warm_up
from lib.seeds import mix
from tests.helpers import RECIPE, assert_rejected, last_checkpoint, metrics, script_in_process
from tests.imagenet_runs import (
    CELL,
    CLASSES,
    JOB,
    TEST,
    TRAIN,
    assert_same_weights,
    make_tree,
    settings,
    stopped,
    train,
    trained,
    weights,
    with_truncated,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("pictures") / "ILSVRC")


@pytest.fixture(scope="module")
def finished(tree, tmp_path_factory):
    run = tmp_path_factory.mktemp("one") / "run"
    trained(*settings(tree, run), figures=True)
    return run


# The recipe


def test_the_learning_rate_equals_a_table_computed_by_hand():
    factor = warm_up(linear_schedule(250), 5)

    def schedule(epoch):
        return 0.5 * factor(epoch)

    # 0.5 * (245 - epoch) / 245, times (epoch + 1) / 5 during the five epochs of warm-up
    first = [0.1, 0.2 * 244 / 245, 0.3 * 243 / 245, 0.4 * 242 / 245, 0.5 * 241 / 245, 0.5 * 240 / 245]
    # epochs 244 and 245 have 1/490, one step of that line; in the last five epochs it falls by a fifth of 1/490 each
    last = [1 / 490, 1 / 490, 4 / 2450, 3 / 2450, 2 / 2450, 1 / 2450]
    assert [schedule(epoch) for epoch in range(6)] == pytest.approx(first, rel=1e-12)
    assert [schedule(epoch) for epoch in range(244, 250)] == pytest.approx(last, rel=1e-12)
    assert schedule(250) == 0
    assert [linear_schedule(3)(epoch) for epoch in range(3)] == pytest.approx([3 / 5, 2 / 5, 1 / 5])
    assert warm_up(cosine_schedule(10), 2)(1) == cosine_schedule(10)(1)
    assert warm_up(cosine_schedule(10), 0)(0) == 1


def test_label_smoothing_follows_the_papers_formula():
    logits = torch.randn(8, 10, dtype=torch.float64)
    labels = torch.arange(8)
    ours = Retraining(torch.nn.Linear(1, 1), 10, replace(RECIPE, label_smoothing=0.1)).loss(logits, None, labels)
    targets = 0.9 * F.one_hot(labels, 10) + 0.1 / 10
    torch.testing.assert_close(ours, -(targets * logits.log_softmax(1)).sum(1).mean())


def test_drop_path_is_not_applied_to_identities(monkeypatch):
    genotype = load_genotype("DARTS_V2")
    network = model.NetworkImageNet(genotype, 4, 3, 10)
    dropped = []
    monkeypatch.setattr(model, "drop_path", lambda x, p: dropped.append(p) or x)
    network.train()(torch.randn(2, 3, 64, 64), drop_path_prob=0.3)
    # on the inputs of a reduction cell, a skip connection is a factorized reduction and not an identity
    identities = sum(
        edge.operation == "skip_connect" and (kind == "normal" or edge.source >= 2)
        for kind in ("normal", "reduce", "reduce")
        for edge in genotype.edges(kind)
    )
    assert identities > 0
    assert dropped == [0.3] * (3 * 8 - identities)


def test_the_defaults_are_the_settings_of_the_papers():
    from imagenet.train import ImageNetTrainSettings

    own = ImageNetTrainSettings()
    assert (own.init_channels, own.layers, own.image_size, own.auxiliary) == (48, 14, 224, True)
    assert (own.epochs, own.batch_size, own.learning_rate, own.schedule, own.warm_up) == (250, 1024, 0.5, "linear", 5)
    assert (own.momentum, own.weight_decay, own.label_smoothing, own.grad_clip) == (0.9, 3e-5, 0.1, 5.0)
    assert (own.auxiliary_weight, own.drop_path_prob, own.ema_decay, own.precision) == (0.4, 0.0, 0.0, "32-true")


# The pictures


#: preprocessing of a test picture, with 37 and 32 pixels in the proportion of the papers' 256 and 224
PAPERS_TEST = v2.Compose([v2.Resize(37), v2.CenterCrop(32), v2.PILToTensor()])


def split(tree, name):
    return read_tree(tree / "Data" / "CLS-LOC" / name)


def test_a_picture_is_augmented_as_in_the_papers(tree):
    pictures = split(tree, "train")
    assert pictures.classes == CLASSES and pictures.labels.bincount().tolist() == [15] * 3
    image = Decoder(pictures, papers_preprocessing(32), seed=3).decode(epoch=5, number=7)
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
    papers = v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), jitter, v2.PILToTensor()])
    torch.manual_seed(mix(3, 5, 7))
    torch.testing.assert_close(image, papers(Image.open(pictures.path(7)).convert("RGB")))

    image = Decoder(pictures, papers_preprocessing(32)).decode(epoch=0, number=7)
    torch.testing.assert_close(image, PAPERS_TEST(Image.open(pictures.path(7)).convert("RGB")))


def test_the_number_of_workers_does_not_change_the_images(tree):
    decoder = Decoder(split(tree, "train"), papers_preprocessing(32), seed=0)
    passes = [Pass(np.arange(first, first + 9), 1.0, 1, 0, seed=4) for first in (0, 9, 18)]

    def batches(workers):
        options = {"num_workers": workers, "worker_init_fn": begin_worker}
        return list(DataLoader(decoder, sampler=passes, batch_size=None, **options))

    before = torch.get_rng_state()
    other = decoder[passes[0]._replace(epoch=2)]
    assert torch.equal(torch.get_rng_state(), before)
    one = batches(0)
    for workers in (1, 2):
        for a, b in zip(one, batches(workers), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a[:2], b[:2], strict=True))
    assert not torch.equal(other.images, one[0].images)


# Runs


def test_sigterm_saves_after_the_step_and_the_run_resumes_with_the_next_batch(tree, finished, tmp_path):
    run = tmp_path / "run"
    errors = stopped(*settings(tree, run)).stderr
    assert len(errors.splitlines()) == 1 and f"resume with: python {TRAIN} --resume {run}" in errors
    assert checkpoints.load(last_checkpoint(run))["global_step"] == 5  # there are three steps in an epoch
    assert "starting at batch 3 of 3" in trained("--resume", run, "--workers", 2).stdout
    assert_same_weights(run, finished)
    assert metrics(run) == metrics(finished)


def test_a_preempted_slurm_job_is_requeued(tree, finished, tmp_path, monkeypatch):
    run, asked, scontrol = tmp_path / "run", tmp_path / "asked", tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    for name, value in {**JOB, "PATH": f"{tmp_path}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, str(value))
    stopped(*settings(tree, run), signum=signal.SIGUSR1)
    assert asked.read_text() == "requeue 4711\n"
    assert checkpoints.load(last_checkpoint(run))["global_step"] == 5
    trained(*settings(tree, run))  # the same command resumes the run
    assert_same_weights(run, finished)
    assert asked.read_text() == "requeue 4711\n"
    assert_rejected(train(*settings(tree, run, "--seed", 1)), "--save", "another --seed")


def test_a_moving_average_of_the_weights_is_saved_and_resumed(tree, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    trained(*settings(tree, whole, "--ema_decay", 0.9, "--epochs", 2))
    saved = checkpoints.load(last_checkpoint(whole))
    name = "network.classifier.weight"
    assert not torch.equal(saved["state_dict"][name], saved["current_model_state"][name])
    stopped(*settings(tree, run, "--ema_decay", 0.9, "--epochs", 2), signum=signal.SIGINT)
    trained("--resume", run)
    assert_same_weights(run, whole)
    scored = json.loads(script_in_process(TEST, run, "--workers", 0).stdout)  # scores the saved weights
    assert scored["accuracy"] == json.loads((run / "result.json").read_text())["accuracy"]


def plain_network(run):
    """The trained network of a run, loaded without load_network."""
    network = model.NetworkImageNet(load_genotype(CELL), 4, 3, 3).double().eval()
    network.load_state_dict({name.removeprefix("network."): value for name, value in weights(run).items()})
    return network


def test_the_scores_equal_those_computed_from_the_saved_weights(tree, finished):
    pictures = split(tree, "val")
    images = torch.stack([PAPERS_TEST(Image.open(pictures.path(number)).convert("RGB")) for number in range(12)])
    images = v2.functional.normalize(images.double() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        logits = plain_network(finished)(images)[0]
    scored = script_in_process(TEST, finished, "--batch_size", 5, "--workers", 1)
    assert scored.returncode == 0, scored.stderr
    said = json.loads(scored.stdout)
    right = (logits.argmax(1) == pictures.labels).double().mean().item()
    assert said["accuracy"] == pytest.approx(right, abs=1e-6)
    assert said["accuracy"] == json.loads((finished / "result.json").read_text())["accuracy"]
    assert said["loss"] == pytest.approx(F.cross_entropy(logits, pictures.labels).item(), rel=1e-6)
    assert (said["top5"], said["images"], said["epochs"]) == (1.0, 12, 3)


def test_the_model_card_describes_the_network_and_its_results(finished):
    card = (finished / "model_card.md").read_text()
    result = json.loads((finished / "result.json").read_text())
    origin = yaml.safe_load((finished / "config.yaml").read_text())["provenance"]
    for said in (
        f"{100 * result['accuracy']:.2f} %",
        f"{result['params'] / 1e6:.3f} M",
        f"{result['multiply_adds'] / 1e6:.1f} M",
        origin["commit"],
        "`--label_smoothing` | 0.1",
    ):
        assert said in card
    assert (finished / "curves.png").exists() and (finished / "cells/reduce.png").exists()


# Wrong input; invocations.txt has more


def test_a_truncated_picture_is_reported_and_the_run_resumes_after_its_repair(tree, finished, tmp_path):
    truncated, run = with_truncated(tree, tmp_path / "data"), tmp_path / "run"
    refused = train(*settings(tmp_path / "data", run, "--workers", 1))
    assert_rejected(refused, "--data", f"{truncated} cannot be read")
    shutil.copy(tree / truncated.relative_to(tmp_path / "data"), truncated)
    trained("--resume", run, "--workers", 0)
    assert_same_weights(finished, run)


def test_wrong_pictures_are_rejected_and_no_run_starts(tree, finished, tmp_path):
    run, raw = tmp_path / "run", tmp_path / "raw"
    lacking = shutil.copytree(tree, tmp_path / "lacking")
    shutil.rmtree(lacking / "Data/CLS-LOC/val" / CLASSES[2])
    assert_rejected(train(*settings(lacking, run)), "--data", "val has no class n01484850")
    assert_rejected(script_in_process(TEST, finished, "--data", lacking), "--data", "2 classes, expected the 3")
    for name in ("train/a/1.png", "train/b/1.png", "val/1.png"):
        (raw / name).parent.mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(raw / name)
    assert_rejected(train(*settings(raw, run)), "raw/val has 0 class", "imagenet/prepare.py")
    assert not run.exists()


def test_a_run_resumes_with_moved_pictures_and_rejects_other_classes(tree, finished, tmp_path):
    run = tmp_path / "run"
    stopped(*settings(tree, run))
    moved = shutil.copytree(tree, tmp_path / "moved")
    other = shutil.copytree(tree, tmp_path / "other")
    for name in ("train", "val"):
        (other / "Data/CLS-LOC" / name / CLASSES[1]).rename(other / "Data/CLS-LOC" / name / "n09999999")
    assert_rejected(train("--resume", run, "--data", other), "--data", "began with other classes")
    trained("--resume", run, "--data", moved)
    assert_same_weights(run, finished)


def test_an_impossible_launch_is_rejected_and_no_run_starts(tree, tmp_path, monkeypatch):
    asked = settings(tree, tmp_path / "run")
    assert_rejected(train(*asked, "--devices", 1000), "--devices: 1000", "expected at most")
    with monkeypatch.context() as patch:
        for name, value in {**JOB, "SLURM_NTASKS": 4}.items():
            patch.setenv(name, str(value))
        patch.delenv("SLURM_NTASKS_PER_NODE")
        assert_rejected(train(*asked), "--ntasks is 4", "srun --ntasks-per-node=N")
    launched = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 1}
    for name, value in {**launched, "RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    assert_rejected(train(*asked, "--devices", 2), "--devices: 2", "torchrun has started 1")
    without = [part for part in asked if part not in ("--save", tmp_path / "run")]
    assert_rejected(train(*without), "--save", "all processes of torchrun share")
    assert not (tmp_path / "run").exists()
