"""The mixed operations of a supernet's cell, sum_k p_k op_k(x) on every edge, arranged for speed.

They compute what DARTS's equation 2 says, and what benchmarks/plain.py does with a module for every operation of every
edge. Here the operations are arranged by the state that they read:

- ReLU, pooling and its batch norm depend on that state alone: they are computed once for all the edges that leave it.
- The weights that an operation has on these edges lie in one tensor. On a GPU the edges are computed together, by
  grouped convolutions on their channels side by side; on a CPU, where these are slow, one after another.
- A mixing weight is the scale of its operation's last batch norm, so that weighting costs no pass over the images.
- `none` costs nothing.

A tensor of the edges of an operation, side by side, has m * C channels. Functions below take and return lists of such
"parts": one part of all m edges where they are computed together, m parts of one edge each where they are not.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthwise import DepthwiseConv2d, average_pool, depthwise_conv2d
from operations import OPERATIONS, drop_path
from spaces import Candidates

Parts = list[Tensor]


class State:
    """A state of a cell, and what all operations on it share.

    Args:
        x: (B, C, H, W).
        together: the edges are computed side by side.
    """

    def __init__(self, x: Tensor, together: bool) -> None:
        self.x, self.together = x, together
        self._activated: Tensor | None = None
        self._repeated: dict[int, Parts] = {}

    @property
    def activated(self) -> Tensor:
        """ReLU(x)."""
        if self._activated is None:
            self._activated = F.relu(self.x)
        return self._activated

    def parts(self, edges: int) -> int:
        """How many parts the edges of an operation are computed in."""
        return 1 if self.together else edges

    def repeated(self, edges: int) -> Parts:
        """ReLU(x) for each of the edges."""
        if edges not in self._repeated:
            x = self.activated
            together = [torch.cat([x] * edges, dim=1) if edges > 1 else x]
            self._repeated[edges] = together if self.together else [x] * edges
        return self._repeated[edges]


class Norm(nn.Module):
    """Batch norm with the mixing weights for its scale, and no shift: p * (y - mean) / std."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, parts: Parts, scale: Tensor | None = None) -> Parts:
        """Of the channels of all parts; `scale`: (m * C,)."""
        n = len(parts)
        means, variances = self.running_mean.chunk(n), self.running_var.chunk(n)
        scales = [None] * n if scale is None else scale.chunk(n)
        return [
            F.batch_norm(y, mean, variance, factor, None, self.training)
            for y, mean, variance, factor in zip(parts, means, variances, scales, strict=True)
        ]


