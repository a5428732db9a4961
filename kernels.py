"""Layers that the library computes slowly, or inexactly, on a CPU in the layout of channels last; elsewhere its own.

Depthwise convolution. The library's gradients take up to twenty times the forward pass, with a dilation or a kernel
over 3x3. But the gradient in the input is a depthwise convolution too, with the flipped kernel; that in the weight
splits into those of kernels of three columns, which the library is fast at; and a dilation of 2 is none where even and
odd pixels are sorted apart. The two functions below are each other's derivatives, so all orders are fast.

Batch norm. The library adds up a channel's pixels one by one in single precision, which leaves errors of 1e-6 to 1e-5,
a hundred times those of the other layout; behind ReLUs these become 1e-2 in a supernet's gradient. Here every column
of pixels is added up on its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution whose padding keeps the size, or its half at stride 2.

    Args:
        channels: of input and output.
        kernel_size: odd.
        stride: 1 or 2.
        dilation: 1 or 2.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(channels, channels, kernel_size, stride, padding, dilation, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.stride[0], self.dilation[0])


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """`F.conv2d` of x (B, C, H, W) with weight (C, 1, k, k), k odd, padded by dilation * (k // 2)."""
    if stride == dilation == 2:
        # Only every second pixel is looked at: a dense convolution on these.
        x, stride, dilation = x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last), 1, 1
    fast = (
        stride == 1
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
    )
    if fast:
        return _Convolve.apply(x, weight, dilation)
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, None, stride, padding, dilation, groups=len(weight))


class _Convolve(torch.autograd.Function):
    """y(p) = sum_d weight(d) x(p + d), channel by channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return F.conv2d(x, weight, None, 1, dilation * (weight.shape[-1] // 2), dilation, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight), dilation = ctx.saved_tensors, ctx.dilation
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return (
            _Convolve.apply(gradient, weight.flip(2, 3), dilation) if ctx.needs_input_grad[0] else None,
            _Correlate.apply(x, gradient, weight.shape[-1], dilation) if ctx.needs_input_grad[1] else None,
            None,
        )


class _Correlate(torch.autograd.Function):
    """c(d) = sum_p x(p + d) y(p), channel by channel: the gradient of `_Convolve` in its weight, (C, 1, k, k)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, kernel_size: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.dilation = dilation
        height, width = x.shape[2:]
        if dilation == 1:
            return _correlate(x, y, kernel_size)
        if dilation == 2 and height % 2 == width % 2 == 0:
            parities = _correlate(_sort_parities(x), _sort_parities(y), kernel_size)
            return parities.unflatten(0, (2, -1)).sum(dim=0)
        return _library(x, y, (kernel_size, kernel_size), dilation, dilation * (kernel_size // 2))

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x, y), dilation = ctx.saved_tensors, ctx.dilation
        return (
            _Convolve.apply(y, direction.flip(2, 3), dilation) if ctx.needs_input_grad[0] else None,
            _Convolve.apply(x, direction, dilation) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def _correlate(x: Tensor, y: Tensor, kernel_size: int) -> Tensor:
    """The correlation without dilation, in strips of at most three columns of offsets."""
    if kernel_size <= 3:
        return _library(x, y, (kernel_size, kernel_size), 1, kernel_size // 2)
    width = x.shape[3]
    padded = F.pad(x, (kernel_size // 2,) * 4)
    strips = []
    for left in range(0, kernel_size, 3):
        columns = min(3, kernel_size - left)
        strip = padded[:, :, :, left : left + width + columns - 1].contiguous(memory_format=torch.channels_last)
        strips.append(_library(strip, y, (kernel_size, columns), 1, 0))
    return torch.cat(strips, dim=3)


def _library(x: Tensor, y: Tensor, kernel_size: tuple[int, int], dilation: int, padding: int) -> Tensor:
    """The library's gradient of a depthwise convolution of x in its weight, y being that in its output."""
    channels = x.shape[1]
    weight = x.new_empty(channels, 1, *kernel_size)
    numbers = ([1, 1], [padding] * 2, [dilation] * 2, False, [0, 0], channels)
    return torch.ops.aten.convolution_backward(y, x, weight, None, *numbers, [False, True, False])[1]


def _sort_parities(x: Tensor) -> Tensor:
    """(B, C, H, W) to (2B, 2C, H/2, W/2): even and odd rows become images, even and odd columns channels."""
    batch, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2 * channels)
    return x.transpose(1, 2).reshape(2 * batch, height // 2, width // 2, 2 * channels).permute(0, 3, 1, 2)


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` of x (B, C, H, W); weight, bias and the running statistics are (C,)."""
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
    """`batch_norm` as a module.

    Attributes:
        synchronized: in training, take the statistics of all processes' images together. For CPUs; on GPUs torch's
            SyncBatchNorm takes this module's place.
    """

    synchronized = False
    # torch's may be without these; this one is not.
    running_mean: Tensor
    running_var: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        if self.synchronized and self.training:
            return synchronized_batch_norm(x, *statistics, self.momentum, self.eps)
        return batch_norm(x, *statistics, self.training, self.momentum, self.eps)


def synchronized_batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`batch_norm` in training with the statistics of all processes' images together, unequal numbers of them allowed.

    All processes must call this together, in the forward and in the backward pass.
    """
    dtype, x = x.dtype, x if x.dtype == torch.float64 else x.float()
    own = x.new_tensor(float(x.numel() // x.shape[1]))
    count = _AllReduce.apply(own)
    own_variance, own_mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    mean = _AllReduce.apply(own_mean * (own / count))
    variance = _AllReduce.apply((own_variance + (own_mean - mean).square()) * (own / count))
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (count / (count - 1)), momentum)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return (x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(dtype)


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllReduce.apply(gradient)


class _Concatenate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.sizes = [part.shape[1] for part in parts]
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        parts = gradient.split(ctx.sizes, dim=1)
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """`torch.cat` along the channels, whose gradients are contiguous: batch norm's backward is slow on any others."""
    return _Concatenate.apply(*parts)


def average_pool(x: Tensor, stride: int) -> Tensor:
    """3x3 average pooling of x (B, C, H, W), padding not counted; on a CPU as a depthwise convolution, for speed."""
    if stride != 1 or x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
        return F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)
    sums = depthwise_conv2d(x, x.new_ones(x.shape[1], 1, 3, 3))
    # How many of a window's rows, or columns, lie within the image.
    rows, columns = (
        x.new_tensor([3 - (place == 0) - (place == size - 1) for place in range(size)]) for size in x.shape[2:]
    )
    return sums / (rows[:, None] * columns)


class AveragePool(nn.Module):
    """`average_pool` as a module."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return average_pool(x, self.stride)
