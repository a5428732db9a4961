"""The candidate operations of the search spaces.

They come from DARTS (Liu et al., ICLR 2019, section 3), RobustDARTS (`noise`; Zela et al., ICLR 2020, section 3) and
NAS-Bench-201 (`nor_conv_*`; Dong and Yang, ICLR 2020, section 2.1).

Every operation maps (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride)). To add an operation, write its class
and add it to OPERATIONS, here or in a plugin: `OPERATIONS["mine"] = Mine`. docs/extending.md has an example.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.kernels import AveragePool, BatchNorm2d, DepthwiseConv2d
from lib.registry import Registry, check_arguments

#: (channels, stride, affine) -> an operation; if `affine`, its batch norms have a scale and a shift
MakeOperation = Callable[[int, int, bool], nn.Module]
#: DARTS's supernets add a batch norm after these classes and their subclasses.
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, AveragePool)


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution, batch norm: the preprocessing of a cell's inputs (1x1) and part of other operations."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, stride: int, padding: int, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(c_in, c_out, kernel_size, stride, padding, bias=False),
            BatchNorm2d(c_out, affine=affine),
        )


class NorConv(ReLUConvBN):
    """`nor_conv_kxk` of NAS-Bench-201: ReLU, convolution, batch norm."""

    def __init__(self, channels: int, kernel_size: int, stride: int, affine: bool) -> None:
        super().__init__(channels, channels, kernel_size, stride, kernel_size // 2, affine)


class DilConv(nn.Sequential):
    """Dilated separable convolution: ReLU, depthwise (dilation 2), pointwise, batch norm."""

    def __init__(self, channels: int, kernel_size: int, stride: int, affine: bool) -> None:
        super().__init__(
            nn.ReLU(),
            DepthwiseConv2d(channels, kernel_size, stride, dilation=2),
            nn.Conv2d(channels, channels, 1, bias=False),
            BatchNorm2d(channels, affine=affine),
        )


class SepConv(nn.Sequential):
    """Separable convolution, applied twice. Only the first has the stride."""

    def __init__(self, channels: int, kernel_size: int, stride: int, affine: bool) -> None:
        layers: list[nn.Module] = []
        for step in (stride, 1):
            layers += [
                nn.ReLU(),
                DepthwiseConv2d(channels, kernel_size, step),
                nn.Conv2d(channels, channels, 1, bias=False),
                BatchNorm2d(channels, affine=affine),
            ]
        super().__init__(*layers)


class Conv7x1(nn.Sequential):
    """ReLU, 1x7 convolution, 7x1 convolution, batch norm (AmoebaNet's `conv_7x1_1x7`)."""

    def __init__(self, channels: int, stride: int, affine: bool) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False),
            nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False),
            BatchNorm2d(channels, affine=affine),
        )


