"""Replacements for layers that torch computes slowly, inexactly or wrongly on some devices.

Grouped convolutions. On a CPU with channels last, torch's gradients of a depthwise convolution are slow if the kernel
is dilated or larger than 3x3: they take up to twenty times as long as the forward pass. The bfloat16 weight gradient
of a dilated kernel is also wrong. Here, the input gradient is a depthwise convolution with the flipped kernel. The
weight gradient is computed in strips of three columns, for which torch is fast. Dilation 2 is reduced to dilation 1 by
separating even and odd pixels. On any device, torch's second derivative of a grouped convolution loops over the groups.
The derivatives of the three autograd functions below are again these functions, so a derivative of any order is one
call.

Batch norm. On a CPU with channels last, torch adds up the pixels of a channel one by one in single precision. The
errors are 1e-6 to 1e-5, a hundred times those with contiguous memory, and grow to 1e-2 in a supernet's gradient behind
ReLUs. Here, each column of pixels is summed separately.

Average pooling. On CUDA with channels last, torch's gradient with padding is wrong (pytorch issue 188344).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layout(x: Tensor) -> torch.memory_format:
    """The memory format of x (B, C, H, W); x may be a slice of a dense tensor."""
    return torch.channels_last if x.stride(1) == 1 else torch.contiguous_format


def autocasts(device: torch.device) -> bool:
    """True if autocast is active for this device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that keeps the height and width, or halves them at stride 2.

    Args:
        channels: Channels of input and output.
        kernel_size: An odd number.
        stride: 1 or 2.
        dilation: 1 or 2.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(channels, channels, kernel_size, stride, padding, dilation, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return grouped_conv2d(x, self.weight, self.groups, self.stride[0], self.dilation[0])


_second_derivatives = False


@contextmanager
def differentiated_twice() -> Iterator[None]:
    """Let grouped convolutions use the autograd functions below, whose second derivatives are fast.

    On a GPU, these functions add Python overhead.
    """
    global _second_derivatives
    before, _second_derivatives = _second_derivatives, True
    try:
        yield
    finally:
        _second_derivatives = before


def grouped_conv2d(x: Tensor, weight: Tensor, groups: int, stride: int = 1, dilation: int = 1) -> Tensor:
    """`F.conv2d` of x (B, C, H, W) with weight (C, C / groups, k, k), k odd, padded by dilation * (k // 2)."""
    if stride == dilation == 2:
        # Only every second pixel is read, so this is an undilated convolution of these pixels.
        x, stride, dilation = x[:, :, ::2, ::2].contiguous(memory_format=layout(x)), 1, 1
    if autocasts(x.device):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    form = _Form(x.shape, weight.shape, stride, dilation, groups)
    if (_second_derivatives and groups > 1) or form.is_fast_here(x):
        return _Convolution.apply(x, weight, form)
    return form.convolve(x, weight)


class _Form(NamedTuple):
    """The shapes, stride, dilation and groups of a convolution y = x * w.

    <g, x * w> is linear in each of g, x and w. The three methods are its derivatives in g, x and w.
    """

    x_shape: torch.Size
    weight_shape: torch.Size
    stride: int
    dilation: int
    groups: int

    @property
    def padding(self) -> int:
        return self.dilation * (self.weight_shape[-1] // 2)

    @property
    def depthwise(self) -> bool:
        return self.groups == self.weight_shape[0]

    def is_fast_here(self, x: Tensor) -> bool:
        """True if the gradients below are faster than torch's."""
        return (
            x.device.type == "cpu"
            and self.depthwise
            and self.stride == 1
            and x.dtype is not torch.float16
            and x.is_contiguous(memory_format=torch.channels_last)
        )

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """y = x * w."""
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def input_gradient(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """The derivative of <gradient, x * w> in x."""
        if self.is_fast_here(gradient):
            return self.convolve(gradient, weight.flip(2, 3))
        return self._library(gradient, _empty(gradient, self.x_shape), weight, [True, False, False])[0]

    def weight_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The derivative of <gradient, x * w> in w."""
        if self.is_fast_here(x) and self.dilation == 1:
            return _correlate(x, gradient, self.weight_shape[-1])
        if self.is_fast_here(x) and self.dilation == 2:
            parities = _correlate(_sort_parities(x), _sort_parities(gradient), self.weight_shape[-1])
            return parities.unflatten(0, (2, -1)).sum(dim=0)
        return self._library(gradient, x, _empty(x, self.weight_shape), [False, True, False])[1]

    def _library(self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Sequence[Tensor]:
        numbers = ([self.stride] * 2, [self.padding] * 2, [self.dilation] * 2, False, [0, 0], self.groups)
        return torch.ops.aten.convolution_backward(gradient, x, weight, None, *numbers, wanted)


def _empty(like: Tensor, shape: torch.Size) -> Tensor:
    """An uninitialized tensor; torch reads only its shape and memory format."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout(like))


class _Convolution(torch.autograd.Function):
    """`_Form.convolve` as an autograd function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, form: _Form) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.form = form
        return form.convolve(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=layout(x))
        return (
            _InputGradient.apply(gradient, weight, ctx.form) if ctx.needs_input_grad[0] else None,
            _WeightGradient.apply(x, gradient, ctx.form) if ctx.needs_input_grad[1] else None,
            None,
        )


class _InputGradient(torch.autograd.Function):
    """`_Form.input_gradient` as an autograd function."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, form: _Form) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.form = form
        return form.input_gradient(gradient, weight)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gradient, weight = ctx.saved_tensors
        direction = direction.contiguous(memory_format=layout(gradient))
        return (
            _Convolution.apply(direction, weight, ctx.form) if ctx.needs_input_grad[0] else None,
            _WeightGradient.apply(direction, gradient, ctx.form) if ctx.needs_input_grad[1] else None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    """`_Form.weight_gradient` as an autograd function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor, form: _Form) -> Tensor:
        ctx.save_for_backward(x, gradient)
        ctx.form = form
        return form.weight_gradient(x, gradient)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, gradient = ctx.saved_tensors
        return (
            _InputGradient.apply(gradient, direction, ctx.form) if ctx.needs_input_grad[0] else None,
            _Convolution.apply(x, direction, ctx.form) if ctx.needs_input_grad[1] else None,
            None,
        )


def _correlate(x: Tensor, y: Tensor, kernel_size: int) -> Tensor:
    """The correlation c(d) = sum_p x(p + d) y(p) of each channel, (C, 1, k, k), in strips of up to three columns."""
    if kernel_size <= 3:
        return _narrow(x, y, (kernel_size, kernel_size), kernel_size // 2)
    width = x.shape[3]
    padded = F.pad(x, (kernel_size // 2,) * 4)
    strips = []
    for left in range(0, kernel_size, 3):
        columns = min(3, kernel_size - left)
        strip = padded[:, :, :, left : left + width + columns - 1].contiguous(memory_format=torch.channels_last)
        strips.append(_narrow(strip, y, (kernel_size, columns), 0))
    return torch.cat(strips, dim=3)


def _narrow(x: Tensor, y: Tensor, kernel_size: tuple[int, int], padding: int) -> Tensor:
    """torch's weight gradient of a depthwise convolution of x. y is the gradient of the output."""
    weight = x.new_empty(x.shape[1], 1, *kernel_size)
    numbers = ([1, 1], [padding] * 2, [1, 1], False, [0, 0], x.shape[1])
    return torch.ops.aten.convolution_backward(y, x, weight, None, *numbers, [False, True, False])[1]


def _sort_parities(x: Tensor) -> Tensor:
    """Separate even and odd rows into two images, and even and odd columns into two channels.

    (B, C, H, W) becomes (2B, 2C, H/2, W/2). An odd H or W is first padded with zeros.
    """
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    batch, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2 * channels)
    return x.transpose(1, 2).reshape(2 * batch, height // 2, width // 2, 2 * channels).permute(0, 3, 1, 2)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` of x (B, C, H, W); weight, bias and the running statistics are (C,) or None."""
    fast = (
        training
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[2] * x.shape[3] > 1
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    if not fast:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    output, mean, variance = _BatchNorm.apply(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    return output


class _BatchNorm(torch.autograd.Function):
    """Batch norm with the batch's statistics: the output, mean and variance."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, channels, height, width = x.shape
        columns = x.permute(0, 2, 3, 1).reshape(batch, height, 1, width * channels).permute(0, 3, 1, 2)
        means, variances = torch.ops.aten.batch_norm_update_stats(columns, None, None, 0.0)
        means, variances = means.view(width, channels), variances.view(width, channels)
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        output = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        statistics = (None, None, mean, inverse_std, True, ctx.eps)
        wanted = list(ctx.needs_input_grad[:3])
        return *torch.ops.aten.native_batch_norm_backward(gradient, x, weight, *statistics, wanted), None


class BatchNorm2d(nn.BatchNorm2d):
    """`batch_norm` as a module."""

    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, momentum, eps = self.weight, self.bias, self.momentum, self.eps
        if self.running_mean is None or self.running_var is None:
            return batch_norm(x, None, None, weight, bias, True, momentum, eps)
        return batch_norm(x, self.running_mean, self.running_var, weight, bias, self.training, momentum, eps)


def without_running_statistics(network: nn.Module) -> None:
    """Make the batch norms of a network use the statistics of the batch in every mode.

    In a supernet, running averages would mix the statistics of different alpha and fit none of them.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


class _Concatenate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.sizes, ctx.layout = [part.shape[1] for part in parts], layout(parts[0])
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        parts = gradient.split(ctx.sizes, dim=1)
        return tuple(part.contiguous(memory_format=ctx.layout) for part in parts)


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along the channels, with contiguous gradients, for which batch norm's backward pass is fast."""
    return _Concatenate.apply(*parts)


def pools_well(x: Tensor, stride: int) -> bool:
    """True if torch's average pooling and its gradient are correct and fast for x."""
    return layout(x) is torch.contiguous_format or (stride != 1 and x.device.type == "cpu")


def average_pool(x: Tensor, stride: int) -> Tensor:
    """3x3 average pooling of x (B, C, H, W) that does not count the padding.

    With channels last it is a depthwise convolution: on CUDA because torch's gradient is wrong, on a CPU for speed (at
    stride 1).
    """
    if pools_well(x, stride):
        return F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)
    sums = grouped_conv2d(x, x.new_ones(x.shape[1], 1, 3, 3), x.shape[1], stride)
    ones = sums.new_ones(1, 1, *x.shape[2:])
    return sums / F.avg_pool2d(ones, 3, stride, padding=1, divisor_override=1)  # pixels in each window


class AveragePool(nn.Module):
    """`average_pool` as a module."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return average_pool(x, self.stride)
