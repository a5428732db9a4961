"""The cells of NAS-Bench-201 (Dong and Yang, ICLR 2020): one operation on each of six edges between four states.

A cell is written as the benchmark writes it: |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, a group for each of the states 1 to
3, in it an operation and its source for each edge. State 0 is the input, state 3 the output, each state the sum of its
edges; 5^6 = 15,625 cells. Light: nothing here imports torch.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from files import read_text
from genotypes import Edge, Genotype, load_genotype
from spaces import SPACES

EDGES = SPACES["nasbench201"].edges
#: the operations, in the order of the columns of alpha
OPERATIONS = SPACES["nasbench201"].cells["cell"][0]


class Cell201(NamedTuple):
    """A cell, by its string. `parse_cell` and `make_cell` check what they make."""

    arch: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its kinds of cells: one, unlike the cells of DARTS."""
        return ("cell",)

    def __str__(self) -> str:
        return self.arch

    @property
    def operations(self) -> tuple[str, ...]:
        """The operation of each edge, in the order of the rows of alpha."""
        return tuple(part.partition("~")[0] for part in self.arch.replace("+", "").strip("|").split("|") if part)

    def edges(self, kind: str = "cell") -> list[Edge]:
        """The edges with an operation other than `none`, as (operation, target, source)."""
        return [
            Edge(operation, target, source)
            for operation, (source, target) in zip(self.operations, EDGES, strict=True)
            if operation != "none"
        ]

    def concat(self, kind: str = "cell") -> list[int]:
        """The states that the cell concatenates: none, its output is state 3."""
        return []

    def states(self, kind: str = "cell") -> dict[int | str, tuple[str, str]]:
        """The states, their names and their roles in a drawing."""
        return {0: ("c_{k-1}", "input"), 1: ("1", "node"), 2: ("2", "node"), 3: ("c_{k}", "output")}

    def to_json(self) -> str:
        """The cell as a JSON object."""
        return json.dumps(self._asdict()) + "\n"

    def canonical(self) -> str:
        """The same text for cells that the benchmark counts as isomorphic: 6,466 of 15,625 differ.

        A skip is its source, `none` is #, and so is what an operation makes of a state that is #; the terms of a sum
        are sorted as text. The notation is the benchmark's own, for its count hangs on it: a sum that is skipped stays
        in its place among the others' terms, and # stays in sums.
        """
        states = ["0"]
        for target in range(1, 4):
            terms = []
            for operation, (source, end) in zip(self.operations, EDGES, strict=True):
                if end != target:
                    continue
                if operation == "none" or states[source] == "#":
                    terms.append("#")
                else:
                    terms.append(states[source] if operation == "skip_connect" else f"({states[source]})@{operation}")
            states.append("+".join(sorted(terms)))
        return states[-1]


def make_cell(operations: Sequence[str]) -> Cell201:
    """The cell of an operation for each edge.

    Raises:
        ValueError: there are not six, or one is not of the space.
    """
    if len(operations) != len(EDGES):
        raise ValueError(f"{len(operations)} operations, expected {len(EDGES)}, one for each edge")
    for operation in operations:
        if operation not in OPERATIONS:
            raise ValueError(f"operation {operation!r}, expected one of {', '.join(OPERATIONS)}")
    groups = [
        "|"
        + "|".join(f"{o}~{source}" for o, (source, end) in zip(operations, EDGES, strict=True) if end == target)
        + "|"
        for target in range(1, 4)
    ]
    return Cell201("+".join(groups))


def parse_cell(text: str) -> Cell201:
    """Read a cell from the benchmark's string, or from the JSON of `Cell201.to_json`.

    Raises:
        ValueError: it is neither.
    """
    text = text.strip()
    if text.startswith("{"):
        try:
            text = json.loads(text)["arch"]
        except (KeyError, ValueError) as error:
            raise ValueError(f'expected a JSON object with "arch", the string of a cell: {error}') from error
        if not isinstance(text, str):
            raise ValueError(f'"arch": {text!r:.200}, expected the string of a cell')
    parts = [part for part in text.replace("+", "").split("|") if part]
    try:
        cell = make_cell([part.partition("~")[0] for part in parts])
    except ValueError as error:
        raise ValueError(f"{text[:200]!r} is no cell: {error}") from error
    if cell.arch != text:
        raise ValueError(f"{text[:200]!r} is no cell, expected a string such as {cell.arch}")
    return cell


def load_cell(spec: str) -> Cell201:
    """The cell that `spec` names: its string, a file with one, or the folder of a finished run.

    Raises:
        ValueError: it is none of these.
        OSError: the file cannot be read.
    """
    if spec.startswith("|"):
        return parse_cell(spec)
    path = Path(spec)
    path = path / "genotype.json" if path.is_dir() else path
    if not path.exists():
        raise ValueError(
            f"{spec!r}, expected a string such as {next(all_cells()).arch}, a file with one or a finished run"
        )
    text = read_text(path)
    try:
        return parse_cell(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_any(spec: str) -> Genotype | Cell201:
    """The genotype of DARTS cells or the cell that `spec` names, whichever it is.

    Raises:
        ValueError: it is neither.
        OSError: the file cannot be read.
    """
    path = Path(spec) / "genotype.json" if Path(spec).is_dir() else Path(spec)
    text = read_text(path).lstrip() if path.is_file() else spec
    of_201 = text.startswith("|") or (text.startswith("{") and '"arch"' in text)
    return load_cell(spec) if of_201 else load_genotype(spec)


def all_cells() -> Iterator[Cell201]:
    """All 15,625 cells, in the order of their operations (the benchmark's own order is in its table)."""
    return map(make_cell, itertools.product(OPERATIONS, repeat=len(EDGES)))
