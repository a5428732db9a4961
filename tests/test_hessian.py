"""The Hessian of the validation loss in alpha and the landscape around it, against dense ones of the plain supernet."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis.hessian import MeasurementSettings, dominant_eigenvalues, search_settings
from analysis.landscape import directions
from analysis.validation import ValidationLoss
from benchmarks.plain import plain_supernet
from tests.helpers import SMALL, assert_refused, run_search, run_search_201, script_in_process, settings_of_201

SMALLEST = replace(SMALL, init_channels=2, reg="none", epochs=2)
AUXILIARY = {"auxiliary_skip": "skip", "skip_beta": 1.0, "decay": "linear"}
#: name -> how its search is run; beta is 1/2 in the last epoch of two
SEARCHES = {
    "softmax": lambda run: run_search(SMALLEST, run),
    "sigmoid": lambda run: run_search(replace(SMALLEST, relaxation="sigmoid", **AUXILIARY), run),
    "nasbench201": lambda run: run_search_201(settings_of_201(epochs=3, keep_checkpoints=3), run),
}
BETA = {"sigmoid": 0.5}
EVERY_SEARCH = [pytest.param(name, marks=[] if name == "nasbench201" else pytest.mark.slow) for name in SEARCHES]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished searches, made when first asked for."""
    folder, made = tmp_path_factory.mktemp("hessian"), {}

    def run_of(name):
        if name not in made:
            made[name] = SEARCHES[name](folder / name)
        return made[name]

    return run_of


def measured(run, batches, batch_size):
    """The last checkpoint's validation loss as the scripts take it, and alpha."""
    given = MeasurementSettings(batch_size=batch_size, precision="64-true", device="cpu")
    valid = ValidationLoss(run, search_settings(run, given), batches)
    return valid, valid.restore(valid.epochs[-1])


def plain_loss(valid, name):
    """alpha -> loss and accuracy, with a module for every operation of every edge and layers of the library alone."""
    supernet = valid.search.supernet
    plain = plain_supernet(supernet).train()
    images, labels = (torch.stack(parts) for parts in list(zip(*valid.batches, strict=True))[:2])

    def loss(alpha):
        tables, begin = {}, 0
        for kind, (edges, operations) in supernet.alpha_shapes.items():
            table = alpha[begin : begin + edges * operations].reshape(edges, operations)
            gates = 1 / (1 + torch.exp(-table))
            tables[kind] = gates if name == "sigmoid" else table.exp() / table.exp().sum(dim=1, keepdim=True)
            begin += edges * operations
        weights = [tables[kind] for kind in supernet.kinds]
        logits = torch.stack([plain(batch, weights, 0.0, BETA.get(name, 0.0)) for batch in images])
        accuracy = (logits.argmax(dim=2) == labels).double().mean()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), accuracy

    return loss


def dense_hessian(valid, name, alpha):
    """d2 loss / d alpha2, (n, n)."""
    loss = plain_loss(valid, name)
    return torch.autograd.functional.hessian(lambda point: loss(point)[0], alpha.detach())


@pytest.mark.parametrize("name", EVERY_SEARCH)
def test_the_eigenvalues_are_those_of_the_dense_hessian(runs, name):
    valid, alpha = measured(runs(name), batches=2, batch_size=12)
    loss, _ = valid(alpha.requires_grad_())
    expected = np.linalg.eigvalsh(dense_hessian(valid, name, alpha).numpy())
    expected = expected[np.argsort(-abs(expected))][:4]
    assert abs(expected[-1]) > 1e-3
    np.testing.assert_allclose(dominant_eigenvalues(loss, alpha, 4), expected, rtol=1e-6)


def test_the_eigenvalues_of_largest_magnitude_may_be_negative():
    """Of a quadratic form they are known, signs and all."""
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    spectrum = torch.tensor([-3.0, 2.0, -1.5, 1.0, *([0.1] * 8)], dtype=torch.float64)
    alpha = torch.ones(12, dtype=torch.float64, requires_grad=True)
    loss = (spectrum * (basis @ alpha).square()).sum() / 2
    np.testing.assert_allclose(dominant_eigenvalues(loss, alpha, 3), [-3, 2, -1.5], rtol=1e-9)


@pytest.mark.parametrize("name", EVERY_SEARCH)
def test_the_landscape_has_the_loss_at_its_centre_and_the_hessian_for_its_curvature(runs, name):
    """So near alpha that hardly a ReLU switches: farther out their kinks bend the surface, and the Hessian has none."""
    run, radius = runs(name), 1e-5
    arguments = ("--points", 3, "--radius", radius, "--batch_size", 4, "--precision", "64-true", "--device", "cpu")
    result = script_in_process("analysis/landscape.py", run, *arguments)
    assert result.returncode == 0, result.stderr
    assert (run / "landscape.png").stat().st_size > 1000
    with open(run / "landscape.csv", newline="") as file:
        rows = [{column: float(value) for column, value in row.items()} for row in csv.DictReader(file)]
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
        # rounding alone is some 1e-15 / radius^2 = 1e-5 of a curvature of 0.01 and more
        assert second == pytest.approx(hessian[axis, axis].item(), rel=1e-2)


def test_there_is_a_row_for_each_checkpoint_and_it_outlives_its_checkpoint(runs, tmp_path):
    run, arguments = tmp_path / "run", ("--count", 2, "--batch_size", 16, "--device", "cpu")
    shutil.copytree(runs("nasbench201"), run)
    later = (run / "checkpoints/epoch_00003.ckpt").rename(tmp_path / "later")  # not reached yet
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

    # Other settings neither mix with these nor replace them.
    for others, mentions in (
        (("--count", 3), ("--count: 3", "hessian.csv", "2")),
        (("--batches", 2), ("--batches: 2", "hessian.csv", "1")),
    ):
        assert_refused(script_in_process("analysis/hessian.py", run, *arguments, *others), *mentions)
    assert (run / "hessian.csv").read_text() == longer


@pytest.mark.parametrize(
    ("command", "arguments", "mentions"),
    [
        ("hessian", ("--count", 30), ("--count: 30", "30 alphas of nasbench201")),
        ("hessian", ("--batches", 4), ("--batches: 4", "3 at most", "719 images")),
        ("hessian", ("--batch_size", 720), ("--batch_size: 720", "718")),
        ("landscape", ("--epoch", 7), ("--epoch: 7", "1, 2, 3")),
    ],
)
def test_a_wrong_flag_is_refused(runs, command, arguments, mentions):
    assert_refused(script_in_process(f"analysis/{command}.py", runs("nasbench201"), *arguments), *mentions)
