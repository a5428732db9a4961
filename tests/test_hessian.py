"""Hessian of the validation loss in alpha, and its landscape, compared with dense computations on plain supernets."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from analysis import landscape
from analysis.hessian import MeasurementSettings, dominant_eigenvalues, search_settings
from analysis.landscape import directions, scale_to_alpha
from analysis.validation import ValidationLoss
from benchmarks.plain import plain_supernet
from fast_edges import FastEdges
from lib.batches import Augmentation, Batches
from tests.helpers import (
    SMALL,
    assert_rejected,
    run_main,
    run_search,
    run_search_201,
    script_in_process,
    settings_of_201,
)

SMALLEST = replace(SMALL, init_channels=2, reg="none", epochs=2)
AUXILIARY = {"auxiliary_skip": "skip", "skip_beta": 1.0, "decay": "linear"}
#: name -> function that runs the search; beta is 1/2 in the last of two epochs
SEARCHES = {
    "softmax": lambda run: run_search(SMALLEST, run),
    "sigmoid": lambda run: run_search(replace(SMALLEST, relaxation="sigmoid", **AUXILIARY), run),
    "nasbench201": lambda run: run_search_201(settings_of_201(epochs=3, keep_checkpoints=3), run),
}
BETA = {"sigmoid": 0.5}
EVERY_SEARCH = [pytest.param(name, marks=[] if name == "nasbench201" else pytest.mark.slow) for name in SEARCHES]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function that runs a search on first use and returns its folder."""
    folder, made = tmp_path_factory.mktemp("hessian"), {}

    def run_of(name):
        if name not in made:
            made[name] = SEARCHES[name](folder / name)
        return made[name]

    return run_of


