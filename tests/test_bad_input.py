"""Wrong input that a line of tests/invocations.txt cannot set up, and how soon a script answers."""

import sys
import time

import pytest
import yaml

from tests.conftest import assert_refused, script

SEARCH = "search/train_search.py"
DIGITS = ("--dataset", "digits", "--space", "s2", "--layers", "4", "--init_channels", "2")


def test_a_wrong_flag_is_refused_before_torch_is_loaded():
    start = time.monotonic()
    assert_refused(script(SEARCH, "--lamda", 1), "--lamda")
    assert time.monotonic() - start < 3


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_a_run_folder_that_cannot_be_made_is_named():
    assert_refused(script(SEARCH, *DIGITS, "--save", "/proc/run"), "--save: /proc/run: No such file or directory")


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    from dataclasses import replace

    from search.settings import SearchSettings
    from tests.test_search import SMALL, run_search

    run = run_search(replace(SMALL, epochs=1), tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert SearchSettings(**{name: value for name, value in config.items() if name != "provenance"}) == replace(
        SMALL, epochs=1
    )
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "init_channels": 6}))
    assert_refused(script(SEARCH, "--resume", run), "--resume", "config.yaml")


@pytest.mark.parametrize(
    "command",
    [
        SEARCH,
        "search/select.py",
        "benchmarks/methods.py",
        "train/train.py",
        "train/test.py",
        "analysis/draw.py",
        "analysis/curves.py",
        "analysis/size.py",
        "analysis/derivatives.py",
        "analysis/report.py",
        "analysis/hessian.py",
        "analysis/landscape.py",
        "scripts/reproduce.py",
    ],
)
def test_help_is_answered_at_once(command):
    start = time.monotonic()
    result = script(command, "--help")
    assert time.monotonic() - start < 3
    assert result.returncode == 0 and "usage:" in result.stdout and not result.stderr


def test_help_of_the_search_is_grouped():
    text = script(SEARCH, "--help").stdout
    for group in ("data:", "method:", "relaxation:", "weights:", "architecture:", "regularizer:", "selection:", "run:"):
        assert f"\n{group}" in text
