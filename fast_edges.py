"""Fast mixed operations of a supernet's cell: a drop-in replacement for `model_search.MixedEdges`.

Operations that read the same state are computed as a group:

- ReLU, pooling and the batch norm after pooling depend only on that state. They are computed once for all edges.
- One tensor holds the weights of an operation on all these edges. On a GPU, grouped convolutions compute the edges
  together, with their channels side by side. On a CPU grouped convolutions are slow, so edges are computed in turn.
- A mixing weight is the scale of its operation's last batch norm, so weighting needs no extra pass over the features.
- `none` costs nothing.

The entry of an operation in OPERATIONS decides how it is computed; its name does not matter. `_arrange` groups the
entries that it knows. Every other operation runs as its own module on each edge.

Below, a pair (edge, candidate) identifies a mixing weight. The outputs of several pairs are a list of tensors: one
tensor (B, pairs * C, H, W) if the pairs are computed together, else one tensor (B, C, H, W) for each pair.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.side_by_side import Depthwise, Norm, Pointwise, ReLUs, mix, side_by_side, split, sum_of_parts
from operations import (
    OPERATIONS,
    POOLING,
    DilConv,
    NorConv,
    SepConv,
    Sized,
    drop_path,
    drops,
    every_second_pixel,
    make_average_pool,
    make_candidate,
    make_max_pool,
    make_none,
    make_skip,
)
from spaces import Candidates

#: (edge, index among the edge's candidates)
Pairs = list[tuple[int, int]]
#: Edges, and the tensor (B, edges * C, H, W) that is added to their target nodes.
Term = tuple[Sequence[int], Tensor]


class State(NamedTuple):
    """A state of a cell, which is the input of the operations on its outgoing edges."""

    x: Tensor  # (B, C, H, W)
    activated: Tensor  # ReLU(x)
    together: bool  # pairs are computed together, with their channels side by side
    drop_path_prob: float | Tensor

    def repeated(self, edges: int) -> list[Tensor]:
        """Repeat ReLU(x) for a number of edges."""
        return [side_by_side(self.activated, edges)] if self.together else [self.activated] * edges

    def drop(self, parts: list[Tensor], pairs: int) -> list[Tensor]:
        """Apply drop path to each of the pairs."""
        p = self.drop_path_prob
        return [drop_path(part, p, pairs // len(parts)) for part in parts] if drops(p) else parts


class Separables(nn.Module):
    """`sep_conv_kxk` and `dil_conv_kxk` on the edges that leave a state.

    Both end in a depthwise convolution, a pointwise convolution and a batch norm. `dil_conv` has only these layers,
    with dilation 2. `sep_conv` applies these layers twice, with a ReLU in between.

    Args:
        pairs_of: The pairs of each operation, by name.
    """

    def __init__(self, pairs_of: dict[str, Pairs], channels: int, stride: int) -> None:
        super().__init__()
        self.pairs = [pair for pairs in pairs_of.values() for pair in pairs]
        self.edges = [[edge for edge, _ in pairs] for pairs in pairs_of.values()]
        self.stages = nn.ModuleList()
        for name, pairs in pairs_of.items():
            edges, make = len(pairs), OPERATIONS.find(name)
            assert isinstance(make, Sized)
            kernel_size = make.kernel_size
            if make.operation is DilConv:
                layers: list[nn.Module] = [Depthwise(edges, channels, kernel_size, stride, dilation=2)]
            else:
                first = [Depthwise(edges, channels, kernel_size, stride), Pointwise(edges, channels)]
                layers = [*first, Norm(edges, channels), ReLUs(), Depthwise(edges, channels, kernel_size)]
            self.stages.append(nn.Sequential(*layers))
        self.pointwise = Pointwise(len(self.pairs), channels)
        self.norm = Norm(len(self.pairs), channels)

    def forward(self, state: State, weights: Tensor) -> list[Term]:
        inputs = {len(edges): state.repeated(len(edges)) for edges in self.edges}
        parts = [y for edges, stage in zip(self.edges, self.stages, strict=True) for y in stage(inputs[len(edges)])]
        if state.together:
            parts = [torch.cat(parts, dim=1)]
        parts = state.drop(self.norm(self.pointwise(parts), weights), len(self.pairs))
        if state.together and all(edges == self.edges[0] for edges in self.edges):
            return [(self.edges[0], sum_of_parts(parts[0], len(self.edges)))]
        return _terms(self.pairs, parts)


class Shared(nn.Module):
    """Pooling and `skip_connect` of stride 1, computed once for all edges.

    Args:
        pairs_of: The pairs of each operation, by name.
        pool_norm: Add a batch norm after pooling.
    """

    def __init__(self, pairs_of: dict[str, Pairs], channels: int, stride: int, pool_norm: bool) -> None:
        super().__init__()
        self.pairs = [pair for pairs in pairs_of.values() for pair in pairs]
        self.edges = [[edge for edge, _ in pairs] for pairs in pairs_of.values()]
        self.operations = nn.ModuleList(OPERATIONS.find(name)(channels, stride, False) for name in pairs_of)
        pools = sum(map(_pools, self.operations))
        self.norm = Norm(pools, channels) if pool_norm and pools else None

    def forward(self, state: State, weights: Tensor) -> list[Term]:
        outputs = [operation(state.x) for operation in self.operations]
        if self.norm is not None:
            pooled = [index for index, operation in enumerate(self.operations) if _pools(operation)]
            pools = [outputs[index] for index in pooled]
            parts = [torch.cat(pools, dim=1)] if state.together else pools
            normed = [y for part in self.norm(parts) for y in split(part, len(pools) // len(parts), dim=1)]
            for index, y in zip(pooled, normed, strict=True):
                outputs[index] = y
        if state.together and not drops(state.drop_path_prob) and all(edges == self.edges[0] for edges in self.edges):
            return [((edge,), y) for edge, y in zip(self.edges[0], mix(outputs, weights), strict=True)]
        terms: list[Term] = []
        scales = iter(weights.unbind())
        for operation, edges, y in zip(self.operations, self.edges, outputs, strict=True):
            for edge in edges:
                (dropped,) = [y] if isinstance(operation, nn.Identity) else state.drop([y], 1)
                terms.append(((edge,), dropped * next(scales)))
        return terms


def _pools(operation: nn.Module) -> bool:
    return isinstance(operation, POOLING)


class Convs(nn.Module):
    """`nor_conv_kxk`: ReLU, convolution, batch norm. The edges are output channels of one convolution."""

    def __init__(self, pairs: Pairs, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.pairs = pairs
        self.conv = nn.Conv2d(channels, len(pairs) * channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = Norm(len(pairs), channels)

    def forward(self, state: State, weights: Tensor) -> list[Term]:
        kernels = split(self.conv.weight, 1 if state.together else len(self.pairs))
        parts = [F.conv2d(state.activated, w, None, self.conv.stride, self.conv.padding) for w in kernels]
        return _terms(self.pairs, state.drop(self.norm(parts, weights), len(self.pairs)))


class FactorizedReduces(nn.Module):
    """`skip_connect` of stride 2: operations.FactorizedReduce, with the two halves of each edge side by side."""

    def __init__(self, pairs: Pairs, channels: int) -> None:
        super().__init__()
        self.pairs = pairs
        self.conv_1 = nn.Conv2d(channels, len(pairs) * (channels // 2), 1, bias=False)
        self.conv_2 = nn.Conv2d(channels, len(pairs) * (channels - channels // 2), 1, bias=False)
        self.norm = Norm(len(pairs), channels)

    def forward(self, state: State, weights: Tensor) -> list[Term]:
        edges = len(self.pairs)
        n = 1 if state.together else edges
        pixels = every_second_pixel(state.activated)
        convs = zip(pixels, (self.conv_1, self.conv_2), strict=True)
        outputs = [[F.conv2d(y, w) for w in split(conv.weight, n)] for y, conv in convs]
        halves = [[half for y in ys for half in split(y, edges // n, dim=1)] for ys in outputs]
        in_order = [half for both in zip(*halves, strict=True) for half in both]
        size = len(in_order) // n
        parts = [torch.cat(in_order[begin : begin + size], dim=1) for begin in range(0, len(in_order), size)]
        return _terms(self.pairs, state.drop(self.norm(parts, weights), edges))


class SeparateModules(nn.Module):
    """Any other operation: one module for each pair."""

    def __init__(self, name: str, pairs: Pairs, channels: int, stride: int, pool_norm: bool) -> None:
        super().__init__()
        self.pairs = pairs
        self.operations = nn.ModuleList(make_candidate(name, channels, stride, pool_norm) for _ in pairs)

    def forward(self, state: State, weights: Tensor) -> list[Term]:
        terms: list[Term] = []
        for (edge, _), weight, operation in zip(self.pairs, weights, self.operations, strict=True):
            y = operation(state.x)
            if not isinstance(operation, nn.Identity):
                (y,) = state.drop([y], 1)
            terms.append(((edge,), weight * y))
        return terms


#: A group of operations on the edges that leave a state.
OperationGroup = Separables | Shared | Convs | FactorizedReduces | SeparateModules


class AuxiliarySkips(nn.Module):
    """DARTS-'s auxiliary skip connections; see `operations.make_auxiliary`."""

    def __init__(self, kind: str, edges: list[int], channels: int, stride: int) -> None:
        super().__init__()
        self.pairs = [(edge, 0) for edge in edges]
        self.reduce = FactorizedReduces(self.pairs, channels) if stride != 1 else None
        self.conv: nn.Conv2d | None = None
        if kind == "conv1" and stride == 1:
            self.conv = nn.Conv2d(channels, len(edges) * channels, 1, bias=False)
            nn.init.dirac_(self.conv.weight, groups=len(edges))

    def forward(self, state: State, skip_beta: float | Tensor) -> list[Term]:
        if self.reduce is not None:
            beta = skip_beta * state.x.new_ones(len(self.pairs))
            return self.reduce(state._replace(drop_path_prob=0.0), beta)
        if self.conv is not None:
            kernels = split(self.conv.weight * skip_beta, 1 if state.together else len(self.pairs))
            return _terms(self.pairs, [F.conv2d(state.x, w) for w in kernels])
        output = skip_beta * state.x
        return [((edge,), output) for edge, _ in self.pairs]


