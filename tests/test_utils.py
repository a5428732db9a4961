"""Provenance and peak memory on machines without git, a package or /proc."""

import importlib.metadata
import subprocess
from pathlib import Path

import pytest
import torch

from lib import devices, provenance


def test_provenance_is_unknown_without_git_and_without_a_package(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError("git")

    def version(package):
        if package == "torchvision":
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setattr(provenance, "version", version)
    said = provenance.provenance("python x.py", "cpu")
    assert said["commit"] == "unknown" and said["command"] == "python x.py"
    assert said["versions"]["torchvision"] == "unknown" and said["versions"]["torch"] == "1.0"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux has the second figure to compare")
def test_peak_memory_is_known_without_proc(monkeypatch):
    peak = devices.peak_memory(torch.device("cpu"))
    monkeypatch.setattr(Path, "exists", lambda path: False)
    # getrusage includes the memory of the parent process before exec, so it can only be larger.
    assert peak <= devices.peak_memory(torch.device("cpu")) * 1.01 < 4 * peak
