"""Tests on a GPU: gradients, kernels, CUDA graphs, determinism and low precision. Skipped without a GPU.

python -m pytest tests/test_gpu.py --numprocesses 4
"""

import csv
from dataclasses import replace

import pytest
import torch

from architect import first_order
from benchmarks.plain import plain_supernet
from fast_edges import FastEdges
from lib.cuda_graphs import CapturedObjective, Graphs
from lib.datasets import DataSet, ImageSet
from lib.devices import prepare_device, set_up_libraries
from lib.kernels import average_pool, differentiated_twice, grouped_conv2d
from lib.objective import Objective, cosine_similarity
from lib.retraining import Retraining
from model_search import Supernet
from nasbench201.networks import Supernet201
from regularizers import weight_gradient
from search import train_search
from search.settings import SCRIPT
from search.state import SearchState
from search.train_search import alpha_step, schedule, weight_step
from spaces import SPACES
from tests.helpers import (
    METHODS,
    RETRAINING,
    SMALL,
    assert_same_run,
    batches_of,
    last_checkpoint,
    retrain,
    run_search,
    weights_after_an_epoch,
    weights_of,
)
from tests.supernets import assert_gradients_of, assert_single_precision_gradients_of, batch_and_weights, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DOUBLE = torch.float64
LAYOUTS = [torch.channels_last, torch.contiguous_format]


@pytest.fixture(autouse=True)
def full_precision():
    """Disable TF32, as every script does by default. torch itself enables it for convolutions."""
    set_up_libraries(tf32=False)
    yield
    set_up_libraries(tf32=False)


def twins(space, auxiliary_skip, dtype, layout, channels, together=None):
    """Return a supernet on the GPU and its plain twin."""
    torch.manual_seed(0)
    if space == "nasbench201":
        supernet = Supernet201(channels, 2, auxiliary_skip=auxiliary_skip)
    else:
        supernet = Supernet(SPACES[space], channels, 5, auxiliary_skip=auxiliary_skip)
    supernet = supernet.to("cuda", dtype).to(memory_format=layout)
    for module in supernet.modules():
        if isinstance(module, FastEdges):
            module.together = together
    return supernet, plain_supernet(supernet)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("space", "auxiliary_skip"),
    [("s1", "none"), ("s2", "conv1"), ("s3", "none"), ("s4", "skip"), ("s5", "skip"), ("nasbench201", "conv1")],
)
def test_every_gradient_in_double_precision_matches_the_plain_supernet(space, auxiliary_skip, layout, same_noise):
    supernet, plain = twins(space, auxiliary_skip, DOUBLE, layout, channels=4)
    batch, weights = batch_and_weights(supernet, device="cuda")
    assert_gradients_of(supernet, plain, batch._replace(images=batch.images.to(memory_format=layout)), weights)


