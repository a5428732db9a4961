"""Operations, regularizers and perturbations of users: the project calls the registered code."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from architect import Architecture
from lib.cli import InputError
from operations import OPERATIONS, SepConv
from regularizers import ALPHA_REGULARIZERS, REGULARIZERS
from search.state import open_search
from smoothing import SMOOTHING
from spaces import SPACES, Space
from tests.helpers import settings_of, temporary_plugins, weights_after_an_epoch
from tests.supernets import assert_gradients_of, batch_and_weights, fast_and_plain, space_with


@pytest.fixture(autouse=True)
def own_registries():
    """Remove the registry entries of a test afterwards."""
    with temporary_plugins():
        yield


class Doubled(nn.Module):
    """Twice the input, subsampled by the stride."""

    def __init__(self, channels, stride, affine):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return 2 * x[:, :, :: self.stride, :: self.stride]


class WithLayer(SepConv):
    """A subclass of SepConv with another forward pass."""

    def __init__(self, channels, stride, affine):
        super().__init__(channels, 3, stride, affine)

    def forward(self, x):
        return 3 * super().forward(x)


def longer_separable(channels, stride, affine):
    """A SepConv with an appended layer."""
    operation = SepConv(channels, 3, stride, affine)
    operation.append(nn.Softplus())
    return operation


def by_channels(channels, stride, affine):
    """Doubled for wide cells, SepConv for others."""
    return Doubled(channels, stride, affine) if channels > 4 else SepConv(channels, 5, stride, affine)


def hooked(channels, stride, affine):
    """A SepConv with a hook and other initial values."""
    operation = SepConv(channels, 3, stride, affine)
    nn.init.ones_(operation[1].weight)
    operation.register_forward_hook(lambda module, inputs, output: 3 * output)
    return operation


@pytest.mark.parametrize("name", ["lp_pool_3x3", "sep_conv_3x3_se3", "sep_conv_se"])
@pytest.mark.parametrize("make", [Doubled, WithLayer, longer_separable, by_channels, hooked])
def test_a_registered_class_is_used_whatever_its_name(name, make):
    OPERATIONS[name] = make
    SPACES["trap"] = space_with("skip_connect", name, "max_pool_3x3")
    supernet, plain = fast_and_plain(SPACES["trap"])
    used = {type(module) for module in plain.modules() if isinstance(module, (Doubled, SepConv))}
    assert used == {by_channels: {SepConv, Doubled}}.get(make, {make if isinstance(make, type) else SepConv})
    batch, weights = batch_and_weights(supernet)
    assert_gradients_of(supernet, plain, batch, weights)


class Blur(nn.Module):
    """A blur with frozen weights, and a convolution that is unused at stride 1."""

    def __init__(self, channels, stride, affine):
        super().__init__()
        self.stride, self.reduce = stride, nn.Conv2d(channels, channels, 1, stride=2)
        self.kernel = nn.Parameter(torch.full((channels, 1, 3, 3), 1 / 9), requires_grad=False)

    def forward(self, x):
        y = F.conv2d(x, self.kernel, padding=1, groups=len(self.kernel))
        return y if self.stride == 1 else self.reduce(y)


@pytest.mark.parametrize("method", ["lambda-darts", "lambda-darts-exact", "darts-2nd", "idarts"])
@pytest.mark.parametrize("exact", [False, True])
def test_frozen_weights_do_not_change_and_unused_weights_and_inputs_are_allowed(method, exact):
    OPERATIONS["blur"] = Blur
    edges, cell = ((1, 2), (2, 3)), (("skip_connect", "blur"), ("sep_conv_3x3", "blur"))  # state 0 is not used
    SPACES["blurred"] = Space({"normal": cell, "reduce": cell}, edges, keep=1)
    state = open_search(
        settings_of(method, space="blurred", images=64, batch_size=16, **({"derivatives": "exact"} if exact else {}))
    )
    weights_after_an_epoch(state)
    modules = dict(state.supernet.named_modules())
    blurs = [module for module in modules.values() if isinstance(module, Blur)]
    assert blurs and all((blur.kernel == torch.tensor(1 / 9)).all() for blur in blurs)
    assert all(alpha.isfinite().all() and alpha.abs().max() > 0 for alpha in state.architecture.parameters())


def test_a_regularizer_may_ignore_some_inputs_but_must_return_a_scalar_that_depends_on_others():
    REGULARIZERS["first"] = lambda gradients: gradients[0].square().sum()
    ALPHA_REGULARIZERS["normal"] = lambda alpha, p: p["normal"].square().sum()
    settings = settings_of("lambda-darts", reg="first", alpha_reg="normal", images=64, batch_size=16)
    for derivatives in ("difference", "exact"):
        weights_after_an_epoch(open_search(replace(settings, derivatives=derivatives)))
    REGULARIZERS["vector"] = lambda gradients: gradients[0]
    REGULARIZERS["constant"] = lambda gradients: torch.tensor(1.0)
    ALPHA_REGULARIZERS["number"] = lambda alpha, p: 1.0
    ALPHA_REGULARIZERS["constant"] = lambda alpha, p: torch.tensor(1.0)
    SMOOTHING["nothing"] = lambda p, epsilon, gradient, project: None
    for changes, message in (
        ({"reg": "vector"}, r"--reg vector: its function returns \(14, 2\), expected a scalar tensor"),
        ({"reg": "constant"}, "--reg constant: its value does not depend on the gradients"),
        ({"reg": "constant", "derivatives": "exact"}, "--reg constant: its value does not depend"),
        ({"alpha_reg": "number"}, "--alpha_reg number: its function returns float, expected a scalar tensor"),
        ({"alpha_reg": "constant"}, "--alpha_reg constant: its value does not depend on alpha"),
        ({"smooth": "nothing"}, "--smooth nothing: its function returns no mixing weights, expected the shapes normal"),
    ):
        with pytest.raises(InputError, match=message):
            weights_after_an_epoch(open_search(replace(settings, **changes)))


def test_smoothing_keeps_edges_that_are_clipped_to_zero_and_edges_that_are_decided():
    architecture = Architecture({"normal": [3, 3, 2], "reduce": [3, 3, 3]})
    architecture.fixed["normal"][0] = torch.tensor([0.0, 1.0, 0.0])
    architecture.fixed["reduce"][2] = 0  # an edge that DARTS-PT has dropped
    p = {kind: weights.detach() for kind, weights in architecture.mixing_weights().items()}
    nothing = architecture.project({kind: weights - 1 for kind, weights in p.items()})
    moved = architecture.project({kind: torch.ones_like(weights) for kind, weights in p.items()})
    for kind, weights in p.items():
        torch.testing.assert_close(nothing[kind], weights)
    torch.testing.assert_close(moved["normal"], torch.tensor([[0, 1.0, 0], [1 / 3] * 3, [1 / 2, 1 / 2, 0]]))
    torch.testing.assert_close(moved["reduce"], torch.tensor([[1 / 3] * 3, [1 / 3] * 3, [0.0] * 3]))
