"""Genotypes: the discrete cells that searches derive, and the published cells by name.

A cell lists its edges and the nodes whose outputs it concatenates. States 0 and 1 are the cell's inputs. States from 2
on are its intermediate nodes. All edges of a cell are written in one of two forms:

* (operation, source): DARTS's form, with two edges for each node, in the order of the nodes;
* (operation, target, source): FairDARTS's form, with any number of edges for each node.

Edges of `none` are left out. A node that has no path from the inputs is dropped from the output, together with the
edges that leave it.

published_cells.json has the published cells and their sources. To add a cell, write it at the end of this file. Every
script that takes --arch then accepts its name. Only `load_genotype` needs torch, to check the names of operations.
"""

import difflib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lib import plugins
from lib.calls import find_calls, read_arguments, unique
from lib.files import read_text, read_yaml, seeds_hint
from lib.launch import is_first

#: the edges of a cell, in one of the two forms
Cell = tuple[tuple[str, int] | tuple[str, int, int], ...]


class Edge(NamedTuple):
    """One operation from state `source` to state `target`."""

    operation: str
    target: int
    source: int


class AnyCell(Protocol):
    """The interface of a cell of any space: a Genotype, or a cell of NAS-Bench-201."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cells."""

    def states(self, kind: str) -> dict[int | str, tuple[str, str]]:
        """The name and role of each state: "input", "node" or "output"."""

    def edges(self, kind: str) -> list[Edge]:
        """The operations, as (operation, target, source)."""

    def concat(self, kind: str) -> list[int]:
        """The nodes that the output concatenates."""

    def to_json(self) -> str:
        """The cell as a JSON object."""

    def _asdict(self) -> dict[str, Any]: ...  # NamedTuple has it


