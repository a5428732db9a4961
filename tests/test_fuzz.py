"""Files from elsewhere, damaged and made up: their readers take them or refuse them as they document."""

import contextlib
import csv
import io
import json
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.readers import TARGETS, Target

SECONDS = 10
#: examples of a target that takes long; of the others there are 100
FEW = {"config": 10, "grid": 15, "image": 40, "picture": 40, "pth": 25, "pth_file": 15}
FEW |= dict.fromkeys(("page", "page_score", "page_config", "page_order"), 3)

BOMB = "[&a [x,x,x,x,x,x,x,x,x], " + ", ".join(
    f"&{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]" for n in range(9)
)
#: what stands for a value in JSON or YAML, and is none that a reader expects
STRANGE = [
    *("null", "true", "-1", "0", str(2**63), "1" + "0" * 400, "9" * 5000, "1e999", "NaN", "-Infinity", "0.5", '""'),
    *(
        '"\\u0000"',
        '"\\ud800"',
        '"../../x"',
        '"/etc/passwd"',
        f'"{"x" * 70_000}"',
        '"x\\ny"',
        '"\\u001b[2J"',
        "[]",
        "{}",
    ),
    *("[" * 500 + "]" * 500, "[" * 100_000, '{"a": ' * 50_000, '[["sep_conv_3x3", 0]]', "[null]", '{"a": 1, "a": 2}'),
]
#: the same, of YAML alone
STRANGE_YAML = [
    *('!!python/object/apply:os.system ["touch escaped"]', "!!python/name:os.system", BOMB + "]", "&x [*x]", "*x"),
    *("!!timestamp x", "2001-99-99", "!!bool x", '!!int ""', '!!float ""', "!!float x", "1:" * 300 + "1.5", "0x", "="),
    *(
        "!!binary x",
        "!!set {a, b}",
        "{[a]: b}",
        "{<<: 5}",
        "!!omap [a]",
        "!!map []",
        "!!seq {}",
        "0b2",
        "- x",
        "@",
        "\t",
    ),
]
HOLE = "a place for something else"


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail where what is done takes longer."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError  # pytest's output shows where

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid file after bit flips, cuts, insertions and splices."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.sampled_from((1, 2, 4, 8, 64, len(content))))
        match draw(st.integers(0, 5)):
            case 0 if content:
                content[place] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del content[place : place + length]
            case 2:
                content[place:place] = draw(st.binary(max_size=16))
            case 3:
                content[place:place] = content[place : place + length]
            case 4:
                other = draw(st.sampled_from(seeds))
                content[place:] = other[draw(st.integers(0, len(other))) :]
            case _:
                numbers = st.sampled_from((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
                content[place : place + 8] = draw(numbers).to_bytes(8, draw(st.sampled_from(("little", "big"))))
    return bytes(content)


def places(value: Any) -> list[tuple]:
    """The paths to all parts of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *path) for key, part in parts for path in places(part))]


def replaced(value: Any, path: tuple, part: Any) -> Any:
    """A JSON value with another part in the place of one."""
    if not path:
        return part
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    new = {key: replaced(old, path[1:], part) if key == path[0] else old for key, old in parts}
    return new if isinstance(value, dict) else list(new.values())


@st.composite
def structured(draw: st.DrawFn, seed: bytes, form: str) -> bytes:
    """A valid JSON or YAML file with something strange in one or two places, or for one of its names."""
    value = json.loads(seed) if form == "json" else yaml.safe_load(seed)
    strange = st.sampled_from(STRANGE + (STRANGE_YAML if form == "yaml" else []))
    text = json.dumps(value)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(value)))
        if path and isinstance(path[-1], str) and draw(st.integers(0, 3)) == 0:
            text = text.replace(json.dumps(path[-1]), draw(st.sampled_from(('""', '"../x"', '"config"', '"a=b"', "1"))))
        else:
            value = replaced(value, path, HOLE)
            text = json.dumps(value).replace(f'"{HOLE}"', draw(strange))
            value = replaced(value, path, None)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def tabular(draw: st.DrawFn, seed: bytes) -> bytes:
    """A valid CSV file with other cells, rows and columns."""
    rows = list(csv.reader(io.StringIO(seed.decode())))
    cells = [
        "",
        "nan",
        "inf",
        "-1",
        "1e999",
        "9" * 5000,
        "x",
        "\0",
        '"',
        "a,b",
        "../x",
        "٣",
        "1_0",
        "0x1",
        "x" * 140_000,
    ]
    for _ in range(draw(st.integers(1, 3))):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        place = draw(st.integers(0, max(0, len(row) - 1)))
        match draw(st.integers(0, 4)):
            case 0 if row:
                row[place] = draw(st.sampled_from(cells))
            case 1 if row:
                del row[place]
            case 2:
                row.append(draw(st.sampled_from(cells)))
            case 3:
                rows.append(list(row))
            case _:
                row.clear()
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def files(target: Target) -> st.SearchStrategy[bytes]:
    """Files that a target's reader may meet."""
    seeds = target.seeds()
    found = [damaged(seeds), st.binary(max_size=64)]
    for seed in seeds:
        if target.form in ("json", "yaml") and seed[:1] not in b"G|":
            found += [structured(seed, target.form)] * 3
        elif target.form == "csv":
            found += [tabular(seed)] * 2
    return st.one_of(found)


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_taken_or_refused_as_documented(name, tmp_path):
    target = TARGETS[name]
    target.prepare(tmp_path)
    for seed in target.seeds()[:1]:
        assert target.run(tmp_path, seed)

    @settings(
        max_examples=FEW.get(name, 100),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(files(target))
    def check(content: bytes) -> None:
        with within(SECONDS):
            target.run(tmp_path, content)

    check()