class FactorizedReduce(nn.Module):
    """Halve the resolution: concatenate two stride-2 1x1 convolutions, one of them of the input shifted by a pixel."""

    def __init__(self, c_in: int, c_out: int, affine: bool = True) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(c_in, c_out // 2, 1, bias=False)
        self.conv_2 = nn.Conv2d(c_in, c_out - c_out // 2, 1, bias=False)
        self.bn = BatchNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        even, odd = every_second_pixel(F.relu(x))
        return self.bn(torch.cat([self.conv_1(even), self.conv_2(odd)], dim=1))


def every_second_pixel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels of even rows and columns, and those of odd ones, (B, C, ceil(H / 2), ceil(W / 2)) each.

    An odd height or width is padded with zeros. This replaces the stride of 1x1 convolutions: with fewer than 16
    channels in channels last, oneDNN's strided 1x1 convolution writes past its workspace in the backward pass
    (oneDNN issue 6035, torch 2.14).
    """
    padding = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
    x = F.pad(x, padding) if any(padding) else x
    return x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]


class Zero(nn.Module):
    """`none`: no connection."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class Noise(nn.Module):
    """`noise`: standard normal noise of the output's shape, independent of the input (space S4 of RobustDARTS)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x[:, :, :: self.stride, :: self.stride])


def make_skip(channels: int, stride: int, affine: bool) -> nn.Module:
    """Make `skip_connect`: the identity, or a factorized reduction at stride 2."""
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


def check_operation(make: MakeOperation) -> None:
    """Build an operation with stride 1 and 2, and apply it.

    Raises:
        ValueError: It takes other arguments, is not a module, returns a wrong shape, or changes its input.
    """
    check_arguments(make, "channels", "stride", "affine")
    channels = 16  # as in the smallest networks of the papers
    for stride, size in ((1, 8), (2, 8), (2, 7)):
        x = torch.linspace(-1, 1, 2 * channels * size * size).view(2, channels, size, size)
        before, version = x.clone(), x._version
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            operation = make(channels, stride, False)
            if not isinstance(operation, nn.Module):
                raise ValueError(f"it returns a {type(operation).__name__}, expected a torch.nn.Module")
            y = operation(x)
        if x._version != version or not torch.equal(x, before):
            raise ValueError("it changes its input in place, but other operations read the same input")
        expected = (2, channels, -(-size // stride), -(-size // stride))
        if tuple(y.shape) != expected:
            given = tuple(x.shape)
            raise ValueError(f"with stride {stride} it maps {given} to {tuple(y.shape)}, expected {expected}")


@dataclass(frozen=True)
class Sized:
    """A function that makes operations of a class with a kernel size.

    fast_edges.py reads both to compute the edges of some classes together.
    """

    operation: Callable[[int, int, int, bool], nn.Module]
    kernel_size: int

    def __call__(self, channels: int, stride: int, affine: bool) -> nn.Module:
        return self.operation(channels, self.kernel_size, stride, affine)


def make_none(channels: int, stride: int, affine: bool) -> nn.Module:
    """Make `none`."""
    return Zero(stride)


def make_average_pool(channels: int, stride: int, affine: bool) -> nn.Module:
    """Make `avg_pool_3x3`."""
    return AveragePool(stride)


def make_max_pool(channels: int, stride: int, affine: bool) -> nn.Module:
    """Make `max_pool_3x3`."""
    return nn.MaxPool2d(3, stride, padding=1)


OPERATIONS: Registry[MakeOperation] = Registry(
    "operation",
    {
        "none": make_none,
        "noise": lambda channels, stride, affine: Noise(stride),
        "skip_connect": make_skip,
        "avg_pool_3x3": make_average_pool,
        "max_pool_3x3": make_max_pool,
        "sep_conv_3x3": Sized(SepConv, 3),
        "sep_conv_5x5": Sized(SepConv, 5),
        "sep_conv_7x7": Sized(SepConv, 7),
        "dil_conv_3x3": Sized(DilConv, 3),
        "dil_conv_5x5": Sized(DilConv, 5),
        "conv_7x1_1x7": Conv7x1,
        "nor_conv_1x1": Sized(NorConv, 1),
        "nor_conv_3x3": Sized(NorConv, 3),
    },
    check_operation,
)


def drops(probability: float | Tensor) -> bool:
    """True if drop path may drop anything. A scalar tensor counts as positive: reading it would wait for the device."""
    return isinstance(probability, Tensor) or probability > 0


def drop_path(x: Tensor, probability: float | Tensor, edges: int = 1) -> Tensor:
    """Set each image's features to zero with `probability`, and scale the others by 1 / (1 - probability).

    Drop path is from FractalNet (Larsson et al., ICLR 2017). The draws are independent for each image, as in DARTS, and
    for each edge of x: (B, edges * C, H, W).
    """
    keep = 1.0 - probability
    # Unlike bernoulli_, this draws the same mask for a number and for a scalar tensor.
    mask = (torch.rand(x.shape[0], edges, 1, 1, device=x.device) < keep).to(x.dtype) / keep
    return x * mask.repeat_interleave(x.shape[1] // edges, dim=1)


def make_candidate(name: str, channels: int, stride: int, pool_norm: bool) -> nn.Module:
    """Make a candidate operation of a supernet. Its batch norms have no scale and shift (DARTS's code).

    Args:
        pool_norm: Add a batch norm after pooling.
    """
    operation = OPERATIONS.find(name)(channels, stride, False)
    if pool_norm and isinstance(operation, POOLING):
        return nn.Sequential(operation, BatchNorm2d(channels, affine=False))
    return operation


def make_auxiliary(kind: str, channels: int, stride: int) -> nn.Module | None:
    """Make DARTS-'s auxiliary skip connection (ICLR 2021, section 3.2).

    Args:
        kind: "skip" for an identity, "conv1" for a 1x1 convolution that is initialized as an identity, or "none". At
            stride 2, "skip" and "conv1" are a factorized reduction.
    """
    if kind == "none":
        return None
    if kind == "skip" or stride != 1:
        return make_skip(channels, stride, False)
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    nn.init.dirac_(conv.weight)
    return conv
