"""scripts/reproduce.py with one more script that a table may run: tests/stub_run.py."""

from lib import cli
from lib.grid import SCRIPTS
from scripts import reproduce
from tests.stub_run import SCRIPT


def allow() -> None:
    """Let tables of this process name tests/stub_run.py."""
    SCRIPTS["search"][SCRIPT] = ""
    SCRIPTS["retrain"][SCRIPT] = SCRIPT  # which scores it, too


if __name__ == "__main__":
    allow()
    cli.run(reproduce.main, reproduce.PROG)
