"""scripts/reproduce.py with one more script that a table may run: tests/stub_run.py."""

import cli
from scripts import reproduce
from scripts.grid import SCRIPTS, Script
from tests import stub_run


def allow() -> None:
    """Let tables of this process name tests/stub_run.py."""
    SCRIPTS["search"][stub_run.SCRIPT] = Script(stub_run.epochs)
    SCRIPTS["retrain"][stub_run.SCRIPT] = Script(stub_run.epochs, scored_by=stub_run.SCRIPT)


if __name__ == "__main__":
    allow()
    cli.run(reproduce.main, reproduce.PROG)
