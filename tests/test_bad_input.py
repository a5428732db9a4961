"""Wrong input that a line of tests/invocations.txt cannot set up, and what a script says to --help."""

import re
import sys
from dataclasses import replace

import pytest
import yaml

from search.settings import SearchSettings
from tests.helpers import SMALL, assert_refused, run_search, script, script_in_process, without_figures

SEARCH = "search/train_search.py"
DIGITS = ("--dataset", "digits", "--space", "s2", "--layers", "4", "--init_channels", "2")


def test_a_wrong_flag_is_refused_before_torch_is_loaded():
    result = script("-X", "importtime", SEARCH, "--lamda", 1)
    imports = re.findall(r"^import time:.*\| +(\S+)$", result.stderr, re.MULTILINE)
    assert result.returncode == 2 and "--lamda" in result.stderr.splitlines()[-1]
    assert "argparse" in imports and "torch" not in imports


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_a_run_folder_that_cannot_be_made_is_named():
    assert_refused(
        script_in_process(SEARCH, *DIGITS, "--save", "/proc/run"), "--save: /proc/run: No such file or directory"
    )


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    settings = replace(SMALL, epochs=1, images=64, batch_size=30)
    with without_figures():
        run = run_search(settings, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    stored = {name: value for name, value in config.items() if name != "provenance"}
    assert SearchSettings(**stored) == settings
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "init_channels": 6}))
    assert_refused(script_in_process(SEARCH, "--resume", run), "--resume", "config.yaml")


def test_help_of_the_search_is_grouped():
    text = script_in_process(SEARCH, "--help").stdout
    groups = ("search space", "method", "data", "mixing weights", "network weights", "architecture", "regularizer")
    for group in (*groups, "selection of the cell", "execution", "run"):
        assert f"\n{group}:\n" in text
