"""Settings of every test process, made before torch is imported."""

import os
import signal

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


@pytest.fixture
def same_noise(monkeypatch):
    """The operation `noise` in the same numbers, whatever the order of the edges."""

    import torch

    def noise(x):
        return torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).view(x.shape)

    monkeypatch.setattr(torch, "randn_like", noise)


@pytest.fixture(scope="module")
def no_figures():
    """Runs that draw neither curves nor cells, which takes almost half the time of the smallest one.

    For a whole file, so that its module fixtures draw nothing either: `pytestmark = pytest.mark.usefixtures(...)`.
    """
    from tests.helpers import without_figures

    with without_figures():
        yield
