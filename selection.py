"""From mixing weights to a genotype: the rules that read a cell off its weights alone.

DARTS-PT's rule, which asks the supernet, is in search/perturbation.py.
"""

from collections.abc import Mapping

import numpy as np

from genotypes import Cell, Edge, Genotype
from spaces import EDGES, NODES, Space


def select(space: Space, weights: Mapping[str, np.ndarray], rule: str = "argmax", threshold: float = 0.85) -> Genotype:
    """The genotype that a rule reads off the mixing weights.

    `none` is never chosen. Each edge is read by its own list of candidates, which differ from edge to edge in S1.

    Args:
        space: the candidates of every edge.
        weights: "normal" and "reduce", (edges, operations) each.
        rule: "argmax" (DARTS, section 2.4): each node keeps the two edges with the largest best-operation weight;
            "threshold_sparse" (FairDARTS, section 3.4): of those two, the ones whose best weight reaches the threshold;
            "threshold_edge": of all edges, up to two operations each that reach it.

    Returns:
        A cell in DARTS's form for argmax, in FairDARTS's for the others. By a threshold a node may have no edge, and a
        cell none at all: `missing_cell` tells.
    """
    cells: dict[str, Cell] = {}
    for kind in ("normal", "reduce"):
        cell: list[Edge] = []
        for node in range(2, 2 + NODES):
            # the operations of each edge into the node by weight, the heaviest first; sorting is stable, so that among
            # equals the earlier one comes first
            ranked = [
                sorted(
                    (
                        (float(weight), Edge(operation, node, source))
                        for weight, operation in zip(weights[kind][edge], space.cells[kind][edge], strict=True)
                        if operation != "none"
                    ),
                    key=lambda scored: -scored[0],
                )
                for edge, (source, target) in enumerate(EDGES)
                if target == node
            ]
            if rule == "threshold_edge":
                chosen = [scored for operations in ranked for scored in operations[:2]]
            else:
                chosen = sorted((operations[0] for operations in ranked), key=lambda scored: -scored[0])[:2]
            cell += [edge for weight, edge in chosen if rule == "argmax" or weight >= threshold]
        pairs = rule == "argmax"
        cells[kind] = tuple((edge.operation, edge.source) if pairs else (*edge,) for edge in cell)
    nodes = tuple(range(2, 2 + NODES))
    return Genotype(cells["normal"], nodes, cells["reduce"], nodes)


def missing_cell(genotype: Genotype) -> str | None:
    """The kind of a cell without a path from its inputs, which no network can be built of; None where there is none."""
    return next((kind for kind in ("normal", "reduce") if not genotype.concat(kind)), None)