# With channels last, cuDNN compiles kernels on first use, which takes up to 25 s for a case.
@pytest.mark.parametrize(
    ("space", "layout", "together"),
    [("s5", LAYOUTS[0], True), ("s5", LAYOUTS[1], True), ("s5", LAYOUTS[1], False), ("s1", LAYOUTS[0], False)]
    + [("nasbench201", layout, together) for layout in LAYOUTS for together in (True, False)],
)
def test_the_gradient_in_single_precision_matches_the_plain_supernet(space, layout, together, monkeypatch):
    supernet, plain = twins(space, "none", torch.float32, layout, channels=8, together=together)
    batch, weights = batch_and_weights(supernet, torch.float32, "cuda", images=16, pixels=16)
    ours = batch._replace(images=batch.images.to(memory_format=layout))
    assert_single_precision_gradients_of(supernet, plain, ours, batch, weights, monkeypatch)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_average_pooling_and_its_gradient_match_the_cpu(layout, stride):
    """With channels last and padding, torch's own gradient is wrong (pytorch issue 188344)."""
    torch.manual_seed(0)
    x, found = torch.randn(3, 4, 7, 8, dtype=DOUBLE), []
    for device in ("cpu", "cuda"):
        own = x.to(device).to(memory_format=layout if device == "cuda" else torch.contiguous_format).requires_grad_()
        y = average_pool(own, stride)
        found.append([y.cpu(), torch.autograd.grad(y.square().sum(), own)[0].cpu()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("groups", "kernel_size", "stride", "dilation"),
    [(12, 3, 1, 1), (12, 5, 2, 1), (12, 5, 1, 2), (12, 3, 2, 2), (3, 1, 1, 1)],
)
def test_grouped_convolutions_and_their_derivatives_match_the_cpu(groups, kernel_size, stride, dilation, layout):
    torch.manual_seed(0)
    numbers = [torch.randn(2, 12, 8, 8, dtype=DOUBLE), torch.randn(12, 12 // groups, kernel_size, kernel_size).double()]
    found = []
    for device in ("cpu", "cuda"):
        x, weight = (value.to(device).to(memory_format=layout).requires_grad_() for value in numbers)
        with differentiated_twice():
            y = grouped_conv2d(x, weight, groups, stride, dilation)
        first = torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight))
        found.append([value.cpu() for value in (y, *first, *second)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("derivatives", ["difference", "exact"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_method_matches_the_cpu(method, derivatives):
    """The test compares the alpha step and the weight step in float64."""
    changes = {"space": "s5", "layers": 4, "init_channels": 2, "batch_size": 8, "epochs": 2, "derivatives": derivatives}
    settings = SCRIPT.settings_of(method, **changes, precision="64-true")
    torch.manual_seed(0)
    images = ImageSet(torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 10, (40,)))
    dataset = DataSet(images, images, tuple(map(str, range(10))), (0.5,) * 3, (0.25,) * 3, flip=True)
    states = [SearchState(settings, dataset, torch.device(device)) for device in ("cpu", "cuda")]
    for name in ("supernet", "architecture"):
        getattr(states[1], name).load_state_dict(getattr(states[0], name).state_dict())
    batches = batches_of(states[0])
    for state in states:
        device = state.device
        train_batch, valid_batch = (
            state.cast(batch._replace(images=batch.images.to(device), labels=batch.labels.to(device)))
            for batch in batches
        )
        now = schedule(settings, 1)
        objective = state.objective(now.drop_path_prob, now.skip_beta)
        alpha_step(state, objective, train_batch, valid_batch, now)
        lambda_t = settings.lambda_ if settings.reg != "none" else 0.0
        weight_step(state, objective, train_batch, now._replace(lambda_t=lambda_t), layers=False)
    for name in ("supernet", "architecture"):
        for a, b in zip(getattr(states[0], name).parameters(), getattr(states[1], name).parameters(), strict=True):
            # ReLUs have kinks: if rounding moves a unit across 0, a difference changes by more than rounding.
            torch.testing.assert_close(a, b.cpu(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("space", "layout"), [("s5", LAYOUTS[1]), ("nasbench201", LAYOUTS[0]), ("nasbench201", LAYOUTS[1])]
)
def test_captured_passes_match_eager_ones_under_the_schedule_of_every_epoch(space, layout):
    supernet, _ = twins(space, "skip", torch.float32, layout, channels=8)
    batch, weights = batch_and_weights(supernet, torch.float32, "cuda", images=32, pixels=16)
    batch = batch._replace(images=batch.images.to(memory_format=layout))
    graphs = Graphs(32)
    for epoch in range(3):
        now = {"drop_path_prob": 0.1 * epoch, "skip_beta": 1 - 0.3 * epoch}
        eager, captured = Objective(supernet, **now), CapturedObjective(supernet, **now, graphs=graphs)
        fresh = [weight + 0.1 * epoch for weight in weights]
        # Run all passes before comparing any, because captured passes share their memory.
        found = [weight_gradient(each, fresh, batch, layers=True) for each in (eager, captured)]
        steps = [first_order(each, fresh, batch).total for each in (eager, captured)]
        again = [weight_gradient(each, weights, batch) for each in (eager, captured)]
        assert relative_error(found[1].gradient, found[0].gradient) < 1e-4
        assert relative_error(found[1].layer_gradients, found[0].layer_gradients) < 1e-4
        assert relative_error(steps[1], steps[0]) < 1e-4
        assert relative_error(again[1].gradient, again[0].gradient) < 1e-4
    assert len(graphs.passes) == 6


def small_search(**changes):
    """Return the state of a search on a few images, on the GPU."""
    settings = SCRIPT.settings_of(
        "lambda-darts",
        **{"space": "s2", "layers": 4, "init_channels": 4, "batch_size": 8, "epochs": 2, "device": "cuda"} | changes,
    )
    torch.manual_seed(0)
    images = ImageSet(torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 10, (40,)))
    dataset = DataSet(images, images, tuple(map(str, range(10))), (0.5,) * 3, (0.25,) * 3, flip=True)
    return SearchState(settings, dataset, prepare_device(settings.device, settings.tf32))


def test_a_search_with_graphs_matches_an_eager_one():
    found = [weights_after_an_epoch(small_search(cuda_graphs=graphs, epsilon_0=1e-2)) for graphs in (False, True)]
    assert relative_error(found[1], found[0]) < 1e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_search_with_graphs_runs_on_the_second_gpu():
    state = small_search(device="cuda:1", cuda_graphs=True)
    assert torch.cuda.current_device() == 1
    weights = weights_after_an_epoch(state)
    assert state.graphs.passes
    assert {weight.device for weight in weights} == {torch.device("cuda", 1)}


def test_deterministic_searches_and_retrainings_repeat_and_resume_bit_for_bit(tmp_path, monkeypatch):
    settings = replace(SMALL, device="cuda", deterministic=True, epochs=2)
    whole, again, stopped = (tmp_path / name for name in ("whole", "again", "stopped"))
    assert_same_run(run_search(settings, whole), run_search(settings, again))
    run_epoch, calls = train_search.run_epoch, []

    def stop(state, epoch, *rest):
        calls.append(epoch)
        if epoch == 1:
            raise KeyboardInterrupt
        return run_epoch(state, epoch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train_search, "run_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            run_search(settings, stopped)
    assert calls == [0, 1]
    assert_same_run(run_search(settings, stopped, resumed=True), whole)

    settings = replace(RETRAINING, device="cuda", deterministic=True)
    whole, again, stopped = (retrain_interrupted(settings, tmp_path / name, name == "r") for name in "pqr")
    assert weights_of(whole) == weights_of(again) == weights_of(stopped)


def retrain_interrupted(settings, run, stopping):
    """Retrain. With `stopping`, interrupt the second step of the third epoch and resume."""
    step = Retraining.training_step

    def stop(module, batch, batch_idx):
        if (module.current_epoch, batch_idx) == (2, 1):
            raise KeyboardInterrupt
        return step(module, batch, batch_idx)

    if stopping:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Retraining, "training_step", stop)
            with pytest.raises(KeyboardInterrupt, match="after 2 of"):
                retrain(settings, run)
    return retrain(settings, run, resumed=stopping)


def test_a_nan_loss_ends_a_search_before_the_checkpoint_of_the_epoch(tmp_path, monkeypatch):
    step = train_search.weight_step

    def spoil(state, *rest, **named):
        if state.history.rows:  # in the second epoch
            with torch.no_grad():
                next(state.supernet.parameters()).fill_(torch.nan)
        return step(state, *rest, **named)

    monkeypatch.setattr(train_search, "weight_step", spoil)
    with pytest.raises(FloatingPointError, match="train_loss is nan in epoch 2, step 1"):
        run_search(replace(SMALL, device="cuda"), tmp_path / "run")
    assert last_checkpoint(tmp_path / "run").name == "epoch_00001.ckpt"


def test_a_bfloat16_retraining_learns_and_resumes(tmp_path):
    settings = replace(RETRAINING, device="cuda", precision="bf16-mixed", epochs=4)
    run = retrain_interrupted(settings, tmp_path / "run", stopping=True)
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) < 2.6


@pytest.mark.parametrize("low", [{"tf32": True}, {"precision": "bf16-mixed"}])
def test_a_search_in_low_precision_is_close_to_one_in_float32(low):
    """One epoch of five steps with exact derivatives; bfloat16 has three decimal digits."""
    found = [weights_after_an_epoch(small_search(derivatives="exact", **changes)) for changes in ({}, low)]
    assert all(weight.isfinite().all() for weight in found[1])
    assert relative_error(found[1], found[0]) < 0.05


def test_the_gradient_of_alpha_in_bfloat16_is_close_to_float32():
    supernet, _ = twins("s5", "none", torch.float32, torch.contiguous_format, channels=8)
    batch, weights = batch_and_weights(supernet, torch.float32, "cuda", images=32, pixels=16)
    weights = [weight.softmax(dim=-1) for weight in weights]
    low = Objective(supernet, lambda: torch.autocast("cuda", torch.bfloat16))
    rounded, plain = (first_order(objective, weights, batch).total for objective in (low, Objective(supernet)))
    assert all(gradient.dtype is torch.float32 for gradient in rounded)
    assert cosine_similarity(rounded, plain) > 0.97
