"""Run scripts/reproduce.py with tables that may also use tests/stub_run.py."""

from lib import cli
from lib.grid import SCRIPTS
from scripts import reproduce
from tests.stub_run import SCRIPT


def allow() -> None:
    """Allow tables in this process to use tests/stub_run.py."""
    SCRIPTS["search"][SCRIPT] = ""
    SCRIPTS["retrain"][SCRIPT] = SCRIPT  # the same script computes the score


if __name__ == "__main__":
    allow()
    cli.run(reproduce.main, reproduce.PROG)
