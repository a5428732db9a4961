"""List sentences that may need a second reading: in docstrings, comments, messages, help texts and documents.

It reports docstrings and help that open with What, Whether, Where or Of; help of fewer than four words; sentences of
more than 35 words; and PHRASES, over which readers have stumbled. The status is 1 if it reports a sentence.

    python tools/prose.py                                # the whole project
    python tools/prose.py README.md search/settings.py   # these files
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OPENINGS = re.compile(r"(what|whether|where|of)\b", re.IGNORECASE)
PHRASES = re.compile(
    r"\b(beside it wins?|of a damaged one|makes? no sense together|(is|are) warned of|(is|are) refused with"
    r"|for it is what|what else is|nothing else holds|lost it beside|begins? so|it is none or|kept is|of these the"
    r"|what came of|the other way round|for ever|as it must be|nothing of a)\b|^of these\b",
    re.IGNORECASE,
)
LONGEST = 35  # words of a sentence


class Text(NamedTuple):
    """A piece of prose, with the line at which it begins."""

    line: int
    kind: str  # docstring, help, message, comment or document
    text: str


def strings(tree: ast.Module) -> Iterator[Text]:
    """The docstrings of a module, its help texts, and its other strings of more than three words."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    kinds = {id(line.value): "docstring" for line in first if isinstance(line, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "help":
            kinds[id(node.value)] = "help"
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "").startswith(("of_", "option")):
            kinds |= {id(argument): "help" for argument in node.args[1:2]}
        elif isinstance(node, ast.JoinedStr):
            kinds |= {id(part): "part" for part in node.values}
    for node in ast.walk(tree):
        text, kind = written(node), kinds.get(id(node), "message")
        if text and kind != "part" and (kind != "message" or len(text.split()) > 3):
            yield Text(node.lineno, kind, text)  # type: ignore[attr-defined]


def written(node: ast.AST) -> str:
    """The text of a string or of an f-string, in which X stands for each value."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def comments(source: str) -> Iterator[Text]:
    """The comments that have lines of their own; those on successive lines are one text."""
    lines = {number: line for number, line in enumerate(source.splitlines(), 1) if line.lstrip().startswith("#")}
    for line in lines:
        if line - 1 not in lines:
            last = next(after for after in range(line, line + len(lines) + 1) if after not in lines)
            yield Text(line, "comment", " ".join(lines[number].strip().lstrip("#: ") for number in range(line, last)))


def texts(path: Path) -> Iterator[Text]:
    """All prose of a file."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from strings(ast.parse(source))
    elif path.suffix == ".md":
        outside = re.sub(r"^```.*?^```|<[^>]*>", lambda code: "\n" * code[0].count("\n"), source, flags=re.M | re.S)
        yield Text(1, "document", outside)
    if path.suffix != ".md":
        yield from comments(source)


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """The sentences of a text, each with its line from 0. Examples of commands are no sentences."""
    text = re.sub(r"^ *(python|bash|torchrun) .*$", "", text, flags=re.M)
    for block in re.finditer(r"(?:(?!\n\s*\n|\n\s*(?:[-*|#]|\d+\.|\w+:) ).)+", text, re.S):
        for part in re.finditer(r".+?(?:[.!?;:](?=[\s*)]|$)|[|]|$)", block[0], re.S):
            yield text.count("\n", 0, block.start() + part.start()), " ".join(part[0].split())


def reasons(kind: str, sentence: str, first: bool) -> Iterator[str]:
    """The reasons to report a sentence."""
    words = [word for word in sentence.split() if re.search(r"\w", word)]
    if first and kind in ("docstring", "help") and OPENINGS.match(sentence):
        yield "opening"
    if len(words) > LONGEST:
        yield f"{len(words)} words"
    if PHRASES.search(sentence):
        yield "phrase"


def reported(path: Path) -> Iterator[str]:
    """A line for each reason to look at a sentence of a file."""
    for text in texts(path):
        if text.kind == "help" and len(text.text.split()) < 4:
            yield f"{path}:{text.line}: {text.kind}: short: {text.text}"
        for number, (line, sentence) in enumerate(sentences(text.text)):
            for reason in reasons(text.kind, sentence, number == 0):
                yield f"{path}:{text.line + line}: {text.kind}: {reason}: {sentence}"


def main() -> None:
    """Print the reported sentences."""
    parser = argparse.ArgumentParser(prog="prose.py", description="List sentences that may need a second reading.")
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="Files to read. By default the whole project."
    )
    files = parser.parse_args().files
    if missing := next((path for path in files if not path.is_file()), None):
        parser.error(f"FILE: {missing}, expected a file that exists")
    patterns = ("*.md", "*.py", "*/*.py", "*/*.md", "*/*.sh", "scripts/tables/*.yaml")
    files = files or [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    files = [path for path in files if path.name not in ("prose.py", "test_prose.py")]  # they hold the phrases
    found = [line for path in files for line in reported(path)]
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
