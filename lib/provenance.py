"""The provenance of a run, and its config.yaml."""

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from lib import plugins
from lib.files import write_atomically

PACKAGES = ("torch", "torchvision", "pytorch_lightning", "numpy")


def provenance(command: str, device: str) -> dict[str, Any]:
    """The command, commit, versions, device and plugins of a run."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    origin = {"command": command, "commit": _commit(), "device": device, "versions": versions}
    return {**origin, "plugins": plugins.record()} if plugins.LOADED else origin


def _commit() -> str:
    """The commit of this source tree, with "+changes" if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent.parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed.strip() else "")


def write_config(folder: Path, settings: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Write config.yaml: the settings at the top level, as --config reads them, and the provenance.

    The run folder is omitted, so that --config makes a new run.
    """
    settings = {name: value for name, value in settings.items() if name not in ("save", "resume")}
    write_atomically(
        folder / "config.yaml", yaml.safe_dump({**settings, "provenance": dict(origin)}, sort_keys=False, width=120)
    )
