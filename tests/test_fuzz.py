"""Damaged files from elsewhere: every reader raises the error that it documents, or can still read the file."""

import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cli import one_line
from tests.readers import RESULT, SEARCH, SEARCH_METRICS, TABLE, TARGETS, npz, to_json, to_yaml

#: readers that take a tenth of a second or more for a file
SLOW = {"page", "config", "grid"}


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid file that was cut short, has bits flipped, or has a block of zeros as after a crash; or random bytes."""
    content = bytearray(draw(st.sampled_from(seeds)))
    places = st.integers(0, len(content) - 1)
    match draw(st.sampled_from(("cut", "flip", "zeros", "junk"))):
        case "cut":
            del content[draw(places) :]
        case "flip":
            for _ in range(draw(st.integers(1, 4))):
                content[draw(places)] ^= 1 << draw(st.integers(0, 7))
        case "zeros":
            start = draw(places)
            length = min(draw(st.sampled_from((1, 16, 512))), len(content) - start)
            content[start : start + length] = bytes(length)
        case "junk":
            return draw(st.binary(max_size=64))
    return bytes(content)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damaged metadata
@pytest.mark.parametrize("examples", [30, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_read_or_refused_as_documented(name, examples, tmp_path):
    target, examples = TARGETS[name], examples // 10 if name in SLOW else examples
    target.prepare(tmp_path)
    for seed in target.seeds():
        assert target.run(tmp_path, seed) is None

    @settings(max_examples=examples, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(target.seeds()))
    def check(content: bytes) -> None:
        target.run(tmp_path, content)

    check()


def postscript() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "EPS")
    return content.getvalue()


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __reduce__(self):
        return exec, ("open('executed', 'w')",)


def pickled() -> bytes:
    content = io.BytesIO()
    torch.save(Call(), content)
    return content.getvalue()


def changed(value: dict, **changes: object) -> bytes:
    return to_json({**value, **changes})


#: wrong files: the target, the file, and a part of the message
REFUSED = {
    "halves, too large": ("halves", b" " * (1 << 24) + b"{}", "more than 16,777,216 bytes"),
    "settings, too large": ("config", b"#" * (1 << 18) + b"\n", "more than 262,144 bytes"),
    "a result without accuracy": ("result", changed(RESULT, accuracy=None), "no result of a retraining"),
    "a long field": ("metrics", SEARCH_METRICS + b"x" * 140_000, "field larger than field limit"),
    "a date as a setting": ("config", to_yaml(SEARCH) + b"extra: 2026-99-99\n", "no plain YAML"),
    "code in YAML": ("config", b'data: !!python/object/apply:os.system ["touch executed"]', "no plain YAML"),
    "a flag with dashes": ("grid", changed(TABLE, search={"batch-size": 1}), "expected the name of a flag"),
    "a flag of the table's own": ("grid", changed(TABLE, search={"print_config": True}), "the table itself gives"),
    "no seeds": ("grid", changed(TABLE, scales={"small": {"seeds": 0}}), "1 or more"),
    "pickled alphas": ("alphas", npz(normal=np.array([Call()])), "allow_pickle=False"),
    "a pickle as the benchmark": ("pth", pickled(), "does not read safely"),
    "PostScript called PNG": ("image", postscript(), "cannot identify image file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_file_is_refused_with_the_reason_and_not_executed(name, tmp_path, monkeypatch):
    target, content, reason = REFUSED[name]
    target, folder = TARGETS[target], tmp_path / "folder"
    monkeypatch.chdir(tmp_path)
    target.prepare(folder)
    error = target.run(folder, content)
    assert error is not None and reason in str(error), error
    assert not (tmp_path / "executed").exists()


def test_a_message_is_one_line_whatever_it_says():
    assert one_line("a\nb\x0bc\u2028d \x1b[2J\ud800") == "a b c d \\x1b[2J\\ud800"
    assert len(one_line("x" * 10**6)) < 2000
