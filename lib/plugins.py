"""Plugins: Python files of users, which add operations, spaces, methods and so on to the registries.

A plugin is loaded only if a command line or a call names it. A run records the plugins that it used, but they are not
loaded automatically. Nothing here imports torch.
"""

import hashlib
import importlib.util
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from lib.registry import EntryError


class Plugin(NamedTuple):
    """A loaded plugin: its path as given, the SHA-256 of its content, and its module."""

    path: Path
    sha256: str
    module: ModuleType


#: the plugins of this process, in the order of loading
LOADED: list[Plugin] = []


def load(paths: Iterable[str | Path]) -> None:
    """Run plugins, each once.

    Raises:
        EntryError: A file is missing, or a registry rejects an entry. Other errors of the plugin are not converted.
    """
    for path in map(Path, paths):
        if not path.is_file():
            raise EntryError(f"there is no file {path}; expected a Python file that adds entries to the registries")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in (plugin.sha256 for plugin in LOADED):
            continue
        name = f"plugin_{path.stem}_{digest[:8]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise EntryError(f"{path}; expected a .py file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        if (folder := str(path.resolve().parent)) not in sys.path:
            sys.path.append(folder)  # so that the plugin can import modules in its folder
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, EntryError):
                raise EntryError(f"{path}: {error}") from error
            raise
        LOADED.append(Plugin(path, digest, module))


def record() -> list[dict[str, str]]:
    """The loaded plugins, for the provenance of a run."""
    return [{"path": str(plugin.path.resolve()), "sha256": plugin.sha256} for plugin in LOADED]


def paths() -> list[Path]:
    """The paths of the loaded plugins, for the command line of another process."""
    return [plugin.path for plugin in LOADED]


def flags() -> str:
    """The flags that load the same plugins, for the end of a printed command: "" or " --plugin mine.py"."""
    return "".join(f" --plugin {shlex.quote(str(path))}" for path in paths())


def check_config(config: Any, run: str | Path) -> None:
    """Like `check`, for the content of config.yaml."""
    origin = config.get("provenance") if isinstance(config, dict) else None
    check(origin.get("plugins", []) if isinstance(origin, dict) else [], run)


def check(recorded: Sequence[Mapping[str, Any]], run: str | Path) -> None:
    """Compare the plugins that a run recorded with the loaded ones, and warn on stderr if one has changed.

    Raises:
        ValueError: A recorded plugin is not loaded.
    """
    loaded = {plugin.path.name: plugin.sha256 for plugin in LOADED}
    for entry in recorded:
        path, digest = str(entry["path"]), str(entry["sha256"])
        if digest in loaded.values():
            continue
        if Path(path).name not in loaded:
            raise ValueError(
                f"{run} used the plugin {path}; add --plugin {shlex.quote(path)} (Python: lib.plugins.load)"
            )
        print(f"warning: {path} has changed since {run} used it", file=sys.stderr, flush=True)
