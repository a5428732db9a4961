"""Genotypes: the discrete cells that a search ends in, and the published ones by name.

A cell lists its edges and the nodes whose outputs it concatenates. States 0 and 1 are the cell's inputs, 2 and up its
intermediate nodes. An edge is written in one of two forms, one form a cell:

* (operation, source): DARTS's form, two edges for each node, in the order of the nodes;
* (operation, target, source): FairDARTS's form, any number of edges for a node. A node without a live edge is dropped
  from the output, and so are the edges that leave it.

The published cells lie in published_cells.json. To add one of your own, write it at the end of this file; it can then
be named wherever a script takes --arch.
"""

import ast
import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lib.files import read_text

#: every operation an edge of a genotype may carry
PRIMITIVES = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_7x1_1x7",
    "noise",
)

#: the edges of a cell, in one of the two forms
Cell = tuple[tuple[str, int] | tuple[str, int, int], ...]


class Edge(NamedTuple):
    """One operation from state `source` to state `target`."""

    operation: str
    target: int
    source: int


class AnyCell(Protocol):
    """A cell of any space, as searches, drawings and reports use it: a Genotype, or a cell of NAS-Bench-201."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its kinds of cells."""

    def states(self, kind: str) -> dict[int | str, tuple[str, str]]:
        """The name and role of each state: "input", "node" or "output"."""

    def edges(self, kind: str) -> list[Edge]:
        """The operations, as (operation, target, source)."""

    def concat(self, kind: str) -> list[int]:
        """The nodes that the output concatenates."""

    def to_json(self) -> str:
        """The cell as a JSON object."""

    def _asdict(self) -> dict[str, Any]: ...  # as of any NamedTuple


