"""The weight-sharing supernet of DARTS cells (DARTS, ICLR 2019, sections 2.1 and 2.2).

The supernet is a plain function of its mixing weights: `logits = supernet(images, weights)`, with one
(edges, operations) tensor for each layer. Softmax, sigmoid, masks, perturbations and all derivatives with respect to
the mixing weights are computed outside the supernet.

`MixedOp` and `MixedEdges` define what a cell computes. By default a supernet uses `fast_edges.FastEdges` instead of
`MixedEdges`. It computes the same faster.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fast_edges import FastEdges
from lib.kernels import BatchNorm2d, concatenate, without_running_statistics
from operations import FactorizedReduce, ReLUConvBN, drop_path, drops, make_auxiliary, make_candidate
from spaces import Candidates, Space, cell_kinds


class MixedOp(nn.Module):
    """The mixed operation of one edge, sum_k p_k op_k(x) (DARTS, equation 2).

    With an auxiliary skip connection it is sum_k p_k op_k(x) + beta * aux(x) (DARTS-, equation 5).

    Args:
        candidates: The names of the operations. If other edges have more operations, further places of p are ignored.
        pool_norm: Add a batch norm after pooling, as in DARTS. NAS-Bench-201 has none.
    """

    def __init__(
        self,
        candidates: Sequence[str],
        channels: int,
        stride: int,
        auxiliary_skip: str = "none",
        pool_norm: bool = True,
    ) -> None:
        super().__init__()
        self.operations = nn.ModuleList(make_candidate(name, channels, stride, pool_norm) for name in candidates)
        self.auxiliary = make_auxiliary(auxiliary_skip, channels, stride)

    def forward(
        self, x: Tensor, p: Tensor, drop_path_prob: float | Tensor = 0.0, skip_beta: float | Tensor = 0.0
    ) -> Tensor:  # x: (B, C, H, W), p: (operations,)
        outputs = []
        for weight, operation in zip(p.unbind()[: len(self.operations)], self.operations, strict=True):
            output = operation(x)
            if self.training and drops(drop_path_prob) and not isinstance(operation, nn.Identity):
                output = drop_path(output, drop_path_prob)
            outputs.append(weight * output)
        if self.auxiliary is not None:
            outputs.append(skip_beta * self.auxiliary(x))
        return sum(outputs[1:], outputs[0])


class MixedEdges(nn.Module):
    """The edges of a cell, each a `MixedOp`. A node is the sum of the edges into it.

    Args:
        edges: (source state, target state) of each edge, in the order of the rows of the mixing weights.
        candidates: The operations of each edge.
        strides: The stride of each edge, 1 or 2.
        auxiliary_skip: "skip" or "conv1" for DARTS-'s auxiliary skip connection (ICLR 2021, section 3.2), or "none".
    """

    def __init__(
        self,
        edges: Sequence[tuple[int, int]],
        candidates: Candidates,
        channels: int,
        strides: Sequence[int],
        auxiliary_skip: str = "none",
        pool_norm: bool = True,
    ) -> None:
        super().__init__()
        self.edges = edges
        self.mixed_ops = nn.ModuleList(
            MixedOp(operations, channels, stride, auxiliary_skip, pool_norm)
            for operations, stride in zip(candidates, strides, strict=True)
        )

    def forward(
        self,
        inputs: Sequence[Tensor],
        weights: Tensor,
        drop_path_prob: float | Tensor = 0.0,
        skip_beta: float | Tensor = 0.0,
    ) -> list[Tensor]:
        """Compute all states of the cell, (B, C, H, W) each: inputs, then nodes. `weights` is (edges, operations)."""
        states = dict(enumerate(inputs))
        for (source, target), mixed_op, p in zip(self.edges, self.mixed_ops, weights, strict=True):
            y = mixed_op(states[source], p, drop_path_prob, skip_beta)
            states[target] = states[target] + y if target in states else y
        return [states[number] for number in sorted(states)]


class Cell(nn.Module):
    """A cell with all edges; its output concatenates its nodes: (B, nodes * C, H, W)."""

    def __init__(
        self,
        space: Space,
        kind: str,
        c_prev_prev: int,
        c_prev: int,
        channels: int,
        reduction_prev: bool,
        auxiliary_skip: str,
        edges_class: type[FastEdges] | type[MixedEdges],
    ) -> None:
        super().__init__()
        self.preprocess0 = (
            FactorizedReduce(c_prev_prev, channels, affine=False)
            if reduction_prev
            else ReLUConvBN(c_prev_prev, channels, 1, 1, 0, affine=False)
        )
        self.preprocess1 = ReLUConvBN(c_prev, channels, 1, 1, 0, affine=False)
        strides = [2 if kind == "reduce" and source < space.inputs else 1 for source, _ in space.edges]
        self.edges = edges_class(space.edges, space.cells[kind], channels, strides, auxiliary_skip)
        self.nodes = len(space.nodes)

    def forward(
        self, s0: Tensor, s1: Tensor, weights: Tensor, drop_path_prob: float | Tensor, skip_beta: float | Tensor
    ) -> Tensor:
        inputs = [self.preprocess0(s0), self.preprocess1(s1)]  # (B, C, H, W) each
        states = self.edges(inputs, weights, drop_path_prob, skip_beta)
        return concatenate(states[-self.nodes :])


class AnySupernet(nn.Module):
    """The interface of a supernet of any space, as a search uses it.

    Attributes:
        kinds: The kind of cell of each layer, in the order of the mixing weights.
        alpha_shapes: (edges, operations) of the alpha of each kind of cell.
        classifier: The last layer. All weights have its dtype.
    """

    kinds: list[str]
    alpha_shapes: dict[str, tuple[int, int]]
    classifier: nn.Linear


class Supernet(AnySupernet):
    """The supernet of a space of DARTS cells.

    Args:
        init_channels: C of the first cells; each reduction cell doubles it.
        layers: The number of cells.
        auxiliary_skip: "skip" or "conv1" for DARTS-'s auxiliary skip connection on every edge, or "none".
        edges_class: FastEdges, or MixedEdges, which has a module for each operation of each edge.
    """

    def __init__(
        self,
        space: Space,
        init_channels: int = 16,
        layers: int = 8,
        classes: int = 10,
        in_channels: int = 3,
        auxiliary_skip: str = "none",
        edges_class: type[FastEdges] | type[MixedEdges] = FastEdges,
    ) -> None:
        super().__init__()
        self.kinds, self.alpha_shapes = cell_kinds(layers), space.alpha_shapes
        channels, width = init_channels, 3 * init_channels
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), BatchNorm2d(width))
        self.cells = nn.ModuleList()
        c_prev_prev, c_prev, previous = width, width, "normal"
        for kind in self.kinds:
            channels *= 2 if kind == "reduce" else 1
            previous_reduces = previous == "reduce"
            self.cells.append(
                Cell(space, kind, c_prev_prev, c_prev, channels, previous_reduces, auxiliary_skip, edges_class)
            )
            c_prev_prev, c_prev, previous = c_prev, len(space.nodes) * channels, kind
        self.classifier = nn.Linear(c_prev, classes)
        without_running_statistics(self)

    def forward(
        self,
        images: Tensor,
        weights: Sequence[Tensor],
        drop_path_prob: float | Tensor = 0.0,
        skip_beta: float | Tensor = 0.0,
    ) -> Tensor:
        """Compute the logits (B, classes).

        Args:
            images: (B, channels, H, W).
            weights: The mixing weights of each layer, (edges, operations) each.
            skip_beta: The weight of the auxiliary skip connections.
        """
        s0 = s1 = self.stem(images)
        for cell, layer_weights in zip(self.cells, weights, strict=True):
            s0, s1 = s1, cell(s0, s1, layer_weights, drop_path_prob, skip_beta)
        return self.classifier(s1.mean(dim=(2, 3)))
