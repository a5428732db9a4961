"""Wrong input that needs more setup than a line of tests/invocations.txt."""

import re
from dataclasses import replace

import yaml

from tests.helpers import SMALL, assert_rejected, run_search, script, script_in_process, without_figures

SEARCH = "search/train_search.py"


def test_a_wrong_flag_is_rejected_before_torch_is_imported():
    result = script("-X", "importtime", SEARCH, "--lamda", 1)
    imports = re.findall(r"^import time:.*\| +(\S+)$", result.stderr, re.MULTILINE)
    assert result.returncode == 2 and "--lamda" in result.stderr.splitlines()[-1]
    assert "argparse" in imports and "torch" not in imports


def test_resuming_leaves_a_finished_search_alone_and_rejects_a_checkpoint_of_other_settings(tmp_path):
    settings = replace(SMALL, epochs=1, images=64, batch_size=30)
    with without_figures():
        run = run_search(settings, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert script_in_process(SEARCH, "--resume", run).stdout == f"run {run} is finished\n"
    (run / "genotype.json").unlink()
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "init_channels": 6}))
    assert_rejected(script_in_process(SEARCH, "--resume", run), "--resume", "config.yaml")
