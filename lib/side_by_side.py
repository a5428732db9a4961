"""Layers that compute several edges of a supernet's cell at once.

They take and return a list of tensors: either one tensor (B, parts * C, H, W), whose parts lie side by side along the
channels, or one tensor (B, C, H, W) for each part.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.kernels import BatchNorm2d, DepthwiseConv2d, autocasts, batch_norm, grouped_conv2d, layout


def side_by_side(x: Tensor, times: int) -> Tensor:
    """x (B, C, H, W) repeated along its channels, in the same memory format."""
    if layout(x) is torch.channels_last:
        x = x.permute(0, 2, 3, 1)[:, :, :, None]
        return x.expand(-1, -1, -1, times, -1).flatten(3).permute(0, 3, 1, 2)
    return x[:, None].expand(-1, times, -1, -1, -1).flatten(1, 2)


def sum_of_parts(x: Tensor, parts: int) -> Tensor:
    """The sum of the parts of x (B, parts * C, H, W), in the same memory format."""
    if layout(x) is torch.channels_last:
        return x.permute(0, 2, 3, 1).unflatten(3, (parts, -1)).sum(dim=3).permute(0, 3, 1, 2)
    return x.unflatten(1, (parts, -1)).sum(dim=1)


def split(tensor: Tensor, parts: int, dim: int = 0) -> Sequence[Tensor]:
    """The parts of a tensor along a dimension."""
    return [tensor] if parts == 1 else tensor.chunk(parts, dim)


class Norm(BatchNorm2d):
    """Batch norm of several pairs (edge, operation), scaled by the mixing weights: p * (y - mean) / std."""

    def __init__(self, pairs: int, channels: int) -> None:
        super().__init__(pairs * channels, affine=False, track_running_stats=False)
        self.channels = channels

    def forward(self, parts: Sequence[Tensor], weights: Tensor | None = None) -> list[Tensor]:  # type: ignore[override]
        """Normalize each tensor, and scale it by the mixing weights (pairs,)."""
        n = len(parts)
        scales: Sequence[Tensor | None] = [None] * n
        if weights is not None:
            # The kernel of torch requires contiguous memory, even for a single pair.
            scales = split(weights[:, None].expand(-1, self.channels).flatten().contiguous(), n)
        if self.running_mean is None or self.running_var is None:
            return [batch_norm(y, None, None, scale, None, True) for y, scale in zip(parts, scales, strict=True)]
        statistics = split(self.running_mean, n), split(self.running_var, n)
        return [
            batch_norm(y, mean, variance, scale, None, self.training, self.momentum)
            for y, mean, variance, scale in zip(parts, *statistics, scales, strict=True)
        ]


class Depthwise(DepthwiseConv2d):
    """A depthwise convolution for each of several edges."""

    def __init__(self, edges: int, channels: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(edges * channels, kernel_size, stride, dilation)

    def forward(self, parts: Sequence[Tensor]) -> list[Tensor]:  # type: ignore[override]
        kernels = split(self.weight, len(parts))
        stride, dilation = self.stride[0], self.dilation[0]
        return [grouped_conv2d(x, w, len(w), stride, dilation) for x, w in zip(parts, kernels, strict=True)]


class Pointwise(nn.Conv2d):
    """A 1x1 convolution of C channels for each of several pairs."""

    def __init__(self, pairs: int, channels: int) -> None:
        super().__init__(pairs * channels, pairs * channels, 1, groups=pairs, bias=False)

    def forward(self, parts: Sequence[Tensor]) -> list[Tensor]:  # type: ignore[override]
        n = len(parts)
        return [grouped_conv2d(x, w, self.groups // n) for x, w in zip(parts, split(self.weight, n), strict=True)]


class ReLUs(nn.Module):
    """In-place ReLU; the inputs have no other users."""

    def forward(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [F.relu_(part) for part in parts]


def mix(outputs: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """sum_k p_k y_k for several edges that share the outputs y_k (B, C, H, W). weights: (operations * edges,)."""
    last = layout(outputs[0]) is torch.channels_last
    # Autocast would round the mixing weights to bfloat16.
    with torch.autocast(weights.device.type, enabled=False) if autocasts(weights.device) else nullcontext():
        stacked = torch.stack([y.permute(0, 2, 3, 1) if last else y for y in outputs]).to(weights.dtype)
        # (edges, operations) @ (operations, pixels)
        mixed = weights.view(len(outputs), -1).t() @ stacked.flatten(1)
    parts = [y.view(stacked.shape[1:]).to(outputs[0].dtype) for y in mixed]
    return [y.permute(0, 3, 1, 2) for y in parts] if last else parts