class Genotype(NamedTuple):
    """A normal and a reduction cell (DARTS, ICLR 2019, section 2.4). The top of this file describes the two forms."""

    normal: Cell
    normal_concat: tuple[int, ...]
    reduce: Cell
    reduce_concat: tuple[int, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cells."""
        return ("normal", "reduce")

    def edges(self, kind: str) -> list[Edge]:
        """The live edges of the "normal" or the "reduce" cell, in either form, as (operation, target, source)."""
        edges = [edge for edge in _edges(getattr(self, kind)) if edge.operation != "none"]
        live = {0, 1}
        for edge in sorted(edges, key=lambda edge: edge.target):  # a source has a smaller number than its targets
            if edge.source in live:
                live.add(edge.target)
        return [edge for edge in edges if edge.source in live]

    def concat(self, kind: str) -> list[int]:
        """The nodes that the cell concatenates: the listed nodes that have a live edge."""
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
        """The genotype as a JSON object, with one line for each of its four parts."""
        parts = (f" {json.dumps(part)}: {json.dumps(value)}" for part, value in self._asdict().items())
        return "{\n" + ",\n".join(parts) + "\n}\n"


def _edges(cell: Cell) -> list[Edge]:
    return [
        Edge(entry[0], entry[1], entry[2]) if len(entry) == 3 else Edge(entry[0], 2 + position // 2, entry[1])
        for position, entry in enumerate(cell)
    ]


def make_genotype(parts: object) -> Genotype:
    """Check a mapping with the four parts of a genotype, and make a Genotype from it.

    Raises:
        ValueError: A part is missing or unknown, or an index or a shape is wrong; the message says which. (The names of
            operations are not checked.)
    """
    if not isinstance(parts, dict):
        raise ValueError(f"expected an object with {', '.join(Genotype._fields)}, got {_short(parts)}")
    missing = [field for field in Genotype._fields if field not in parts]
    unknown = [str(key) for key in parts if key not in Genotype._fields]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has unknown parts {', '.join(map(_short, unknown))}"
        raise ValueError(f"expected {', '.join(Genotype._fields)}; the genotype {wrong}")
    normal = _check_edges("normal", parts["normal"])
    normal_concat = _check_concat("normal", parts["normal_concat"], normal)
    reduce = _check_edges("reduce", parts["reduce"])
    reduce_concat = _check_concat("reduce", parts["reduce_concat"], reduce)
    genotype = Genotype(normal, normal_concat, reduce, reduce_concat)
    for kind in genotype.kinds:
        if not genotype.concat(kind):
            raise ValueError(f"{kind}_concat: no node in it has a path from the cell's inputs; expected one or more")
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
        where = f"{kind}, edge {position} {_short(entry)}"
        if not isinstance(entry, list | tuple) or len(entry) not in (2, 3) or len(entry) != len(cell[0]):
            raise ValueError(
                f"{where}: expected [operation, source] or [operation, target, source], one form for all edges"
            )
        if not isinstance(entry[0], str) or not entry[0]:
            raise ValueError(f"{where}: expected the name of an operation first")
        if not all(map(_is_index, entry[1:])):
            raise ValueError(f"{where}: expected whole numbers for its states")
    if len(cell[0]) == 2 and len(cell) % 2:
        raise ValueError(f"{kind}: expected two edges for each node, got {len(cell)} edges")
    cell = tuple(tuple(entry) for entry in cell)
    seen = set()
    for position, edge in enumerate(_edges(cell)):
        where = f"{kind}, edge {position} {_short(cell[position])}"
        if not 0 <= edge.source < edge.target or edge.target < 2:
            raise ValueError(
                f"{where}: source {edge.source} of node {edge.target}, expected a source from 0 to "
                f"{max(edge.target - 1, 1)} and a node from 2 on"
            )
        # DARTS's form may repeat an edge (NASNet does). FairDARTS's form may not.
        if len(cell[0]) == 3 and edge in seen:
            raise ValueError(f"{where}: this edge is listed twice, expected once")
        seen.add(edge)
    return cell


def _check_concat(kind: str, concat: object, cell: Cell) -> tuple[int, ...]:
    last = max(edge.target for edge in _edges(cell))
    # FairDARTS lists all nodes of the space, even if the last ones have no edges.
    highest = 100 if len(cell[0]) == 3 else last
    if (
        not isinstance(concat, list | tuple | range)
        or not concat
        or not all(_is_index(node) and 2 <= node <= highest for node in concat)
        or len(set(concat)) != len(concat)
    ):
        raise ValueError(f"{kind}_concat: expected distinct nodes from 2 to {highest}, got {_short(concat)}")
    return tuple(concat)


def parse_genotype(text: str, name: str = "") -> Genotype:
    """Read a genotype from JSON, from Genotype(...) as logs print it, or from Python source, mine = Genotype(...).

    If a log has several genotypes, the last one is read. The text is parsed as data and never evaluated.

    Args:
        name: The name of the cell to read, if the text assigns names to several cells.

    Raises:
        ValueError: The text is none of these, its genotype is invalid, or it has no cell with this name.
    """
    text = text.removeprefix("\ufeff")
    try:
        calls = find_calls(text, "Genotype")
        named = {own: source for own, source in calls if own}
        if name and name not in named:
            others = f"; its cells are {', '.join(named)}" if named else ""
            raise ValueError(f"it has no {name} = Genotype(...){others}")
        if not name and len(set(named.values())) > 1:
            raise ValueError(f"it has several cells; write FILE:NAME to choose one of {', '.join(named)}")
        if calls:
            return make_genotype(read_arguments(named[name] if name else calls[-1][1], Genotype._fields))
        return make_genotype(json.loads(text, object_pairs_hook=unique))
    except (json.JSONDecodeError, SyntaxError, RecursionError) as error:
        raise ValueError(f"expected a genotype as JSON or as Genotype(...): {error}") from error


def load_genotype(spec: str) -> Genotype:
    """Read a genotype, check that a network can be made from it, and warn of edges of `none`.

    Args:
        spec: As in `read_genotype`.

    Raises:
        ValueError: There is no such genotype, it is invalid, or one of its operations is unknown.
        OSError: The file cannot be read.
    """
    config = os.path.join(spec, "config.yaml")
    if os.path.isfile(config):  # `spec` is a run folder
        plugins.check_config(read_yaml(Path(config)), spec)
    genotype = read_genotype(spec)
    if spec not in CELLS:
        _check_operations(genotype, cell_label(spec))
    left_out = [entry[0] for kind in genotype.kinds for entry in getattr(genotype, kind)].count("none")
    if left_out and is_first():
        edges = "1 edge of none is" if left_out == 1 else f"{left_out} edges of none are"
        print(f"warning: {cell_label(spec)}: {edges} left out", file=sys.stderr)
    return genotype


def _check_operations(genotype: Genotype, name: str) -> None:
    from operations import OPERATIONS  # imports torch

    for kind in genotype.kinds:
        for position, entry in enumerate(getattr(genotype, kind)):
            if entry[0] not in OPERATIONS:
                near = difflib.get_close_matches(entry[0], OPERATIONS, n=1)
                raise ValueError(
                    f"{name}: {kind}, edge {position} {_short(entry)}: unknown operation {_short(entry[0])}"
                    + (f"; did you mean {near[0]}?" if near else ".")
                    + " Load your own operations with --plugin FILE.py"
                )


def read_genotype(spec: str) -> Genotype:
    """Read a genotype for reports and drawings. Its operations may be unknown.

    Args:
        spec: The name of a cell, a file with a genotype, FILE:NAME for one of several in a file, a run folder with a
            genotype.json, or the text of a genotype.

    Raises:
        ValueError: There is no such genotype, or it is invalid.
        OSError: The file cannot be read.
    """
    cells = named_cells()
    where, name, text = cell_label(spec), "", spec
    if not _is_text(spec) and spec not in cells:
        where, name = _find_file(spec)
        text = read_text(Path(where))
    try:
        return make_genotype(cells[spec]._asdict()) if spec in cells else parse_genotype(text, name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _is_text(spec: str) -> bool:
    """True if `spec` is the text of a genotype, and not a name or a path."""
    return re.match(r"[\ufeff\s]*\{", spec) is not None or "Genotype(" in spec


def cell_label(spec: str) -> str:
    """The name of a cell in messages: `spec`, or "genotype" if `spec` is the text of a genotype."""
    return "genotype" if _is_text(spec) else spec


def short_name(spec: str) -> str:
    """A short name of the cell that `spec` gives, for naming a folder."""
    path, name = _split(cell_label(spec))
    return name or Path(path).stem


def _split(spec: str) -> tuple[str, str]:
    """Split FILE:NAME into its two parts. The name is "" for any other path."""
    path, _, name = spec.rpartition(":")
    return (path, name) if os.path.isfile(path) and not os.path.exists(spec) else (spec, "")


def _find_file(spec: str) -> tuple[str, str]:
    """Return the file that FILE, FILE:NAME or a run folder gives, and the name of the cell in it."""
    path, name = _split(spec)
    if os.path.isdir(path):
        path = os.path.join(path, "genotype.json")
        if not os.path.exists(path):
            hint = seeds_hint(Path(spec))
            raise ValueError(f"{spec} has no genotype.json; expected the folder of a finished run{hint}")
    if not os.path.exists(path):
        similar = ", ".join(difflib.get_close_matches(spec, named_cells(), n=3)) or "DARTS_V2"
        raise ValueError(
            f"{_short(spec)}, expected a cell of genotypes.py (such as {similar}), a genotype file or a run folder"
        )
    return path, name


def _load_published() -> dict[str, Genotype]:
    cells = json.loads(Path(__file__).with_name("published_cells.json").read_text(encoding="utf-8"))
    return {name: make_genotype({part: cell[part] for part in Genotype._fields}) for name, cell in cells.items()}


#: The published cells by name. The file also has their sources and, if known, their spaces and data sets.
CELLS = _load_published()


def named_cells() -> dict[str, Genotype]:
    """All cells by name: the published ones, those in this file and those in plugins.

    Raises:
        ValueError: Two different cells have one name.
    """
    cells = dict(CELLS)
    for namespace in (globals(), *(vars(plugin.module) for plugin in plugins.LOADED)):
        for name, cell in namespace.items():
            if isinstance(cell, Genotype) and cells.setdefault(name, cell) != cell:
                raise ValueError(f"cell {name!r} of {namespace.get('__file__')}: this name is taken; choose another")
    return cells


# Your own cells, in the form that DARTS and its logs print:
# mine = Genotype(normal=[("sep_conv_3x3", 1), ("skip_connect", 0), ...], normal_concat=range(2, 6), reduce=...)