class SeparableNorm(nn.Module):
    """Depthwise convolution, pointwise convolution and batch norm, on each of m edges."""

    def __init__(self, edges: int, channels: int, kernel_size: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.edges = edges
        self.depthwise = DepthwiseConv2d(edges * channels, kernel_size, stride, dilation)
        self.pointwise = nn.Conv2d(edges * channels, edges * channels, 1, groups=edges, bias=False)
        self.norm = Norm(edges * channels)

    def forward(self, parts: Parts, scale: Tensor | None = None) -> Parts:
        n, stride, dilation = len(parts), self.depthwise.stride[0], self.depthwise.dilation[0]
        outputs = [
            F.conv2d(depthwise_conv2d(x, kernel, stride, dilation), mixer, groups=self.edges // n)
            for x, kernel, mixer in zip(
                parts, self.depthwise.weight.chunk(n), self.pointwise.weight.chunk(n), strict=True
            )
        ]
        return self.norm(outputs, scale)


class SepConvs(nn.Module):
    """`sep_conv_kxk` on m edges: twice ReLU and a separable convolution; the stride is in the first."""

    def __init__(self, edges: int, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.edges = edges
        self.first = SeparableNorm(edges, channels, kernel_size, stride, dilation=1)
        self.second = SeparableNorm(edges, channels, kernel_size, 1, dilation=1)

    def forward(self, state: State, scale: Tensor) -> Parts:
        return self.second([y.relu_() for y in self.first(state.repeated(self.edges))], scale)


class DilConvs(nn.Module):
    """`dil_conv_kxk` on m edges: ReLU and a dilated separable convolution."""

    def __init__(self, edges: int, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.edges = edges
        self.only = SeparableNorm(edges, channels, kernel_size, stride, dilation=2)

    def forward(self, state: State, scale: Tensor) -> Parts:
        return self.only(state.repeated(self.edges), scale)


class Convs(nn.Module):
    """`nor_conv_kxk` on m edges: ReLU, convolution, batch norm; the edges are outputs of one convolution."""

    def __init__(self, edges: int, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.edges = edges
        self.conv = nn.Conv2d(channels, edges * channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = Norm(edges * channels)

    def forward(self, state: State, scale: Tensor) -> Parts:
        weights = self.conv.weight.chunk(state.parts(self.edges))
        outputs = [F.conv2d(state.activated, w, None, self.conv.stride, self.conv.padding) for w in weights]
        return self.norm(outputs, scale)


class FactorizedReduces(nn.Module):
    """`skip_connect` of stride 2 on m edges: operations.FactorizedReduce, the two halves of each edge side by side."""

    def __init__(self, edges: int, channels: int) -> None:
        super().__init__()
        self.edges = edges
        self.conv_1 = nn.Conv2d(channels, edges * (channels // 2), 1, bias=False)
        self.conv_2 = nn.Conv2d(channels, edges * (channels - channels // 2), 1, bias=False)
        self.norm = Norm(edges * channels)

    def forward(self, state: State, scale: Tensor) -> Parts:
        x, n = state.activated, state.parts(self.edges)
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        pixels = (x[:, :, ::2, ::2], x[:, :, 1::2, 1::2])
        halves = [
            [half for w in conv.weight.chunk(n) for half in F.conv2d(y, w).chunk(self.edges // n, dim=1)]
            for y, conv in zip(pixels, (self.conv_1, self.conv_2), strict=True)
        ]
        in_order = [half for edge in zip(*halves, strict=True) for half in edge]
        width = len(in_order) // n
        return self.norm([torch.cat(in_order[part : part + width], dim=1) for part in range(0, 2 * self.edges, width)], scale)


class Shared(nn.Module):
    """An operation without weights, computed once: p * y on each of the edges."""

    def __init__(self, edges: int) -> None:
        super().__init__()
        self.edges = edges

    def output(self, state: State) -> Tensor:
        raise NotImplementedError

    def forward(self, state: State, scale: Tensor) -> Parts:
        y, n = self.output(state), state.parts(self.edges)
        y = y if n == self.edges else torch.cat([y] * self.edges, dim=1)
        return [y * factor[:, None, None] for factor in scale.chunk(n)]


class Pool(Shared):
    """`max_pool_3x3` or `avg_pool_3x3`, followed by batch norm in DARTS's supernet."""

    def __init__(self, edges: int, channels: int, stride: int, average: bool) -> None:
        super().__init__(edges)
        self.stride, self.average = stride, average
        self.norm: Norm | None = Norm(channels)

    def output(self, state: State) -> Tensor:
        x = state.x
        y = average_pool(x, self.stride) if self.average else F.max_pool2d(x, 3, self.stride, padding=1)
        return y if self.norm is None else self.norm([y])[0]


class Identity(Shared):
    """`skip_connect` of stride 1."""

    def output(self, state: State) -> Tensor:
        return state.x


class Modules(nn.Module):
    """Any other operation of operations.OPERATIONS, a module for each of m edges."""

    def __init__(self, name: str, edges: int, channels: int, stride: int) -> None:
        super().__init__()
        self.operations = nn.ModuleList(OPERATIONS[name](channels, stride, False) for _ in range(edges))

    def forward(self, state: State, scale: Tensor) -> Parts:
        factors = scale.chunk(len(self.operations))
        outputs = [op(state.x) * factor[:, None, None] for op, factor in zip(self.operations, factors, strict=True)]
        return [torch.cat(outputs, dim=1)] if state.together else outputs


class AuxiliaryConvs(nn.Module):
    """The learnable auxiliary skip of DARTS- on m edges: beta times a 1x1 convolution that begins as an identity."""

    def __init__(self, edges: int, channels: int) -> None:
        super().__init__()
        self.edges = edges
        self.conv = nn.Conv2d(channels, edges * channels, 1, bias=False)
        nn.init.dirac_(self.conv.weight, groups=edges)

    def forward(self, state: State, scale: Tensor) -> Parts:
        weights = self.conv.weight * scale[:, None, None, None]
        return [F.conv2d(state.x, w) for w in weights.chunk(state.parts(self.edges))]


#: name -> constructor(edges, channels, stride) of the operations that are arranged as above; others run as Modules
MIXED: dict[str, Callable[[int, int, int], nn.Module]] = {
    "skip_connect": lambda edges, channels, stride: (
        Identity(edges) if stride == 1 else FactorizedReduces(edges, channels)
    ),
    "avg_pool_3x3": lambda edges, channels, stride: Pool(edges, channels, stride, average=True),
    "max_pool_3x3": lambda edges, channels, stride: Pool(edges, channels, stride, average=False),
    "sep_conv_3x3": lambda edges, channels, stride: SepConvs(edges, channels, 3, stride),
    "sep_conv_5x5": lambda edges, channels, stride: SepConvs(edges, channels, 5, stride),
    "sep_conv_7x7": lambda edges, channels, stride: SepConvs(edges, channels, 7, stride),
    "dil_conv_3x3": lambda edges, channels, stride: DilConvs(edges, channels, 3, stride),
    "dil_conv_5x5": lambda edges, channels, stride: DilConvs(edges, channels, 5, stride),
    "nor_conv_1x1": lambda edges, channels, stride: Convs(edges, channels, 1, stride),
    "nor_conv_3x3": lambda edges, channels, stride: Convs(edges, channels, 3, stride),
}


class MixedEdges(nn.Module):
    """All operations on all edges of a cell; a node is the sum of its edges, an edge sum_k p_k op_k(x) + beta * aux(x).

    Args:
        edges: (source state, target state) of each, in the order of the rows of the mixing weights.
        candidates: the operations of each edge.
        strides: of each edge, 1 or 2; the same for all that leave a state.
        auxiliary_skip: "skip" or "conv1" for DARTS-'s auxiliary skip connection (ICLR 2021, section 3.2), or "none".
        pool_norm: a batch norm behind pooling, as in DARTS; NAS-Bench-201 has none.

    Attributes:
        together: whether the edges that leave a state are computed side by side; None for wherever that is faster.
    """

    def __init__(
        self,
        edges: Sequence[tuple[int, int]],
        candidates: Candidates,
        channels: int,
        strides: Sequence[int],
        auxiliary_skip: str,
        pool_norm: bool = True,
    ) -> None:
        super().__init__()
        self.edges, self.candidates, self.channels, self.strides = edges, candidates, channels, strides
        self.auxiliary_skip, self.pool_norm = auxiliary_skip, pool_norm
        self.together: bool | None = None
        self.operations, self.auxiliaries = nn.ModuleList(), nn.ModuleDict()
        #: of each of the operations: its name, the state that it reads, its edges, and its place on each of them
        self.places: list[tuple[str, int, tuple[int, ...], tuple[int, ...]]] = []
        for source in sorted({source for source, _ in edges}):
            leaving = [edge for edge, (begin, _) in enumerate(edges) if begin == source]
            stride = strides[leaving[0]]
            by_name: dict[str, list[tuple[int, int]]] = {}
            for edge in leaving:
                for place, name in enumerate(candidates[edge]):
                    # `none` adds nothing to the others, and its weight has a gradient of 0.
                    if name != "none" or len(candidates[edge]) == 1:
                        by_name.setdefault(name, []).append((edge, place))
            for name, pairs in by_name.items():
                if name in MIXED:
                    operation = MIXED[name](len(pairs), channels, stride)
                else:
                    operation = Modules(name, len(pairs), channels, stride)
                if isinstance(operation, Pool) and not pool_norm:
                    operation.norm = None
                self.operations.append(operation)
                self.places.append((name, source, *zip(*pairs, strict=True)))
            if auxiliary_skip != "none":
                kind = AuxiliaryConvs if auxiliary_skip == "conv1" and stride == 1 else None
                self.auxiliaries[str(source)] = (
                    kind(len(leaving), channels) if kind else MIXED["skip_connect"](len(leaving), channels, stride)
                )
        order = [
            edge * len(candidates[0]) + place
            for _, _, own, places in self.places
            for edge, place in zip(own, places, strict=True)
        ]
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward(self, inputs: Sequence[Tensor], weights: Tensor, drop_path_prob: float, skip_beta: float) -> list[Tensor]:
        """All states of the cell, (B, C, H, W) each: the inputs, and the nodes behind them.

        Args:
            inputs: the cell's inputs.
            weights: (edges, operations).
        """
        together = inputs[0].device.type != "cpu" if self.together is None else self.together
        sizes = [len(own) * self.channels for _, _, own, _ in self.places]
        scales = weights.flatten()[self.order].repeat_interleave(self.channels).split(sizes)
        operations = list(zip(self.operations, self.places, scales, strict=True))
        states = dict(enumerate(inputs))
        for source in sorted({source for source, _ in self.edges}):
            state = State(states[source], together)
            sums: dict[tuple[int, ...], Tensor] = {}
            for operation, (_, begin, own, _), scale in operations:
                if begin == source:
                    parts = operation(state, scale)
                    if self.training and drop_path_prob > 0 and not isinstance(operation, Identity):
                        parts = [drop_path(part, drop_path_prob, len(own) // len(parts)) for part in parts]
                    _add(sums, own, parts)
            if str(source) in self.auxiliaries:
                leaving = tuple(edge for edge, (begin, _) in enumerate(self.edges) if begin == source)
                beta = state.x.new_full((len(leaving) * self.channels,), skip_beta)
                _add(sums, leaving, self.auxiliaries[str(source)](state, beta))
            for own, total in sums.items():
                for edge, output in zip(own, total.chunk(len(own), dim=1), strict=True):
                    target = self.edges[edge][1]
                    states[target] = states[target] + output if target in states else output
        return [states[number] for number in sorted(states)]


def _add(sums: dict[tuple[int, ...], Tensor], edges: tuple[int, ...], parts: Parts) -> None:
    """Add the parts to the sums of their edges."""
    width = len(edges) // len(parts)
    for part, output in enumerate(parts):
        own = edges[part * width : (part + 1) * width]
        # Nothing else holds an operation's output, and no derivative asks for it.
        sums[own] = sums[own].add_(output) if own in sums else output
