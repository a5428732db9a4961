"""Functions and settings that several test files share."""

import csv
import io
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import selection
from lib import checkpoints, plugins
from lib.datasets import DATASETS
from lib.progress import StepProgress
from lib.retraining import Recipe
from lib.schedules import cosine_schedule
from nasbench201.search201 import SearchState201
from nasbench201.settings import SCRIPT as SCRIPT_201
from operations import OPERATIONS
from regularizers import ALPHA_REGULARIZERS, REGULARIZERS
from search import derive
from search.command_line import Resolved
from search.methods import METHODS as METHODS_BY_NAME
from search.settings import SCRIPT, SearchSettings
from search.train_search import run_epoch, schedule, search
from smoothing import SMOOTHING
from spaces import SPACES
from train.train import TrainSettings, train

DOUBLE = torch.float64
ROOT = Path(__file__).resolve().parent.parent


def local_data() -> Path:
    """Return the folder with the published cells, fixtures and images. Skip the test if it does not exist."""
    folder = Path(os.environ.get("LAMBDA_DARTS_DATA", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"there is no folder {folder}; set LAMBDA_DARTS_DATA to the folder of the test data")
    return folder


def slowdown() -> float:
    """Return the factor by which time limits are extended. tools/coverage.sh traces every line, which slows Python."""
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


REGISTRIES = (OPERATIONS, SPACES, DATASETS, REGULARIZERS, ALPHA_REGULARIZERS, SMOOTHING, METHODS_BY_NAME)
EXTENDING = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
#: heading of docs/extending.md -> its example
EXAMPLES = {
    section.partition("\n")[0]: "\n".join(blocks)
    for section in EXTENDING.split("\n## ")
    if (blocks := re.findall(r"```python\n(.*?)```", section, re.DOTALL))
}


@contextmanager
def temporary_plugins() -> Iterator[None]:
    """Unload the plugins that the block loads, and remove their entries from the registries."""
    before, loaded = [dict(registry) for registry in REGISTRIES], list(plugins.LOADED)
    try:
        yield
    finally:
        for registry, entries in zip(REGISTRIES, before, strict=True):
            registry.data = entries
        for plugin in plugins.LOADED[len(loaded) :]:
            del sys.modules[plugin.module.__name__]
        plugins.LOADED[:] = loaded


@contextmanager
def restored_settings() -> Iterator[pytest.MonkeyPatch]:
    """Restore what a script sets in its process: environment, paths, signals, warnings, loggers and plugins."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    loggers = {logger: logger.level for logger in logging.root.manager.loggerDict.values() if hasattr(logger, "level")}
    environment = dict(os.environ)
    try:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), temporary_plugins():
            patch.setattr(sys, "path", list(sys.path))
            yield patch
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in signals.items():
            if handler is not None:  # None if Python did not set it
                signal.signal(number, handler)
        for logger, level in loggers.items():
            logger.setLevel(level)


def script_in_process(command: object, *arguments: object) -> subprocess.CompletedProcess:
    """Run a script like `script`, but in this process, so that torch is imported only once."""
    out, err = io.StringIO(), io.StringIO()
    line = [str(command), *map(str, arguments)]
    with restored_settings() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", line)
        patch.chdir(ROOT)
        try:
            runpy.run_path(line[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(line, code, out.getvalue(), err.getvalue())


def run_main(main, *arguments: object) -> None:
    """Run the main function of a script in this process. This is ten times as fast as `script`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [main.__code__.co_filename, *map(str, arguments)])
        main()


def run_derive(*arguments: object, main=derive.main) -> None:
    """Run search/derive.py in this process."""
    run_main(main, *arguments, "--device", "cpu")


def assert_rejected(result: subprocess.CompletedProcess, *mentions: str) -> None:
    """Assert that a script rejected its input: status 2, and one line on stderr that contains all `mentions`."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for mention in mentions:
        assert mention in result.stderr


@contextmanager
def without_figures() -> Iterator[None]:
    """Keep searches and retrainings from drawing, which takes a second each. tests/test_pictures.py tests it."""
    with pytest.MonkeyPatch.context() as patch:
        for drawing in ("analysis.curves.plot_search", "analysis.draw.draw_genotype"):
            patch.setattr(drawing, lambda *arguments: None)
        for drawing in ("plot_retraining", "draw_genotype"):
            patch.setattr(f"analysis.card.{drawing}", lambda *arguments: None)
        yield


def last_checkpoint(run: Path) -> Path:
    """Return the path of the last checkpoint of a run. If it has none, the path does not exist."""
    return max(checkpoints.paths(run / "checkpoints"), default=run / "checkpoints/none")


def flat(value, name=""):
    """Return the leaves of a tree of dictionaries and lists by path, with tensors as bytes."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, item in items for path, leaf in flat(item, f"{name}/{key}").items()}
    return {name: value.contiguous().numpy().tobytes() if isinstance(value, torch.Tensor) else value}