def _terms(pairs: Pairs, parts: list[Tensor]) -> list[Term]:
    """Pair each tensor with its edges."""
    size = len(pairs) // len(parts)
    edges = [edge for edge, _ in pairs]
    return [(edges[part * size : (part + 1) * size], y) for part, y in enumerate(parts)]


def _arrange(pairs_of: dict[str, Pairs], channels: int, stride: int, pool_norm: bool) -> list[OperationGroup]:
    """Make the operations on the edges that leave a state, grouped by how they are computed."""
    modules: list[OperationGroup] = []
    makers = {name: OPERATIONS.find(name) for name in pairs_of}
    sized = {name: make for name, make in makers.items() if isinstance(make, Sized)}
    separable = {name: pairs_of[name] for name, make in sized.items() if make.operation in (SepConv, DilConv)}
    shared = {
        name: pairs_of[name]
        for name, make in makers.items()
        if make in (make_average_pool, make_max_pool) or (make is make_skip and stride == 1)
    }
    if separable:
        modules.append(Separables(separable, channels, stride))
    if shared:
        modules.append(Shared(shared, channels, stride, pool_norm))
    for name, pairs in pairs_of.items():
        if name in separable or name in shared:
            continue
        if makers[name] is make_skip:
            modules.append(FactorizedReduces(pairs, channels))
        elif name in sized and sized[name].operation is NorConv:
            modules.append(Convs(pairs, channels, sized[name].kernel_size, stride))
        else:
            modules.append(SeparateModules(name, pairs, channels, stride, pool_norm))
    return modules


