"""Search spaces: the edges of their cells, and the candidate operations on each.

S1 to S4 are the spaces of RobustDARTS (Zela et al., ICLR 2020, section 3). `darts` is the space of DARTS (Liu et al.,
ICLR 2019, section 3.1), and S5 is `darts` without `none`. To add a space, add an entry to SPACES, here or in a plugin.

In these spaces a cell has two inputs (states 0 and 1) and four intermediate nodes (states 2 to 5). The edges into a
node come from all states before it: edge 0 is (0 -> 2), edge 1 is (1 -> 2), edge 2 is (0 -> 3), ..., edge 13 is
(4 -> 5).
A cell of NAS-Bench-201 (Dong and Yang, ICLR 2020) has one input (state 0) and three nodes; the last is its output.

Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lib.registry import EntryError, Registry, check_instance

Candidates = tuple[tuple[str, ...], ...]
#: the kinds of cells of a space -> the number of inputs of a cell
INPUTS = {("normal", "reduce"): 2, ("cell",): 1}


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(type(item) is kind for item in value)


@dataclass(frozen=True)
class Space:
    """The cells of a search space.

    Attributes:
        cells: The candidate operations of every edge, for "normal" and "reduce" cells or for the "cell" of
            NAS-Bench-201. Edges may have different numbers of candidates.
        edges: (source state, target state) of every edge, in the order of the rows of alpha. They are sorted by target,
            and a source has a smaller number than its target. The cell's inputs are the first states.
        keep: The number of edges into each node that a derived cell keeps. They are never `none`. A node with fewer
            edges keeps them all. If None (NAS-Bench-201), all edges are kept, and `none` can be chosen.

    Raises:
        EntryError: The space is invalid; the message says where.
    """

    cells: Mapping[str, Candidates]
    edges: tuple[tuple[int, int], ...]
    keep: int | None

    def __post_init__(self) -> None:
        problem = next(self._problems(), None)
        if problem:
            raise EntryError(f"Space: {problem}")
        kinds = next(kinds for kinds in INPUTS if set(kinds) == set(self.cells))
        object.__setattr__(self, "cells", {kind: tuple(map(tuple, self.cells[kind])) for kind in kinds})
        object.__setattr__(self, "edges", tuple((source, target) for source, target in self.edges))

    def _problems(self) -> Iterator[str]:
        """The problems of the space. Each check relies on those before it."""
        inputs = {frozenset(kinds): number for kinds, number in INPUTS.items()}.get(frozenset(self.cells))
        if inputs is None:
            yield f"cells {', '.join(map(str, self.cells)) or 'of no kind'}; expected normal and reduce, or cell"
        if not self.edges or not all(_is_list(edge, int) and len(edge) == 2 for edge in self.edges):
            yield f"edges {self.edges}; expected pairs (source, target)"
        for source, target in self.edges:
            if not 0 <= source < target:
                yield f"edge {source} -> {target}; expected a source of 0 or more, and a target after it"
        edges, targets = [*map(tuple, self.edges)], [target for _, target in self.edges]
        if len(set(edges)) < len(edges) or targets != sorted(targets):
            yield f"edges {self.edges}; expected each edge once, in the order of their targets"
        if sorted(set(targets)) != [*range(inputs or 0, max(targets) + 1)]:
            yield f"nodes {sorted(set(targets))}; expected consecutive numbers from {inputs} on, after the inputs"
        if not (type(self.keep) is int and self.keep >= 1) and (self.keep is not None or inputs == 2):
            yield f"keep {self.keep!r}; expected a whole number of 1 or more"
        for kind, candidates in self.cells.items():
            if len(candidates) != len(edges):
                yield f"{kind}: candidates for {len(candidates)} edges; expected {len(edges)}, one tuple for each edge"
            for edge, names in zip(edges, candidates, strict=False):
                where = f"{kind}, edge {edge[0]} -> {edge[1]}: candidates {names!r}"
                if not _is_list(names, str) or not names or len(set(names)) < len(names):
                    yield f"{where}; expected a tuple of one or more different operations"
                elif self.keep is not None and set(names) == {"none"}:
                    yield f"{where}; expected an operation besides none, which a derived cell leaves out"

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
        """The shape of alpha for each kind of cell: (edges, largest number of candidates of an edge)."""
        return {kind: (len(counts), max(counts)) for kind, counts in self.counts.items()}

    @property
    def counts(self) -> dict[str, tuple[int, ...]]:
        """The number of candidates of each edge, for each kind of cell."""
        return {kind: tuple(map(len, candidates)) for kind, candidates in self.cells.items()}


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

_S5 = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

_SPACES = {
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
    "s5": _everywhere(*_S5),
    "darts": _everywhere("none", *_S5),
    "nasbench201": Space({"cell": (_OPERATIONS_201,) * len(_EDGES_201)}, _EDGES_201, keep=None),
}


SPACES: Registry[Space] = Registry("space", _SPACES, check_instance(Space))


def spaces_of_darts_cells() -> list[str]:
    """The names of the spaces with normal and reduction cells."""
    return [name for name, space in SPACES.items() if "normal" in space.cells]
