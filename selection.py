"""From mixing weights to a genotype."""

from collections.abc import Mapping

import numpy as np

from genotypes import Genotype
from spaces import EDGES, NODES, Space


def argmax(space: Space, weights: Mapping[str, np.ndarray]) -> Genotype:
    """DARTS's rule (section 2.4): each node keeps the two edges with the largest best-operation weight.

    `none` is never chosen. Each edge is read by its own list of candidates, which differ from edge to edge in S1.

    Args:
        space: the candidates of every edge.
        weights: "normal" and "reduce", (edges, operations) each.
    """
    parts = {}
    for kind in ("normal", "reduce"):
        cell = []
        for node in range(2, 2 + NODES):
            best = []
            for edge, (source, target) in enumerate(EDGES):
                if target == node:
                    candidates = getattr(space, kind)[edge]
                    weight, operation = max(
                        (
                            (float(w), name)
                            for w, name in zip(weights[kind][edge], candidates, strict=True)
                            if name != "none"
                        ),
                        key=lambda scored: scored[0],
                    )
                    best.append((weight, operation, source))
            # the stable sort keeps the earlier edge first among equals
            best.sort(key=lambda scored: -scored[0])
            cell += [(operation, source) for _, operation, source in best[:2]]
        parts[kind] = tuple(cell)
        parts[f"{kind}_concat"] = tuple(range(2, 2 + NODES))
    return Genotype(**parts)