class ReferenceBatchNorm(nn.Module):
    """Batch norm by its equations. Evaluation mode uses the mean statistics over all images of training mode."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.seen = norm, []

    def forward(self, x):
        if self.training:
            mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
            values = x.numel() / x.shape[1]
            self.seen.append((len(x), mean, variance * values / (values - 1)))
        else:
            seen = zip(*self.seen, strict=True)
            counts, means, variances = (torch.stack([*map(torch.as_tensor, parts)]) for parts in seen)
            mean, variance = ((counts[:, None] * parts).sum(dim=0) / counts.sum() for parts in (means, variances))
        y = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return self.norm.weight[:, None, None] * y + self.norm.bias[:, None, None] if self.norm.affine else y


def measured(run, batches, batch_size):
    """Return the validation loss of the last checkpoint as the scripts compute it, and its alpha."""
    given = MeasurementSettings(batch_size=batch_size, precision="64-true", device="cpu")
    valid = ValidationLoss(run, search_settings(run, given), batches)
    return valid, valid.restore(valid.epochs[-1])


def rows_of(path):
    with open(path, newline="") as file:
        return [{column: float(value) for column, value in row.items()} for row in csv.DictReader(file)]


def plain_loss(valid, name, centre=None):
    """Return a function alpha -> (loss, accuracy) of the plain supernet, which consists of torch's own layers only.

    If `centre` is given, evaluation mode is on, with the statistics of the training images at that alpha.
    """
    search, supernet = valid.search, valid.search.supernet
    plain = plain_supernet(supernet).train()

    def logits_of(batch, alpha):
        tables, begin = {}, 0
        for kind, (edges, operations) in supernet.alpha_shapes.items():
            table = alpha[begin : begin + edges * operations].reshape(edges, operations)
            gates = 1 / (1 + torch.exp(-table))
            tables[kind] = gates if name == "sigmoid" else table.exp() / table.exp().sum(dim=1, keepdim=True)
            begin += edges * operations
        weights = [tables[kind] for kind in supernet.kinds]
        return plain(batch.images, weights, 0.0, BETA.get(name, 0.0))

    def loss(alpha):
        logits = torch.cat([logits_of(batch, alpha) for batch in valid.batches])
        labels = torch.cat([batch.labels for batch in valid.batches])
        return F.cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).double().mean()

    if centre is not None:
        for path, module in list(plain.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                plain.set_submodule(path, ReferenceBatchNorm(module))
        settings, augmentation = search.settings, Augmentation.none(search.dataset)
        for batch in Batches(search.train, settings.batch_size, augmentation, (settings.seed,)):
            logits_of(search.cast(batch), centre)
        plain.eval()
    return loss


def dense_hessian(valid, name, alpha):
    """Compute d2 loss / d alpha2, (n, n)."""
    loss = plain_loss(valid, name)
    return torch.autograd.functional.hessian(lambda point: loss(point)[0], alpha.detach())


@pytest.mark.parametrize("name", EVERY_SEARCH)
def test_the_eigenvalues_match_the_dense_hessian(runs, name):
    valid, alpha = measured(runs(name), batches=2, batch_size=12)
    loss, _ = valid(alpha.requires_grad_())
    expected = np.linalg.eigvalsh(dense_hessian(valid, name, alpha).numpy())
    expected = expected[np.argsort(-abs(expected))][:4]
    assert abs(expected[-1]) > 1e-3
    np.testing.assert_allclose(dominant_eigenvalues(loss, alpha, 4), expected, rtol=1e-6)


def test_the_eigenvalues_of_largest_magnitude_may_be_negative():
    """The loss is a quadratic form with known eigenvalues."""
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    spectrum = torch.tensor([-3.0, 2.0, -1.5, 1.0, *([0.1] * 8)], dtype=torch.float64)
    alpha = torch.ones(12, dtype=torch.float64, requires_grad=True)
    loss = (spectrum * (basis @ alpha).square()).sum() / 2
    np.testing.assert_allclose(dominant_eigenvalues(loss, alpha, 3), [-3, 2, -1.5], rtol=1e-9)
    np.testing.assert_allclose(dominant_eigenvalues(loss, alpha, 2, algebraic=True), [2, 1], rtol=1e-9)


def test_darts_minus_takes_the_largest_eigenvalues_of_the_hessian_plus_the_weight_decay(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("nasbench201"), run)
    arguments = ("--count", 3, "--batch_size", 12, "--precision", "64-true", "--device", "cpu")
    result = script_in_process("analysis/hessian.py", run, *arguments, "--definition", "darts-minus")
    assert result.returncode == 0, result.stderr
    valid, alpha = measured(run, batches=1, batch_size=12)
    decay = valid.search.settings.arch_weight_decay
    assert decay == 1e-3
    expected = np.linalg.eigvalsh(dense_hessian(valid, "nasbench201", alpha).numpy() + decay * np.eye(len(alpha)))
    row = rows_of(run / "hessian-darts-minus.csv")[-1]
    assert row["epoch"] == valid.epochs[-1]
    np.testing.assert_allclose([row[f"eigenvalue_{n}"] for n in (1, 2, 3)], expected[:-4:-1], rtol=1e-6)
    assert row["loss"] == pytest.approx(plain_loss(valid, "nasbench201")(alpha)[0].item(), rel=1e-12)
    assert not (run / "hessian.csv").exists()  # the definition `ours` has its own files


@pytest.mark.parametrize("name", EVERY_SEARCH)
def test_the_landscape_has_the_loss_at_its_center_and_the_curvature_of_the_hessian(runs, name):
    """The radius is so small that hardly any ReLU switches. Their kinks add curvature that the Hessian lacks."""
    run, radius = runs(name), 1e-5
    arguments = ("--points", 3, "--radius", radius, "--batch_size", 4, "--precision", "64-true", "--device", "cpu")
    result = script_in_process("analysis/landscape.py", run, *arguments)
    assert result.returncode == 0, result.stderr
    assert (run / "landscape.png").stat().st_size > 1000
    rows = rows_of(run / "landscape.csv")
    ticks = (-radius, 0, radius)
    assert [(row["x"], row["y"]) for row in rows] == [(x, y) for x in ticks for y in ticks]
    valid, alpha = measured(run, batches=1, batch_size=4)
    assert {row["epoch"] for row in rows} == {valid.epochs[-1]}

    surface = np.array([row["loss"] for row in rows]).reshape(3, 3)
    loss, accuracy = plain_loss(valid, name)(alpha)
    assert surface[1, 1] == pytest.approx(loss.item(), rel=1e-12)
    assert rows[4]["accuracy"] == accuracy.item()

    plane = directions(len(alpha), valid.search.settings.seed)
    torch.testing.assert_close(plane.t() @ plane, torch.eye(2, dtype=torch.float64))
    hessian = plane.t() @ dense_hessian(valid, name, alpha) @ plane
    for axis, line in enumerate((surface[:, 1], surface[1, :])):
        second = (line[0] - 2 * line[1] + line[2]) / radius**2
        # rounding adds about 1e-15 / radius^2 = 1e-5 to a curvature of 0.01 or more
        assert second == pytest.approx(hessian[axis, axis].item(), rel=1e-2)


@pytest.mark.parametrize("name", EVERY_SEARCH)
def test_evaluation_mode_uses_the_statistics_of_the_training_images_at_the_alpha_of_the_checkpoint(runs, name):
    """This also holds if edges are computed side by side, as on a GPU. The last batch is smaller than the others."""
    given = MeasurementSettings(batch_size=200, precision="64-true", device="cpu")
    settings = search_settings(runs(name), given)
    training, evaluation = (ValidationLoss(runs(name), settings, None, mode) for mode in (False, True))
    alpha = training.restore(training.epochs[-1])
    loss, accuracy = plain_loss(training, name, alpha)(alpha)
    assert abs(loss - training(alpha)[0]) > 1e-4
    for together in (False, True):
        for module in evaluation.search.supernet.modules():
            if isinstance(module, FastEdges):
                module.together = together
        evaluation.restore(evaluation.epochs[0])  # its statistics must not remain
        assert torch.equal(evaluation.restore(evaluation.epochs[-1]), alpha)
        ours, right = evaluation(alpha)
        assert abs(ours - loss) < 1e-11 * loss
        assert abs(right - accuracy) < 1e-6  # accuracies are in float32


def test_the_darts_minus_landscape_uses_all_images_evaluation_mode_and_directions_as_long_as_alpha(runs):
    run, arguments = runs("nasbench201"), ("--batch_size", 200, "--precision", "64-true", "--device", "cpu")
    result = script_in_process("analysis/landscape.py", run, *arguments, "--definition", "darts-minus", "--points", 3)
    assert result.returncode == 0, result.stderr
    valid, alpha = measured(run, batches=None, batch_size=200)
    plane = scale_to_alpha([alpha], directions(len(alpha), valid.search.settings.seed))
    surface = plain_loss(valid, "nasbench201", alpha)
    rows = {(row["x"], row["y"]): row["loss"] for row in rows_of(run / "landscape-darts-minus.csv")}
    assert rows.keys() == {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)}
    for point in ((0, 0), (1, 0), (-1, 1)):
        moved = alpha + plane @ torch.tensor(point, dtype=torch.float64)
        assert rows[point] == pytest.approx(surface(moved)[0].item(), rel=1e-11)


def test_the_directions_are_as_long_as_alpha_on_each_kind_of_cell():
    alphas = torch.randn(30, generator=torch.Generator().manual_seed(1)).split([10, 20])
    for alpha, part in zip(alphas, scale_to_alpha(alphas, directions(30, seed=0)).split([10, 20]), strict=True):
        torch.testing.assert_close(part.t() @ part, alpha.double().square().sum() * torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize(("definition", "points", "images"), [("ours", 21, 200), ("darts-minus", 51, 719)])
def test_each_definition_has_its_own_grid_and_number_of_images(runs, monkeypatch, definition, points, images):
    class Measured(Exception):
        pass

    def measure(valid, epoch, points, radius, definition):
        raise Measured(points, radius, sum(len(batch.labels) for batch in valid.batches))

    monkeypatch.setattr(landscape, "measure_landscape", measure)
    with pytest.raises(Measured) as raised:
        run_main(
            landscape.main, runs("nasbench201"), "--definition", definition, "--batch_size", 200, "--device", "cpu"
        )
    assert raised.value.args == (points, 1.0, images)


def test_each_checkpoint_gives_a_row_that_outlives_it(runs, tmp_path):
    run, arguments = tmp_path / "run", ("--count", 2, "--batch_size", 16, "--device", "cpu")
    shutil.copytree(runs("nasbench201"), run)
    later = (run / "checkpoints/epoch_00003.ckpt").rename(tmp_path / "later")  # as if the search had not reached it yet
    first = script_in_process("analysis/hessian.py", run, *arguments)
    assert first.returncode == 0, first.stderr
    table = (run / "hessian.csv").read_text()
    assert [line.split(",")[0] for line in table.splitlines()] == ["epoch", "1", "2"]
    assert (run / "hessian.png").stat().st_size > 1000

    later.rename(run / "checkpoints/epoch_00003.ckpt")
    (run / "checkpoints/epoch_00001.ckpt").unlink()
    second = script_in_process("analysis/hessian.py", run, *arguments)
    assert second.returncode == 0, second.stderr
    longer = (run / "hessian.csv").read_text()
    assert longer.startswith(table)
    assert [line.split(",")[0] for line in longer.splitlines()] == ["epoch", "1", "2", "3"]

    # Other settings are rejected: their rows neither mix with these nor replace them.
    for others, mentions in (
        (("--count", 3), ("--count: 3", "hessian.csv", "2")),
        (("--batches", 2), ("--batches: 2", "hessian.csv", "1")),
    ):
        assert_rejected(script_in_process("analysis/hessian.py", run, *arguments, *others), *mentions)
    assert (run / "hessian.csv").read_text() == longer


@pytest.mark.parametrize(
    ("command", "arguments", "mentions"),
    [
        ("hessian", ("--count", 30), ("--count: 30", "30 alphas of nasbench201")),
        ("hessian", ("--batches", 4), ("--batches: 4", "at most 3", "719 validation images")),
        ("hessian", ("--batch_size", 720), ("--batch_size: 720", "718")),
        ("landscape", ("--epoch", 7), ("--epoch: 7", "1, 2, 3")),
    ],
)
def test_a_wrong_flag_is_rejected(runs, command, arguments, mentions):
    assert_rejected(script_in_process(f"analysis/{command}.py", runs("nasbench201"), *arguments), *mentions)