class Genotype(NamedTuple):
    """A normal and a reduction cell (DARTS, ICLR 2019, section 2.4). See the head of this file for the two forms."""

    normal: Cell
    normal_concat: tuple[int, ...]
    reduce: Cell
    reduce_concat: tuple[int, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its kinds of cells."""
        return ("normal", "reduce")

    def edges(self, kind: str) -> list[Edge]:
        """The live edges of the "normal" or the "reduce" cell, in either form, as (operation, target, source)."""
        edges = _edges(getattr(self, kind))
        live = {0, 1}
        for edge in sorted(edges, key=lambda edge: edge.target):  # a source stands before its targets
            if edge.source in live:
                live.add(edge.target)
        return [edge for edge in edges if edge.source in live]

    def concat(self, kind: str) -> list[int]:
        """The nodes that the cell concatenates: those listed that have a live edge."""
        live = {edge.target for edge in self.edges(kind)}
        return [node for node in getattr(self, f"{kind}_concat") if node in live]

    def states(self, kind: str) -> dict[int | str, tuple[str, str]]:
        """The states of a cell, their names in the papers and their roles: {0: ("c_{k-2}", "input"), ...}."""
        nodes = sorted({edge.target for edge in self.edges(kind)})
        return {
            0: ("c_{k-2}", "input"),
            1: ("c_{k-1}", "input"),
            **{node: (str(node - 2), "node") for node in nodes},
            "output": ("c_{k}", "output"),
        }

    def sums_nodes(self, kind: str) -> bool:
        """True if the cell is in FairDARTS's form, whose network applies drop path to a node's sum."""
        return len(getattr(self, kind)[0]) == 3

    def to_json(self) -> str:
        """The genotype as a JSON object, a line for each of its four parts."""
        parts = (f" {json.dumps(part)}: {json.dumps(value)}" for part, value in self._asdict().items())
        return "{\n" + ",\n".join(parts) + "\n}\n"


def _edges(cell: Cell) -> list[Edge]:
    return [
        Edge(entry[0], entry[1], entry[2]) if len(entry) == 3 else Edge(entry[0], 2 + position // 2, entry[1])
        for position, entry in enumerate(cell)
    ]


def make_genotype(parts: object) -> Genotype:
    """Check a mapping with the four parts of a genotype and make the Genotype of it.

    Raises:
        ValueError: a part is missing or unknown, or an operation, index or shape is wrong; the message says which.
    """
    if not isinstance(parts, dict):
        raise ValueError(f"expected an object with {', '.join(Genotype._fields)}, got {_short(parts)}")
    missing = [field for field in Genotype._fields if field not in parts]
    unknown = [str(key) for key in parts if key not in Genotype._fields]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(map(_short, unknown))}"
        raise ValueError(f"expected {', '.join(Genotype._fields)}; the genotype {wrong}")
    normal = _check_edges("normal", parts["normal"])
    normal_concat = _check_concat("normal", parts["normal_concat"], normal)
    reduce = _check_edges("reduce", parts["reduce"])
    reduce_concat = _check_concat("reduce", parts["reduce_concat"], reduce)
    genotype = Genotype(normal, normal_concat, reduce, reduce_concat)
    for kind in genotype.kinds:
        if not genotype.concat(kind):
            raise ValueError(f"{kind}_concat: expected a node with a path from the cell's inputs, found none")
    return genotype


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_edges(kind: str, cell: object) -> Cell:
    if not isinstance(cell, list | tuple) or not cell:
        raise ValueError(f"{kind}: expected a list of edges, got {_short(cell)}")
    for position, entry in enumerate(cell):
        where = f"{kind}, edge {position}"
        if not isinstance(entry, list | tuple) or len(entry) != len(cell[0]) or len(entry) not in (2, 3):
            raise ValueError(
                f"{where}: expected [operation, source] or [operation, target, source], one form in a cell, "
                f"got {_short(entry)}"
            )
        if entry[0] not in PRIMITIVES:
            raise ValueError(f"{where}: operation {_short(entry[0])}, expected one of {', '.join(PRIMITIVES)}")
        if not all(map(_is_index, entry[1:])):
            raise ValueError(f"{where}: expected whole numbers for its states, got {_short(entry)}")
    if len(cell[0]) == 2 and len(cell) % 2:
        raise ValueError(f"{kind}: expected two edges for each node, got {len(cell)} edges")
    cell = tuple(tuple(entry) for entry in cell)
    seen = set()
    for position, edge in enumerate(_edges(cell)):
        if not 0 <= edge.source < edge.target or edge.target < 2:
            raise ValueError(
                f"{kind}, edge {position}: source {edge.source} of node {edge.target}, expected an earlier state, "
                f"0 to {max(edge.target - 1, 1)}, and nodes from 2 on"
            )
        # DARTS's form may repeat an edge (NASNet does); in FairDARTS's an operation is on an edge or is not.
        if len(cell[0]) == 3 and edge in seen:
            raise ValueError(
                f"{kind}, edge {position}: {edge.operation} {edge.source} -> {edge.target} stands twice, expected once"
            )
        seen.add(edge)
    return cell


def _check_concat(kind: str, concat: object, cell: Cell) -> tuple[int, ...]:
    last = max(edge.target for edge in _edges(cell))
    # FairDARTS lists all four nodes, a dropped last one too.
    highest = max(last, 5) if len(cell[0]) == 3 else last
    if (
        not isinstance(concat, list | tuple | range)
        or not concat
        or not all(_is_index(node) and 2 <= node <= highest for node in concat)
        or len(set(concat)) != len(concat)
    ):
        raise ValueError(f"{kind}_concat: expected distinct nodes from 2 to {highest}, got {_short(concat)}")
    return tuple(concat)


def parse_genotype(text: str) -> Genotype:
    """Read a genotype from JSON, or from the form that logs print: Genotype(normal=[('sep_conv_3x3', 1), ...], ...).

    The text is data: nothing in it is evaluated.

    Raises:
        ValueError: it is neither, or what it says is wrong.
    """
    try:
        called = text.lstrip().startswith("Genotype(")
        return make_genotype(_parse_call(text) if called else json.loads(text, object_pairs_hook=_once))
    except (json.JSONDecodeError, SyntaxError, RecursionError) as error:
        raise ValueError(f"expected a genotype as JSON or as Genotype(...): {error}") from error


def _parse_call(text: str) -> dict[str | None, object]:
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except MemoryError:  # what the parser calls a text that is nested too deeply
        raise SyntaxError("nested too deeply") from None
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("expected Genotype(normal=..., normal_concat=..., reduce=..., reduce_concat=...)")
    parts: list[tuple[str | None, object]] = []
    for keyword in call.keywords:
        value = keyword.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "range":
            bounds = [_literal(bound) for bound in value.args]
            if len(bounds) != 2 or not all(_is_index(bound) and 0 <= bound <= 100 for bound in bounds):
                raise ValueError(f"{keyword.arg}: expected range(first, last + 1), got range{tuple(bounds)}")
            parts.append((keyword.arg, range(*bounds)))
        else:
            parts.append((keyword.arg, _literal(value)))
    return _once(parts)


def _once(parts: Iterable[tuple[str | None, object]]) -> dict[str | None, object]:
    named: dict[str | None, object] = {}
    for name, part in parts:
        if name in named:
            raise ValueError(f"{name}: given twice, expected once")
        named[name] = part
    return named


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected lists of edges and numbers, got {_short(ast.unparse(node))}") from error


def load_genotype(spec: str) -> Genotype:
    """The genotype that `spec` names: a cell of this file, a file with one, or a run folder with a genotype.json.

    Raises:
        ValueError: there is no such name, or the file holds no genotype.
        OSError: the file cannot be read.
    """
    if spec in CELLS:
        return make_genotype(CELLS[spec]._asdict())
    path = Path(spec)
    if path.is_dir():
        path /= "genotype.json"
        if not path.exists():
            raise ValueError(f"{spec}: a folder without genotype.json; expected a finished run")
    if not path.exists():
        similar = ", ".join(difflib.get_close_matches(spec, CELLS, n=3)) or "DARTS_V2"
        raise ValueError(
            f"{spec!r}, expected a cell of genotypes.py (such as {similar}), a genotype file or a run folder"
        )
    text = read_text(path)
    try:
        return parse_genotype(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


#: The cells by name. LambdaDARTS_*: Λ-DARTS (ICLR 2023); DARTSminus_*: DARTS- (ICLR 2021); FairDARTS_*: FairDARTS
#: (ECCV 2020); the rest as the DARTS, PC-DARTS and FairDARTS repositories list them.
CELLS: dict[str, Genotype] = {
    name: make_genotype(parts)
    for name, parts in json.loads(Path(__file__).with_name("published_cells.json").read_text(encoding="utf-8")).items()
}

# Your own cells:
# CELLS["mine"] = Genotype(normal=(("sep_conv_3x3", 0), ...), normal_concat=(2, 3, 4, 5), reduce=..., reduce_concat=...)
