"""Search spaces: the edges of their cells, and the candidate operations on each.

S1 to S4 are RobustDARTS's (Zela et al., ICLR 2020, section 3), S5 is DARTS's space without `none`.
A cell of these has two inputs (states 0 and 1) and four intermediate nodes (states 2 to 5). The edges into a node come
from all states before it, so edge 0 is (0 -> 2), edge 1 is (1 -> 2), edge 2 is (0 -> 3), ... , edge 13 is (4 -> 5).
A cell of NAS-Bench-201 (Dong and Yang, ICLR 2020) has one input (state 0) and three nodes; the last is its output.

Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Candidates = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Space:
    """The cells of a search space.

    Attributes:
        cells: The candidate operations of every edge, for each kind of cell.
        edges: (source state, target state) of every edge, in the order of the rows of alpha. States are numbered from
            the cell's inputs on, and every source has a smaller number than its target.
        keep: The number of edges into each node that a derived cell keeps, none of them `none`. None keeps every edge,
            and `none` is a candidate like any other.
    """

    cells: Mapping[str, Candidates]
    edges: tuple[tuple[int, int], ...]
    keep: int | None

    @property
    def edges_of(self) -> dict[int, list[int]]:
        """The numbers of the edges into each node."""
        nodes = dict.fromkeys(target for _, target in self.edges)
        return {node: [edge for edge, (_, target) in enumerate(self.edges) if target == node] for node in nodes}

    @property
    def nodes(self) -> tuple[int, ...]:
        """The states that are sums of edges."""
        return tuple(self.edges_of)

    @property
    def inputs(self) -> int:
        """The number of the cell's inputs, which are the states before the first node."""
        return min(self.nodes)

    @property
    def alpha_shapes(self) -> dict[str, tuple[int, int]]:
        """(edges, operations) of the alpha of each kind of cell."""
        return {kind: (len(self.edges), len(candidates[0])) for kind, candidates in self.cells.items()}


def cell_kinds(layers: int) -> list[str]:
    """The kind of each of the `layers` cells: those at layers // 3 and 2 * layers // 3 are reduction cells."""
    reductions = {layers // 3, 2 * layers // 3}
    return ["reduce" if layer in reductions else "normal" for layer in range(layers)]


#: The 14 edges of a cell of DARTS: two inputs and four nodes.
_EDGES = tuple((source, target) for target in range(2, 6) for source in range(target))


def _darts_cells(normal: Candidates, reduce: Candidates) -> Space:
    return Space({"normal": normal, "reduce": reduce}, _EDGES, keep=2)


def _everywhere(*operations: str) -> Space:
    return _darts_cells((operations,) * len(_EDGES), (operations,) * len(_EDGES))


_EDGES_201 = tuple((source, target) for target in range(1, 4) for source in range(target))
_OPERATIONS_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

SPACES: dict[str, Space] = {
    "s1": _darts_cells(
        normal=(
            ("skip_connect", "dil_conv_3x3"),
            ("skip_connect", "dil_conv_5x5"),
            ("skip_connect", "dil_conv_5x5"),
            ("skip_connect", "sep_conv_3x3"),
            ("skip_connect", "dil_conv_3x3"),
            ("max_pool_3x3", "skip_connect"),
            ("skip_connect", "sep_conv_3x3"),
            ("skip_connect", "sep_conv_3x3"),
            ("skip_connect", "dil_conv_3x3"),
            ("skip_connect", "sep_conv_3x3"),
            ("max_pool_3x3", "skip_connect"),
            ("skip_connect", "dil_conv_3x3"),
            ("dil_conv_3x3", "dil_conv_5x5"),
            ("dil_conv_3x3", "dil_conv_5x5"),
        ),
        reduce=(
            ("max_pool_3x3", "avg_pool_3x3"),
            ("max_pool_3x3", "dil_conv_3x3"),
            ("max_pool_3x3", "avg_pool_3x3"),
            ("max_pool_3x3", "avg_pool_3x3"),
            ("skip_connect", "dil_conv_5x5"),
            ("max_pool_3x3", "avg_pool_3x3"),
            ("max_pool_3x3", "sep_conv_3x3"),
            ("skip_connect", "dil_conv_3x3"),
            ("skip_connect", "dil_conv_5x5"),
            ("max_pool_3x3", "avg_pool_3x3"),
            ("max_pool_3x3", "avg_pool_3x3"),
            ("skip_connect", "dil_conv_5x5"),
            ("skip_connect", "dil_conv_5x5"),
            ("skip_connect", "dil_conv_5x5"),
        ),
    ),
    "s2": _everywhere("skip_connect", "sep_conv_3x3"),
    "s3": _everywhere("none", "skip_connect", "sep_conv_3x3"),
    "s4": _everywhere("noise", "sep_conv_3x3"),
    "s5": _everywhere(
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    ),
    "nasbench201": Space({"cell": (_OPERATIONS_201,) * len(_EDGES_201)}, _EDGES_201, keep=None),
}
