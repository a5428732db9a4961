"""The weight-sharing supernet of DARTS cells (DARTS, ICLR 2019, sections 2.1 and 2.2).

The supernet is a plain function of its mixing weights: `logits = supernet(images, weights)` with one
(edges x operations) tensor for each layer. Whatever makes the weights (softmax, sigmoid, masks, perturbations) and
whatever is differentiated with respect to them stays outside.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fast_edges import FastEdges
from lib.kernels import BatchNorm2d, concatenate, without_running_statistics
from operations import FactorizedReduce, ReLUConvBN
from spaces import EDGES, NODES, Candidates, Space


class Cell(nn.Module):
    """A cell with every edge in place; the output concatenates its intermediate nodes: (B, 4C, H, W)."""

    def __init__(
        self,
        candidates: Candidates,
        c_prev_prev: int,
        c_prev: int,
        channels: int,
        reduction: bool,
        reduction_prev: bool,
        auxiliary_skip: str,
    ) -> None:
        super().__init__()
        self.preprocess0 = (
            FactorizedReduce(c_prev_prev, channels, affine=False)
            if reduction_prev
            else ReLUConvBN(c_prev_prev, channels, 1, 1, 0, affine=False)
        )
        self.preprocess1 = ReLUConvBN(c_prev, channels, 1, 1, 0, affine=False)
        strides = [2 if reduction and source < 2 else 1 for source, _ in EDGES]
        self.edges = FastEdges(EDGES, candidates, channels, strides, auxiliary_skip)

    def forward(
        self, s0: Tensor, s1: Tensor, weights: Tensor, drop_path_prob: float | Tensor, skip_beta: float | Tensor
    ) -> Tensor:
        inputs = [self.preprocess0(s0), self.preprocess1(s1)]
        states = self.edges(inputs, weights, drop_path_prob, skip_beta)
        return concatenate(states[-NODES:])


def cell_kinds(layers: int) -> list[str]:
    """The kind of each of the `layers` cells: those at layers // 3 and 2 * layers // 3 are reduction cells."""
    reductions = {layers // 3, 2 * layers // 3}
    return ["reduce" if layer in reductions else "normal" for layer in range(layers)]


class AnySupernet(nn.Module):
    """What a search needs of a supernet in any space.

    Attributes:
        kinds: the kind of cell of each layer, in the order of the mixing weights.
        alpha_shapes: (edges, operations) of each kind of cell.
        classifier: the last layer, whose type is that of all weights.
    """

    kinds: list[str]
    alpha_shapes: dict[str, tuple[int, int]]
    classifier: nn.Linear


class Supernet(AnySupernet):
    """The supernet of a space.

    Args:
        space: the candidate operations of every edge.
        init_channels: C of the first cells; each reduction cell doubles it.
        layers: number of cells.
        classes: number of classes.
        in_channels: channels of the images.
        auxiliary_skip: "skip" or "conv1" for DARTS-'s auxiliary skip connection on every edge, or "none".
    """

    def __init__(
        self,
        space: Space,
        init_channels: int = 16,
        layers: int = 8,
        classes: int = 10,
        in_channels: int = 3,
        auxiliary_skip: str = "none",
    ) -> None:
        super().__init__()
        self.kinds = cell_kinds(layers)
        self.alpha_shapes = {kind: (len(EDGES), len(cells[0])) for kind, cells in space.cells.items()}
        channels, width = init_channels, 3 * init_channels
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            BatchNorm2d(width),
        )
        self.cells = nn.ModuleList()
        c_prev_prev, c_prev, previous = width, width, "normal"
        for kind in self.kinds:
            channels *= 2 if kind == "reduce" else 1
            reductions = (kind == "reduce", previous == "reduce")
            self.cells.append(Cell(space.cells[kind], c_prev_prev, c_prev, channels, *reductions, auxiliary_skip))
            c_prev_prev, c_prev, previous = c_prev, NODES * channels, kind
        self.classifier = nn.Linear(c_prev, classes)
        without_running_statistics(self)

    def forward(
        self,
        images: Tensor,
        weights: Sequence[Tensor],
        drop_path_prob: float | Tensor = 0.0,
        skip_beta: float | Tensor = 0.0,
    ) -> Tensor:
        """Logits (B, classes) of images (B, channels, H, W) under one (edges, operations) tensor of weights a layer.

        `skip_beta` is the weight of the auxiliary skip connections, where the supernet has them.
        """
        s0 = s1 = self.stem(images)
        for cell, layer_weights in zip(self.cells, weights, strict=True):
            s0, s1 = s1, cell(s0, s1, layer_weights, drop_path_prob, skip_beta)
        return self.classifier(s1.mean(dim=(2, 3)))
