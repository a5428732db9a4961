"""Settings of every test process, which take effect before torch is imported."""

import os
import signal

import pytest
from hypothesis import settings

# The networks of the tests are tiny. One thread is as fast as several, and never waits for others on a busy machine.
# torch reads this variable when it is imported. The scripts that the tests run inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# Ray runs its workers at low priority by default. Other tests that run at the same time would starve them.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray reads this spelling)

# Background jobs of a shell ignore SIGINT, and so would the processes to which the tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine an example may exceed the deadline of hypothesis, which is no failure.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture
def same_noise(monkeypatch):
    """Make the operation `noise` return the same values, whatever the order of the edges."""

    import torch

    def noise(x):
        return torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).view(x.shape)

    monkeypatch.setattr(torch, "randn_like", noise)


@pytest.fixture(scope="module")
def no_figures():
    """Skip the drawing of curves and cells, which takes almost half the time of the smallest run.

    Use it for a whole file, so that its module fixtures draw nothing either:
    `pytestmark = pytest.mark.usefixtures("no_figures")`.
    """
    from tests.helpers import without_figures

    with without_figures():
        yield
