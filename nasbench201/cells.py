"""The cells of NAS-Bench-201 (Dong and Yang, ICLR 2020): one operation on each of six edges between four states.

A cell is written as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, with a group for each of the states 1 to 3 that lists the
operation and the source of each edge. State 0 is the input and state 3 the output. Each state after the input is the
sum of the edges into it. There are 5^6 = 15,625 cells. Nothing here imports torch.
"""

import ast
import itertools
import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genotypes import Edge, Genotype, read_genotype
from lib.files import read_text, seeds_hint
from spaces import SPACES

EDGES = SPACES["nasbench201"].edges
#: the operations, in the order of the columns of alpha
OPERATIONS = SPACES["nasbench201"].cells["cell"][0]
#: the data sets of the accuracy table that a search may look up
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet16_120": "ImageNet16-120"}
EXAMPLE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"


class Cell201(NamedTuple):
    """A cell, given by its string. Make one with `parse_cell` or `make_cell`, which check it."""

    arch: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cells, of which this space has only one."""
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
        """The states that the cell concatenates: none, because its output is state 3."""
        return []

    def states(self, kind: str = "cell") -> dict[int | str, tuple[str, str]]:
        """The states, their names and their roles in a drawing."""
        return {0: ("c_{k-1}", "input"), 1: ("1", "node"), 2: ("2", "node"), 3: ("c_{k}", "output")}

    def to_json(self) -> str:
        """The cell as a JSON object."""
        return json.dumps(self._asdict()) + "\n"

    def canonical(self) -> str:
        """The canonical form of the cell, which is equal for cells that the benchmark counts as isomorphic.

        The 15,625 cells have 6,466 forms. A skip connection is written as its source, and `none` as #. An operation on
        # is # too. The terms of a sum are sorted as text. The benchmark's count depends on this notation, in which a
        skipped sum is one term and # stays in sums.
        """
        states, operations = ["0"], iter(self.operations)
        for target in range(1, 4):
            terms = []
            for source, operation in zip(range(target), operations, strict=False):
                if operation == "none" or states[source] == "#":
                    terms.append("#")
                else:
                    terms.append(states[source] if operation == "skip_connect" else f"({states[source]})@{operation}")
            states.append("+".join(sorted(terms)))
        return states[-1]


def operations_of(cells: Iterable[Cell201]) -> np.ndarray:
    """The operation of each edge, as an index into OPERATIONS: (N, 6) uint8."""
    return np.array([[OPERATIONS.index(name) for name in cell.operations] for cell in cells], dtype=np.uint8)


def make_cell(operations: Sequence[str]) -> Cell201:
    """Make the cell with these operations, in the order of EDGES.

    Raises:
        ValueError: There are not six operations, or one is not in the space.
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
    """Read a cell from any form of the benchmark's string.

    The forms are |op~0|+|op~0|op~1|+..., with or without spaces and with the sources of a state in any order;
    Structure(4 nodes with ...), as in the benchmark's logs; the benchmark's tuples ((op, 0),), ((op, 0), (op, 1)), ...;
    and the JSON of `Cell201.to_json`.

    Raises:
        ValueError: The text is none of these.
    """
    text = text.removeprefix("\ufeff").strip()
    if text.startswith("{"):
        try:
            content = json.loads(text)
            if isinstance(content, dict) and "normal" in content:
                raise ValueError("this is a genotype of DARTS's cells; expected a cell of NAS-Bench-201")
            text = content["arch"]
        except (KeyError, TypeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f'expected a JSON object with "arch", the string of a cell: {error}') from error
        if not isinstance(text, str):
            raise ValueError(f'"arch": {text!r:.200}, expected the string of a cell')
    try:
        states = _states_in(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:200]!r} is not a cell: expected a string such as {EXAMPLE}") from error
    try:
        return _cell_of(states)
    except ValueError as error:
        raise ValueError(f"{text[:200]!r} is not a cell: {error}") from error


def _states_in(text: str) -> list[list[tuple[str, int]]]:
    """Read the (operation, source) pairs of each state. Raises errors of many kinds if the text does not list them."""
    if text.startswith(("(", "[")):
        return [[(str(name), operator.index(source)) for name, source in state] for state in ast.literal_eval(text)]
    if logged := re.fullmatch(r"\w+\(\d+ nodes with (.*)\)", text):
        text = logged[1]
    states = []
    for group in text.split("+"):
        pairs = [part.partition("~") for part in group.split("|") if part.strip()]
        states.append([(name.strip(), int(source)) for name, _, source in pairs])
    return states


def _cell_of(states: list[list[tuple[str, int]]]) -> Cell201:
    """Make the cell with these (operation, source) pairs at the states 1 to 3.

    Raises:
        ValueError: A state does not have each earlier one as a source once, or an operation is not in the space.
    """
    sources = [sorted(source for _, source in state) for state in states]
    if sources != [[0], [0, 1], [0, 1, 2]]:
        raise ValueError(f"sources {sources}, expected [[0], [0, 1], [0, 1, 2]], as in {EXAMPLE}")
    return make_cell([name for state in states for name, _ in sorted(state, key=lambda pair: pair[1])])


def load_cell(spec: str) -> Cell201:
    """Load a cell from its string, a file with one, or the folder of a finished run.

    Raises:
        ValueError: `spec` is none of these.
        OSError: The file cannot be read.
    """
    if _is_text(spec):
        return parse_cell(spec)
    path = Path(spec)
    path = path / "genotype.json" if path.is_dir() else path
    if not path.exists():
        hint = seeds_hint(path.parent) if Path(spec).is_dir() else ""
        raise ValueError(f"{spec!r}, expected a string such as {EXAMPLE}, a file with one or a finished run{hint}")
    text = read_text(path)
    try:
        return parse_cell(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _is_text(spec: str) -> bool:
    """True if `spec` is the text of a cell, and not the name of a file."""
    return re.match(r"[\ufeff\s]*([|(\[{]|\w+\(\d+ nodes)", spec) is not None


def load_any(spec: str, load: Callable[[str], Genotype] = read_genotype) -> Genotype | Cell201:
    """Load a genotype of DARTS cells or a cell of NAS-Bench-201.

    Args:
        load: The function that loads a genotype: `read_genotype`, or `load_genotype` to make a network of it.

    Raises:
        ValueError: `spec` is neither.
        OSError: The file cannot be read.
    """
    text = spec
    if not _is_text(spec):
        path = os.path.join(spec, "genotype.json") if os.path.isdir(spec) else spec
        text = read_text(Path(path)) if os.path.isfile(path) else spec
    of_201 = _is_text(text) and "Genotype(" not in text and ('"arch"' in text or "{" not in text)
    return load_cell(spec) if of_201 else load(spec)


def table_dataset(asked: str, searched: str) -> str:
    """Data set whose accuracies are looked up: `asked`, or `searched` if "auto"; CIFAR-10 if it is not in TITLES."""
    dataset = searched if asked == "auto" else asked
    return dataset if dataset in TITLES else "cifar10"


def all_cells() -> Iterator[Cell201]:
    """All 15,625 cells, in the order of their operations. (The order of the benchmark is in its table.)"""
    return map(make_cell, itertools.product(OPERATIONS, repeat=len(EDGES)))
