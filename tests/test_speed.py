"""The fast implementations compute the same values and derivatives as the plain ones."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from architect import first_order, implicit, unrolled
from benchmarks.plain import plain_supernet
from fast_edges import FastEdges
from lib import devices
from lib.datasets import DataSet, ImageSet
from lib.kernels import batch_norm, grouped_conv2d
from lib.objective import Objective
from lib.progress import StepProgress
from model_search import Supernet
from nasbench201.networks import Supernet201
from nasbench201.search201 import SearchState201
from operations import drop_path
from regularizers import regularized_gradient
from search.settings import SCRIPT
from search.state import SearchState
from search.train_search import run_epoch, schedule
from spaces import SPACES
from tests.helpers import settings_of_201, weights_after_an_epoch
from tests.supernets import (
    assert_gradients_of,
    assert_single_precision_gradients_of,
    batch_and_weights,
    in_plain_order,
    relative_error,
)

DOUBLE = torch.float64
#: values of FastEdges.together: compute the edges one after another, or together
TOGETHER = [False, True]


def twins(space, auxiliary_skip, together, dtype=DOUBLE, device="cpu", channels=4, layers=5):
    """A supernet, and its plain version with the same weights."""
    torch.manual_seed(0)
    if space == "nasbench201":
        supernet = Supernet201(channels, 2, auxiliary_skip=auxiliary_skip)
    else:
        supernet = Supernet(SPACES[space], channels, layers, auxiliary_skip=auxiliary_skip)
    supernet = supernet.to(device, dtype).to(memory_format=torch.channels_last)
    plain = plain_supernet(supernet)
    for module in supernet.modules():
        if isinstance(module, FastEdges):
            module.together = together
    return supernet, plain


def noise_images(count=24):
    """A data set of random images."""
    torch.manual_seed(0)
    images = ImageSet(torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 10, (count,)))
    return DataSet(images, images, tuple(map(str, range(10))), (0.5,) * 3, (0.25,) * 3, flip=True)


@pytest.mark.parametrize("together", TOGETHER)
@pytest.mark.parametrize(
    ("space", "auxiliary_skip"),
    [*((space, "skip") for space in SPACES), ("s3", "none"), ("s2", "conv1"), ("nasbench201", "conv1")],
)
def test_every_gradient_equals_that_of_the_plain_supernet(space, auxiliary_skip, together, same_noise):
    supernet, plain = twins(space, auxiliary_skip, together, layers=4)
    batch, weights = batch_and_weights(supernet)
    assert_gradients_of(supernet, plain, batch, weights)


@pytest.mark.parametrize("together", TOGETHER)
# The operations of S2 are those of S3 without `none`, and those of S5 almost those of S1.
@pytest.mark.parametrize("space", ["s1", "s3", "s4"])
def test_second_derivatives_equal_those_of_the_plain_supernet(space, together, same_noise):
    supernet, plain = twins(space, "none", together, layers=4)
    batch, weights = batch_and_weights(supernet, images=4, pixels=8)
    for ways in ({"derivatives": "exact"}, {"derivatives": "difference", "epsilon_0": 1e-3}):
        fast, slow = (
            regularized_gradient(Objective(network), weights, batch, "corr", **ways) for network in (supernet, plain)
        )
        measured = in_plain_order(supernet, plain, fast.regularizer_gradient)
        assert relative_error(measured, slow.regularizer_gradient) < 1e-9


@pytest.mark.parametrize("derivatives", ["difference", "exact"])
@pytest.mark.parametrize("method", ["first", "unrolled", "implicit"])
def test_every_kind_of_architecture_gradient_equals_that_of_the_plain_supernet(method, derivatives):
    supernet, plain = twins("s2", "skip", False, layers=3)
    batch, weights = batch_and_weights(supernet)
    valid, _ = batch_and_weights(supernet, images=5)
    totals = []
    for network in (supernet, plain):
        objective, buffers = Objective(network, skip_beta=0.5), [torch.zeros_like(w) for w in network.parameters()]
        if method == "first":
            result = first_order(objective, weights, valid)
        elif method == "unrolled":
            result = unrolled(objective, weights, batch, valid, 0.025, buffers, 0.9, 3e-4, derivatives=derivatives)
        else:
            result = implicit(objective, weights, batch, valid, gamma=0.025, terms=2, derivatives=derivatives)
        totals.append(result.total)
    assert relative_error(*totals) < 1e-9


@pytest.mark.parametrize("together", TOGETHER)
# The operations of S2 are those of S3 without `none`, and those of S5 almost those of S1.
@pytest.mark.parametrize("space", ["s1", "s3", "s4"])
def test_the_gradient_in_single_precision_equals_that_of_the_plain_supernet(space, together, same_noise, monkeypatch):
    supernet, plain = twins(space, "none", together, torch.float32, channels=8, layers=4)
    batch, weights = batch_and_weights(supernet, torch.float32, images=16, pixels=16)
    ours = batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
    assert_single_precision_gradients_of(supernet, plain, ours, batch, weights, monkeypatch)


@pytest.mark.parametrize("method", ["darts-2nd", "lambda-darts", "darts-minus", "fair-darts", "idarts"])
def test_three_steps_of_a_search_equal_those_with_the_plain_supernet(method):
    """Compare two searches in float64, one of them with the plain supernet."""
    settings = SCRIPT.settings_of(
        method, space="s2", layers=4, init_channels=2, batch_size=8, precision="64-true", device="cpu", epochs=2
    )
    searches = [SearchState(settings, noise_images(48), torch.device("cpu")) for _ in range(2)]
    fast, slow = searches
    slow.supernet = plain_supernet(fast.supernet)
    slow.make_optimizers()
    with StepProgress("test", 3, 0) as progress:
        for state in searches:
            run_epoch(state, 1, schedule(settings, 1), progress, "epoch")
    weights = in_plain_order(fast.supernet, slow.supernet, [w.detach() for w in fast.supernet.parameters()])
    assert relative_error(weights, [w.detach() for w in slow.supernet.parameters()]) < 1e-8
    alphas = [list(state.architecture.parameters()) for state in searches]
    assert relative_error(*[[alpha.detach() for alpha in both] for both in alphas]) < 1e-8


def test_drop_path_acts_on_every_operation_except_identities(monkeypatch):
    """The edges together, one after another, and plain agree if the draw depends only on the number of the image."""

    def half(x, probability, edges=1):
        keep = torch.arange(len(x)) % 2
        return x * (keep / (1 - probability))[:, None, None, None]

    for module in ("fast_edges", "model_search"):
        monkeypatch.setattr(f"{module}.drop_path", half)
    for space in ("s1", "s5", "nasbench201"):
        logits = []
        for together in TOGETHER:
            supernet, plain = twins(space, "skip", together, layers=3)
            batch, weights = batch_and_weights(supernet, pixels=8)
            logits.append(supernet(batch.images, weights, 0.5, 0.3))
            torch.testing.assert_close(logits[-1], plain(batch.images, weights, 0.5, 0.3), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(logits[0], supernet(batch.images, weights, 0.0, 0.3))


def test_drop_path_draws_independently_for_each_edge():
    torch.manual_seed(0)
    kept = drop_path(torch.ones(4000, 6, 2, 2), 0.3, edges=3) > 0
    per_edge = kept.unflatten(1, (3, 2)).flatten(2)
    assert torch.equal(per_edge.amin(2), per_edge.amax(2))
    shares = torch.corrcoef(per_edge[:, :, 0].double().T)
    assert (shares - torch.eye(3)).abs().max() < 0.1


@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 2), (7, 1)])
def test_a_depthwise_convolution_and_its_derivatives_equal_those_of_torch(kernel_size, stride, dilation, size):
    torch.manual_seed(0)
    x = torch.randn(3, 4, size, size + 2, dtype=DOUBLE).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 1, kernel_size, kernel_size, dtype=DOUBLE, requires_grad=True)
    measured = grouped_conv2d(x, weight, 4, stride, dilation)
    expected = F.conv2d(x, weight, None, stride, dilation * (kernel_size // 2), dilation, groups=4)
    direction = torch.randn_like(expected)
    first = [torch.autograd.grad(y, (x, weight), direction, create_graph=True) for y in (measured, expected)]
    torch.testing.assert_close(measured, expected)
    torch.testing.assert_close(*first)
    directions = [torch.randn_like(gradient) for gradient in first[0]]
    torch.testing.assert_close(*[torch.autograd.grad(gradients, (x, weight), directions) for gradients in first])


def exactness(norm_of):
    """Relative errors in single precision of a batch norm's output, statistics and gradients.

    The reference is the same batch norm in double precision.
    """
    torch.manual_seed(0)
    x = (torch.randn(64, 16, 32, 32) + 1).contiguous(memory_format=torch.channels_last)
    weight, bias, direction = torch.rand(16) + 0.5, torch.randn(16), torch.randn_like(x)
    results = []
    for dtype in (torch.float32, DOUBLE):
        inputs = [value.to(dtype).requires_grad_() for value in (x, weight, bias)]
        statistics = [torch.zeros(16, dtype=dtype), torch.ones(16, dtype=dtype)]
        output = norm_of(inputs[0], *statistics, *inputs[1:], True)
        results.append([output, *statistics, *torch.autograd.grad(output, inputs, direction.to(dtype))])
    return [relative_error([a.double()], [b]) for a, b in zip(*results, strict=True)]


def test_batch_norm_is_more_accurate_than_that_of_torch_in_channels_last():
    output, mean, variance, to_input, to_weight, to_bias = exactness(batch_norm)
    assert max(output, mean, variance) < 3e-7
    assert max(to_input, to_weight, to_bias) < 1e-5
    assert exactness(F.batch_norm)[0] > 5 * output  # if this fails, torch's is as accurate and ours can be removed


@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_and_its_second_derivatives_equal_those_of_torch(affine):
    torch.manual_seed(0)
    x = torch.randn(8, 4, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    scale = [torch.rand(4, requires_grad=True), torch.rand(4, requires_grad=True)] if affine else [None, None]
    inputs = [x, *(value for value in scale if value is not None)]
    results = []
    for norm_of in (batch_norm, F.batch_norm):
        statistics = [torch.zeros(4), torch.ones(4)]
        output = norm_of(x, *statistics, *scale, True)
        first = torch.autograd.grad(output.pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        results.append([output, *statistics, *first, *second])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)


def small_search(**changes):
    """A search on a few images."""
    settings = SCRIPT.settings_of(
        "lambda-darts", space="s2", layers=4, init_channels=2, batch_size=8, device="cpu", epochs=2, **changes
    )
    return SearchState(settings, noise_images(), torch.device("cpu"))


needs_compiler = pytest.mark.skipif(torch.__version__.startswith("2.10."), reason="torch 2.10 cannot compile cells")


@pytest.mark.slow
@needs_compiler
def test_a_search_with_compiled_cells_equals_one_without(monkeypatch):
    """The backend aot_eager traces and differentiates the cells, but does not generate machine code."""
    monkeypatch.setattr(devices, "COMPILER", "aot_eager")
    for derivatives in ("difference", "exact"):
        settings = settings_of_201("lambda-darts", batch_size=8, derivatives=derivatives, epsilon_0=1e-2)
        plain = SearchState201(settings, noise_images(), torch.device("cpu"))
        compiled = SearchState201(replace(settings, compile=True), noise_images(), torch.device("cpu"))
        assert relative_error(weights_after_an_epoch(compiled), weights_after_an_epoch(plain)) < 1e-4


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("stride", [1, 2])
def test_a_compiled_edge_of_every_operation_equals_an_uncompiled_one(stride):
    torch.manual_seed(0)
    eager = FastEdges([(0, 1)], [SPACES["s5"].cells["normal"][0]], 4, [stride], "skip")
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="aot_eager")
    x, weights = (
        torch.randn(6, 4, 8, 8).contiguous(memory_format=torch.channels_last),
        torch.rand(1, 7).requires_grad_(),
    )
    results = []
    for edge in (eager, compiled):
        _, y = edge([x], weights, 0.0, 0.5)
        results.append([y, *torch.autograd.grad(y.square().sum(), [weights, *edge.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_the_gradients_of_a_cells_nodes_are_contiguous():
    """They are contiguous in channels last; otherwise batch norm's backward pass is several times slower."""
    supernet, _ = twins("s2", "none", False, torch.float32)
    batch, weights = batch_and_weights(supernet, torch.float32)
    seen, edges = [], supernet.cells[0].edges
    forward = edges.forward

    def watched(*arguments):
        states = forward(*arguments)
        for state in states[2:]:
            state.register_hook(lambda g: seen.append(g.is_contiguous(memory_format=torch.channels_last)))
        return states

    edges.forward = watched
    images = batch.images.contiguous(memory_format=torch.channels_last)
    nn.functional.cross_entropy(supernet(images, weights), batch.labels).backward()
    assert seen == [True] * 4
