"""Search spaces of DARTS cells: the candidate operations of every edge.

S1 to S4 are RobustDARTS's (Zela et al., ICLR 2020, section 3), S5 is DARTS's space without `none`.
A cell has two inputs (states 0 and 1) and four intermediate nodes (states 2 to 5); the edges into a node come from all
states before it, so edge 0 is (0 -> 2), edge 1 is (1 -> 2), edge 2 is (0 -> 3), ... , edge 13 is (4 -> 5).
"""

from typing import NamedTuple

#: intermediate nodes of a cell
NODES = 4
#: (source state, target state) of the 14 edges, in the order of the rows of alpha
EDGES = tuple((source, 2 + node) for node in range(NODES) for source in range(2 + node))

Candidates = tuple[tuple[str, ...], ...]


class Space(NamedTuple):
    """The candidate operations of the 14 edges of a normal and of a reduction cell."""

    normal: Candidates
    reduce: Candidates


def _everywhere(*operations: str) -> Space:
    return Space((operations,) * len(EDGES), (operations,) * len(EDGES))


SPACES: dict[str, Space] = {
    "s1": Space(
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
}
