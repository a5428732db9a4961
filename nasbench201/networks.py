"""The networks of NAS-Bench-201 (Dong and Yang, ICLR 2020, section 2.2): the supernet, and the network of one cell.

Both begin with a 3x3 convolution to C channels. Three stages of N cells with C, 2C and 4C channels follow, with a
residual block of stride 2 between stages. Batch norm, ReLU, global average pooling and a linear layer come last. The
benchmark has C = 16 and N = 5.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fast_edges import FastEdges
from lib.kernels import BatchNorm2d, without_running_statistics
from model import NETWORKS
from model_search import AnySupernet, MixedEdges
from nasbench201.cells import Cell201, parse_cell
from operations import OPERATIONS, ReLUConvBN, drop_path
from spaces import SPACES

SPACE = SPACES["nasbench201"]


class ResidualBlock(nn.Module):
    """ReLU, convolution and batch norm, twice (stride 2 and 1), plus a shortcut of pooling and a 1x1 convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(ReLUConvBN(c_in, c_out, 3, 2, 1), ReLUConvBN(c_out, c_out, 3, 1, 1))
        # ceil_mode keeps an odd last row or column, so that both branches have the same size.
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), nn.Conv2d(c_in, c_out, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convolutions(x) + self.shortcut(x)


class Skeleton(nn.Module):
    """The network around the cells.

    Args:
        make_cell: A function that makes a cell with a number of channels.
        init_channels: C of the first stage.
        cells_per_stage: N.
        classes: The number of classes.
        in_channels: The number of channels of the images.
    """

    def __init__(
        self,
        make_cell: Callable[[int], nn.Module],
        init_channels: int,
        cells_per_stage: int,
        classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        widths = [init_channels, 2 * init_channels, 4 * init_channels]
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, init_channels, 3, padding=1, bias=False), BatchNorm2d(init_channels)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(make_cell(channels) for _ in range(cells_per_stage)) for channels in widths
        )
        self.reductions = nn.ModuleList(ResidualBlock(narrow, wide) for narrow, wide in pairwise(widths))
        self.norm = BatchNorm2d(widths[-1])
        self.classifier = nn.Linear(widths[-1], classes)

    def run(self, images: Tensor, cell: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Compute the logits (B, classes) of images (B, channels, H, W); `cell` applies a cell to its input."""
        x = self.stem(images)
        for number, stage in enumerate(self.stages):
            if number:
                x = self.reductions[number - 1](x)
            for layer in stage.children():
                x = cell(layer, x)
        return self.classifier(F.relu(self.norm(x)).mean(dim=(2, 3)))


class MixedCell(nn.Module):
    """A cell with all edges; its output is its last node."""

    def __init__(
        self, channels: int, auxiliary_skip: str, edges_class: type[FastEdges] | type[MixedEdges] = FastEdges
    ) -> None:
        super().__init__()
        strides = [1] * len(SPACE.edges)
        self.edges = edges_class(SPACE.edges, SPACE.cells["cell"], channels, strides, auxiliary_skip, pool_norm=False)

    def forward(self, x: Tensor, weights: Tensor, drop_path_prob: float | Tensor, skip_beta: float | Tensor) -> Tensor:
        return self.edges([x], weights, drop_path_prob, skip_beta)[-1]


class Supernet201(Skeleton, AnySupernet):
    """The weight-sharing supernet: a plain function of its mixing weights, like the supernet of DARTS cells.

    Args:
        init_channels: C of the first stage.
        cells_per_stage: N.
        classes: The number of classes.
        in_channels: The number of channels of the images.
        auxiliary_skip: "skip" or "conv1" for DARTS-'s auxiliary skip connection on every edge, or "none".
        edges_class: FastEdges, or MixedEdges, which has a module for each operation of each edge.
    """

    def __init__(
        self,
        init_channels: int = 16,
        cells_per_stage: int = 5,
        classes: int = 10,
        in_channels: int = 3,
        auxiliary_skip: str = "none",
        edges_class: type[FastEdges] | type[MixedEdges] = FastEdges,
    ) -> None:
        super().__init__(
            lambda channels: MixedCell(channels, auxiliary_skip, edges_class),
            init_channels,
            cells_per_stage,
            classes,
            in_channels,
        )
        self.kinds, self.alpha_shapes = ["cell"] * (3 * cells_per_stage), SPACE.alpha_shapes  # one alpha for all cells
        without_running_statistics(self)

    def forward(
        self,
        images: Tensor,
        weights: Sequence[Tensor],
        drop_path_prob: float | Tensor = 0.0,
        skip_beta: float | Tensor = 0.0,
    ) -> Tensor:
        """Compute the logits (B, classes) of images (B, channels, H, W).

        Args:
            weights: The mixing weights of each layer, (6, 5) each.
            skip_beta: The weight of the auxiliary skip connections.
        """
        layers = iter(weights)
        return self.run(images, lambda cell, x: cell(x, next(layers), drop_path_prob, skip_beta))


class DiscreteCell(nn.Module):
    """A cell with one operation on each edge; an edge of `none` is left out."""

    def __init__(self, cell: Cell201, channels: int) -> None:
        super().__init__()
        self.edges = cell.edges()
        self.operations = nn.ModuleList(OPERATIONS[edge.operation](channels, 1, True) for edge in self.edges)

    def forward(self, x: Tensor, drop_path_prob: float) -> Tensor:
        states = [x]
        for target in range(1, 4):
            total = x.new_zeros(()).expand_as(x)
            for edge, operation in zip(self.edges, self.operations, strict=True):
                if edge.target == target:
                    output = operation(states[edge.source])
                    if self.training and drop_path_prob > 0 and not isinstance(operation, nn.Identity):
                        output = drop_path(output, drop_path_prob)
                    total = total + output
            states.append(total)
        return states[-1]


class Network201(Skeleton):
    """The network of one cell.

    Args:
        cell: The cell of all layers.
        init_channels: C of the first stage.
        cells_per_stage: N.
        classes: The number of classes.
        in_channels: The number of channels of the images.
    """

    def __init__(
        self, cell: Cell201, init_channels: int = 16, cells_per_stage: int = 5, classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__(
            lambda channels: DiscreteCell(cell, channels), init_channels, cells_per_stage, classes, in_channels
        )

    def forward(self, images: Tensor, drop_path_prob: float = 0.0) -> tuple[Tensor, None]:
        """Compute the logits (B, classes); None stands in place of auxiliary logits."""
        return self.run(images, lambda cell, x: cell(x, drop_path_prob)), None


def _of_checkpoint(about: dict[str, Any]) -> Network201:
    settings, channels = about["settings"], about["preprocessing"]["channels"]
    sizes = (settings["init_channels"], settings["cells_per_stage"], len(about["classes"]))
    return Network201(parse_cell(about["genotype"]["arch"]), *sizes, channels)


NETWORKS["nasbench201"] = _of_checkpoint