def start(*arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_until(condition, process) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def write_folder(root, classes=("cat", "dog"), per_class=3, size=(8, 8)):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(per_class):
                pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


#: the smallest search that has two normal cells, with two steps per epoch on the digits
SMALL = SearchSettings(
    dataset="digits",
    space="s2",
    layers=4,
    init_channels=4,
    batch_size=256,
    epochs=3,
    reg="corr",
    lambda_=1.0,
    derivatives="exact",
    arch_learning_rate=0.05,
    device="cpu",
)


def run_search(settings, run, resumed=False):
    search(Resolved(settings, run, resumed))
    return run


def metrics(run):
    """Return the rows of metrics.csv without the columns that depend on the machine."""
    machine = ("seconds", "peak_memory_mib")
    with open(run / "metrics.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name not in machine} for row in csv.DictReader(file)]


def assert_same_run(a, b):
    """Assert that weights, optimizers, alphas, metrics and genotypes are equal bit for bit. Times may differ."""
    first, second = (flat({**checkpoints.load(last_checkpoint(run)), "history": None}) for run in (a, b))
    assert first == second
    with np.load(a / "alphas.npz") as x, np.load(b / "alphas.npz") as y:
        assert x.files == y.files
        assert all(np.array_equal(x[kind], y[kind]) for kind in x.files)
    assert metrics(a) == metrics(b)
    for name in ("genotypes.jsonl", "genotype.json"):
        assert (a / name).read_text() == (b / name).read_text()


def batches_of(state):
    return [next(iter(batches)) for batches in state.batches(0)]


SMALL_METHOD = {
    "dataset": "digits",
    "space": "s2",
    "layers": 4,
    "init_channels": 2,
    "batch_size": 128,
    "epochs": 2,
    "device": "cpu",
    "finetune_epochs": 1,
    "arch_learning_rate": 0.3,
    "threshold": 0.5,
}


def settings_of(method="darts", **changes):
    return SCRIPT.settings_of(method, **{**SMALL_METHOD, **changes})


def few_images(folder):
    """Write tiny images. Return settings for a fast perturbation selection: two steps of 12 images per epoch."""
    root = write_folder(folder, per_class=24, size=(4, 4))
    return {"dataset": "folder", "data": str(root), "batch_size": 12, "epochs": 1}


def interrupt(monkeypatch, owner, name, call):
    """Raise KeyboardInterrupt at the end of call number `call` of a method, counted from 1."""
    original, calls = getattr(owner, name), []

    def stop(*arguments, **named):
        result = original(*arguments, **named)
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, stop)


def select(space, weights, rule, threshold=0.85):
    """Return the genotype that a selection rule derives from mixing weights."""
    return selection.to_genotype(space, selection.select(space, weights, rule, threshold), pairs=rule == "argmax")


CELL = "LambdaDARTS_cifar10_s2"


#: three steps per epoch on the digits
RETRAINING = TrainSettings(
    arch=CELL,
    dataset="digits",
    init_channels=4,
    layers=3,
    epochs=3,
    batch_size=480,
    cutout=True,
    cutout_length=3,
    device="cpu",
)


RECIPE = Recipe(
    epochs=4,
    learning_rate=0.1,
    schedule=cosine_schedule(4),
    momentum=0.9,
    weight_decay=3e-4,
    auxiliary_weight=0.4,
    drop_path_prob=0.2,
)


def retrain(settings, run, resumed=False):
    train(settings, run, resumed)
    return run


def weights_of(run):
    """Return the weights in the last checkpoint of a retraining, as bytes."""
    return flat(checkpoints.load(last_checkpoint(run))["state_dict"])


def settings_of_201(method="darts", **changes):
    small = {"dataset": "digits", "init_channels": 2, "cells_per_stage": 1, "batch_size": 256, "epochs": 2}
    return SCRIPT_201.settings_of(
        method, device="cpu", **{**small, "arch_learning_rate": 0.3, "finetune_epochs": 0, **changes}
    )


def run_search_201(settings, run, resumed=False):
    search(Resolved(settings, run, resumed), SearchState201)
    return run


METHODS = [
    "darts",
    "darts-2nd",
    "lambda-darts",
    "lambda-darts-exact",
    "darts-minus",
    "fair-darts",
    "idarts",
    "darts-pt",
]


def weights_after_an_epoch(state):
    with StepProgress("test", 3, 0) as progress:
        run_epoch(state, 1, schedule(state.settings, 1), progress, "epoch")
    return [weight.detach() for weight in state.supernet.parameters()]


TABLE = {
    "title": "Digits",
    "scripts": {"search": "search/train_search.py", "retrain": "train/train.py"},
    "search": {"dataset": "digits", "layers": 4, "init_channels": 2, "batch_size": 64},
    "retrain": {"dataset": "digits", "layers": 3, "init_channels": 2, "batch_size": 128, "drop_path_prob": 0},
    "columns": {"S2": {"search": {"space": "s2"}}},
    "methods": {
        "DARTS": {"search": {"method": "darts"}},
        "DARTS-": {"search": {"method": "darts-minus"}},
    },
    "scales": {
        "paper": {"seeds": 4},
        "tiny": {"seeds": 2, "search": {"epochs": 6}, "retrain": {"epochs": 4}},
        "broken": {
            "seeds": 1,
            "search": {"epochs": 1},
            "retrain": {"epochs": 1},
            "override": {
                "DARTS-": {"search": {"relaxation": "sigmoid", "selection": "threshold_sparse", "threshold": 1}}
            },
        },
    },
}


def write_table(folder: Path, table: dict = TABLE) -> Path:
    path = folder / "digits.yaml"
    path.write_text(yaml.safe_dump(table, allow_unicode=True), encoding="utf-8")
    return path
