"""Derive a cell from mixing weights, in any space (DARTS, ICLR 2019, section 2.4; FairDARTS, ECCV 2020, section 3.4).

DARTS-PT's rule, which evaluates the supernet, is in search/perturbation.py.
"""

from collections.abc import Mapping

import numpy as np

from genotypes import AnyCell, Cell, Edge, Genotype
from spaces import Space

#: The edges of a derived cell, for each kind of cell.
Chosen = dict[str, list[Edge]]


def select(space: Space, weights: Mapping[str, np.ndarray], rule: str = "argmax", threshold: float = 0.85) -> Chosen:
    """Choose edges by a rule from the mixing weights.

    Args:
        weights: (edges, operations) for each kind of cell.
        rule: "argmax" keeps, for each node, the `space.keep` edges whose best operations have the largest weights
            (DARTS). "threshold_sparse" keeps those of them whose weight reaches the threshold (FairDARTS).
            "threshold_edge" keeps up to two operations of every edge whose weights reach the threshold (FairDARTS).
            `none` is never chosen, unless the space keeps all edges.

    Returns:
        The edges of each node; "argmax" and "threshold_sparse" sort them by decreasing weight if `space.keep` is
        given. A threshold may leave a node or a whole cell without edges.
    """
    chosen: Chosen = {}
    for kind, candidates in space.cells.items():
        chosen[kind] = []
        for edges in space.edges_of.values():
            ranked = [_ranked(space, candidates[edge], weights[kind][edge], edge) for edge in edges]
            if rule == "threshold_edge":
                kept = [scored for operations in ranked for scored in operations[:2]]
            else:
                # Sorting is stable: if weights are equal, the earlier edge comes first.
                best = [operations[0] for operations in ranked]
                kept = best if space.keep is None else sorted(best, key=lambda scored: -scored[0])[: space.keep]
            chosen[kind] += [edge for weight, edge in kept if rule == "argmax" or weight >= threshold]
    return chosen


def _ranked(space: Space, candidates: tuple[str, ...], weights: np.ndarray, edge: int) -> list[tuple[float, Edge]]:
    """The operations of an edge with their weights, by decreasing weight."""
    source, target = space.edges[edge]
    scored = [
        (float(weight), Edge(operation, target, source))
        for operation, weight in zip(candidates, weights[: len(candidates)], strict=True)
        if operation != "none" or space.keep is None
    ]
    return sorted(scored, key=lambda pair: -pair[0])


def to_genotype(space: Space, chosen: Chosen, pairs: bool) -> Genotype:
    """Make the genotype of a normal and a reduction cell.

    Args:
        pairs: Write edges in DARTS's form, (operation, source), if each node has two. Otherwise edges are written in
            FairDARTS's form, (operation, target, source), which allows any number.
    """
    two_each = [node for node in space.nodes for _ in range(2)]
    pairs = pairs and all([edge.target for edge in edges] == two_each for edges in chosen.values())
    cells: dict[str, Cell] = {
        kind: tuple((edge.operation, edge.source) if pairs else (*edge,) for edge in edges)
        for kind, edges in chosen.items()
    }
    return Genotype(cells["normal"], space.nodes, cells["reduce"], space.nodes)


def missing_cell(space: Space, cell: AnyCell) -> str | None:
    """Return a kind of cell that has no path from its inputs, so that no network can be made; None if all have one."""
    if space.keep is None:
        return None  # a cell with only `none` is valid in this space
    return next((kind for kind in space.cells if not cell.concat(kind)), None)
