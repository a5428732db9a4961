"""Find calls such as `mine = Genotype(...)` in Python files, logs and other text. Nothing is evaluated."""

import ast
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

#: comments and strings, whose parentheses do not count, and the parentheses that count
_TOKEN = re.compile(r"""#.*|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|[()]""")


#: a number as NumPy prints it, such as np.int64(1)
_NUMPY = re.compile(r"\bnp\.\w+\(([\d.+-]+)\)")


def find_calls(text: str, function: str) -> list[tuple[str, str]]:
    """The calls of a function in a text, as pairs: the name that the call is assigned to (or ""), and its source.

    In Python source, only calls at the top level count. In other text, such as a log, all calls count.
    """
    text = _NUMPY.sub(r"\1", text)
    try:
        statements = _parse(text.strip(), "exec").body
    except SyntaxError:
        return _in_log(text, function)
    return _in_python(statements, function)


def _in_python(statements: list[ast.stmt], function: str) -> list[tuple[str, str]]:
    """The calls that are statements or are assigned. `other = mine` adds the call of `mine` under the name `other`."""
    found: list[tuple[str, str]] = []
    for statement in statements:
        value = getattr(statement, "value", None) or getattr(statement, "annotation", None)  # genotype: Genotype(...)
        if isinstance(value, ast.Tuple) and len(value.elts) == 1:  # Genotype(...),
            value = value.elts[0]
        if isinstance(value, ast.Name):
            source = dict(found).get(value.id)
        elif isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == function:
            source = ast.unparse(value)
        else:
            continue
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        found += [(name, source) for name in names or [""] if source]
    return found


def _in_log(text: str, function: str) -> list[tuple[str, str]]:
    """Every call in a text, from the function's name to the closing parenthesis, or to the end of the text."""
    found, start = [], 0
    pattern = re.compile(rf"\b{function} ?\((?!s\))")
    while call := pattern.search(text, start):
        assigned = re.search(r"(\w+)\s*=\s*$", text[max(start, call.start() - 100) : call.start()])
        depth, start = 0, len(text)
        for token in _TOKEN.finditer(text, call.end() - 1):
            depth += {"(": 1, ")": -1}.get(token[0], 0)
            if depth == 0:
                start = token.end()
                break
        found.append((assigned[1] if assigned else "", text[call.start() : start]))
    return found


def read_arguments(source: str, names: Sequence[str]) -> dict[str, Any]:
    """The arguments of a call by name: numbers, strings, lists and tuples of these, and ranges.

    Args:
        names: The names of the positional arguments.

    Raises:
        SyntaxError: The source is not an expression of Python.
        ValueError: The source is not a call, or an argument has another type.
    """
    call = _parse(source, "eval").body
    if not isinstance(call, ast.Call) or len(call.args) > len(names) or any(not word.arg for word in call.keywords):
        raise ValueError(f"expected the arguments {', '.join(names)}, got {source[:60]!r}")
    named = [*zip(names, call.args, strict=False), *((str(word.arg), word.value) for word in call.keywords)]
    return {name: _data(name, value) for name, value in unique(named).items()}


def unique(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of these items.

    Raises:
        ValueError: A name is given twice.
    """
    named: dict[str, Any] = {}
    for name, value in items:
        if name in named:
            raise ValueError(f"{name}: given twice, expected once")
        named[name] = value
    return named


def _data(name: str, node: ast.expr) -> Any:
    """The value of a literal, range(...), list(...) or tuple(...)."""
    match node:
        case ast.Call(func=ast.Name(id="list" | "tuple"), args=[inner], keywords=[]):
            return _data(name, inner)
        case ast.Call(func=ast.Name(id="range"), args=arguments, keywords=[]):
            bounds = [_data(name, argument) for argument in arguments]
            if len(bounds) not in (1, 2) or not all(type(bound) is int and 0 <= bound <= 100 for bound in bounds):
                raise ValueError(f"{name}: expected range(first, last + 1), got {ast.unparse(node)[:60]}")
            return range(*bounds)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: expected lists of strings and numbers, got {ast.unparse(node)[:60]!r}") from error


def _parse(source: str, mode: Literal["exec", "eval"]) -> Any:
    """The syntax tree of Python source.

    Raises:
        SyntaxError: The text is not Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for example about an invalid escape in the text
            return ast.parse(source, "text", mode)
    except (RecursionError, MemoryError):
        raise SyntaxError("nested too deeply") from None
    except ValueError as error:  # such as null bytes
        raise SyntaxError(str(error)) from error
