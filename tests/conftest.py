"""What the tests share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The tests' networks are tiny: one thread is as fast as several, and does not wait for others on a busy machine.
# Set before torch is imported, and inherited by the scripts that the tests run.
os.environ["OMP_NUM_THREADS"] = "1"
# Ray gives way to all else on a machine, which beside another core's tests would keep its workers from going on.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (as Ray reads it)

# A shell's background jobs ignore Ctrl-C, and so would what the tests start, and send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine takes longer than hypothesis allows an example, and fails nothing by that.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parent.parent


def local_data() -> Path:
    """A local copy of the published cells, fixtures and images; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("LAMBDA_DARTS_DATA", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no local copy of the data at {folder}; LAMBDA_DARTS_DATA names another place")
    return folder


def slower() -> float:
    """How many times longer Python may take: scripts/coverage.sh has every line of the root's modules counted."""
    return 1.0 if sys.gettrace() is None else 4.0


def script(*arguments: object, timeout: float = 300, **options) -> subprocess.CompletedProcess:
    """Run a script of the project from its root, as a user does."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def assert_refused(result: subprocess.CompletedProcess, *mentions: str) -> None:
    """Wrong input: status 2, nothing but one line on stderr, and in it all of `mentions`."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for mention in mentions:
        assert mention in result.stderr


def last_checkpoint(run: Path) -> Path:
    """The file of a run's last checkpoint; one that is not there where the run has none."""
    return max((run / "checkpoints").glob("*.safetensors"), default=run / "checkpoints/none")
