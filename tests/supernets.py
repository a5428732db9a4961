"""Supernets, and comparisons of their gradients, for several test files."""

import torch
import torch.nn.functional as F

from architect import Architecture
from benchmarks.plain import as_plain, plain_supernet
from fast_edges import FastEdges
from lib.batches import Batch
from lib.objective import Objective, norm
from model_search import Supernet
from nasbench201.networks import Supernet201
from regularizers import weight_gradient
from spaces import SPACES, Space

DOUBLE = torch.float64


def problem(space="s2", layers=4, size=8):
    """Return the objective of a small float64 supernet, its random architecture and mixing weights, and two batches."""
    torch.manual_seed(0)
    supernet = Supernet(SPACES[space], init_channels=4, layers=layers).double()
    architecture = Architecture(SPACES[space].counts).double()
    with torch.no_grad():
        for alpha in architecture.parameters():
            alpha.normal_()
    mixing = architecture.mixing_weights()
    weights = [mixing[kind].detach() for kind in supernet.kinds]
    batches = [
        Batch(torch.randn(6, 3, size, size, dtype=torch.float64), torch.randint(0, 10, (6,)), seed) for seed in (1, 2)
    ]
    return Objective(supernet), architecture, weights, *batches


def relative_error(measured, expected):
    return (norm([a - b for a, b in zip(measured, expected, strict=True)]) / norm(expected)).item()


def randomize_alpha(architecture):
    """Set alpha to random values."""
    with torch.no_grad():
        for alpha in architecture.parameters():
            alpha.normal_()


def make_supernet(space, auxiliary_skip="none", channels=4, layers=6):
    torch.manual_seed(0)
    if space == "nasbench201":
        supernet = Supernet201(channels, 2, auxiliary_skip=auxiliary_skip)
    else:
        supernet = Supernet(SPACES[space], channels, layers, auxiliary_skip=auxiliary_skip)
    for module in supernet.modules():
        if isinstance(module, FastEdges):
            module.together = True  # as on a GPU
    return supernet


def mixing_weights_of(supernet, dtype=torch.float32):
    torch.manual_seed(1)
    shapes = [supernet.alpha_shapes[kind] for kind in supernet.kinds]
    return [torch.randn(shape, dtype=dtype).softmax(dim=-1).requires_grad_() for shape in shapes]


def batch_and_weights(supernet, dtype=DOUBLE, device="cpu", images=6, pixels=12):
    torch.manual_seed(1)
    images = torch.randn(images, 3, pixels, pixels, dtype=dtype, device=device)
    batch = Batch(images, torch.randint(0, 10, (len(images),), device=device), 5)
    weights = [torch.rand(supernet.alpha_shapes[kind], dtype=dtype, device=device) for kind in supernet.kinds]
    return batch, weights


def in_plain_order(supernet, plain, gradients):
    """Return the gradients of a supernet's parameters in the shapes and order of its plain twin's parameters."""
    names = [name for name, _ in supernet.named_parameters()]
    cut = as_plain(supernet, dict(zip(names, gradients, strict=True)))
    return [cut[name] for name, _ in plain.named_parameters()]


def assert_gradients_of(supernet, plain, batch, weights):
    """Assert that a supernet and its plain twin have the same loss and gradients in float64."""
    fast, slow = (
        weight_gradient(Objective(network, skip_beta=0.3), weights, batch, layers=True) for network in (supernet, plain)
    )
    assert abs(fast.loss - slow.loss) < 1e-12
    pairs = [*zip(in_plain_order(supernet, plain, fast.gradient), slow.gradient, strict=True)]
    pairs += [*zip(fast.layer_gradients, slow.layer_gradients, strict=True)]
    for measured, expected in pairs:
        # Batch norm makes the loss invariant to some weights. Their gradient is pure rounding error.
        assert norm([measured - expected]) < 1e-10 * norm([expected]) + 1e-13


def assert_single_precision_gradients_of(supernet, plain, ours, batch, weights, monkeypatch):
    """Assert that a supernet and its plain twin have close gradients in float32, on `ours` and `batch` respectively.

    The two batches hold the same images in different memory formats.
    """
    # Rounding may switch a ReLU, which changes the gradients of a small supernet by 1e-3 or more. Softplus has no kink.
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: F.softplus(x))
    monkeypatch.setattr(F, "relu_", F.softplus)
    weights = [weight.softmax(dim=-1) for weight in weights]
    fast = weight_gradient(Objective(supernet), weights, ours, layers=True)
    slow = weight_gradient(Objective(plain), weights, batch, layers=True)
    assert relative_error(in_plain_order(supernet, plain, fast.gradient), slow.gradient) < 1e-3
    assert relative_error(fast.layer_gradients, slow.layer_gradients) < 1e-3


def space_with(*candidates):
    """Return a space with the edges of DARTS and these candidates on each edge."""
    edges = SPACES["s2"].edges
    return Space({kind: (candidates,) * len(edges) for kind in ("normal", "reduce")}, edges, keep=2)


def fast_and_plain(space):
    """Return a float64 supernet that takes the fast path as on a GPU, and its plain twin."""
    torch.manual_seed(0)
    supernet = Supernet(space, init_channels=4, layers=5).double()
    for module in supernet.modules():
        if isinstance(module, FastEdges):
            module.together = True
    return supernet, plain_supernet(supernet)


UNEVEN = ("none", "skip_connect", "sep_conv_3x3"), ("skip_connect", "dil_conv_3x3"), ("max_pool_3x3",)


def uneven_space(keep=2):
    edges = ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    cell = (UNEVEN[0], UNEVEN[1], UNEVEN[2], UNEVEN[0], UNEVEN[1])
    return Space({"normal": cell, "reduce": cell[::-1]}, edges, keep)