class FastEdges(nn.Module):
    """All operations on all edges of a cell: a drop-in replacement for `model_search.MixedEdges`.

    Args:
        edges: (source state, target state) of each edge, in the order of the rows of the mixing weights.
        candidates: The operations of each edge.
        strides: The stride of each edge, 1 or 2. All edges that leave a state have the same stride.
        auxiliary_skip: "skip" or "conv1" for DARTS-'s auxiliary skip connection (ICLR 2021, section 3.2), or "none".
        pool_norm: Add a batch norm after pooling, as in DARTS. NAS-Bench-201 has none.

    Attributes:
        together: If True, compute the edges that leave a state together. None means on every device except a CPU.
    """

    places: Tensor

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
        self.edges, self.candidates, self.channels, self.strides = edges, candidates, channels, strides
        self.auxiliary_skip, self.pool_norm = auxiliary_skip, pool_norm
        self.together: bool | None = None
        #: The operations on the edges that leave each state, by the number of the state.
        self.operations, self.auxiliaries = nn.ModuleDict(), nn.ModuleDict()
        width, places = max(map(len, candidates)), list[int]()
        #: The number of pairs of each group of operations.
        self.sizes: list[int] = []
        for source in sorted({source for source, _ in edges}):
            leaving = [edge for edge, (begin, _) in enumerate(edges) if begin == source]
            stride = strides[leaving[0]]
            pairs_of: dict[str, Pairs] = {}
            for edge in leaving:
                for place, name in enumerate(candidates[edge]):
                    # `none` adds nothing, and its weight has a gradient of 0.
                    if OPERATIONS.find(name) is not make_none or len(candidates[edge]) == 1:
                        pairs_of.setdefault(name, []).append((edge, place))
            operations = _arrange(pairs_of, channels, stride, pool_norm)
            self.operations[str(source)] = nn.ModuleList(operations)
            self.sizes += [len(operation.pairs) for operation in operations]
            places += [edge * width + place for operation in operations for edge, place in operation.pairs]
            if auxiliary_skip != "none":
                self.auxiliaries[str(source)] = AuxiliarySkips(auxiliary_skip, leaving, channels, stride)
        #: The index of each pair's mixing weight in the flattened mixing weights of the cell.
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(
        self,
        inputs: Sequence[Tensor],
        weights: Tensor,
        drop_path_prob: float | Tensor = 0.0,
        skip_beta: float | Tensor = 0.0,
    ) -> list[Tensor]:
        """Compute all states of the cell, (B, C, H, W) each: the inputs, then the nodes.

        Args:
            weights: (edges, operations).
            drop_path_prob, skip_beta: Numbers or scalar tensors. A CUDA graph reads the tensors again at each replay.
        """
        together = inputs[0].device.type != "cpu" if self.together is None else self.together
        rest = iter(weights.flatten()[self.places].split(self.sizes))
        states = dict(enumerate(inputs))
        for source, operations in self.operations.items():
            x = states[int(source)]
            state = State(x, F.relu(x), together, drop_path_prob if self.training else 0.0)
            terms = [term for operation in operations.children() for term in operation(state, next(rest))]
            if source in self.auxiliaries:
                terms += self.auxiliaries[source](state, skip_beta)
            for edges, total in terms:
                for edge, y in zip(edges, split(total, len(edges), dim=1), strict=True):
                    target = self.edges[edge][1]
                    if target not in states:
                        states[target] = y
                    else:
                        # In place: on a CPU, a node's first term is an operation's output and has no other users.
                        states[target] = states[target] + y if together else states[target].add_(y)
        return [states[number] for number in sorted(states)]
