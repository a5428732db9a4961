"""Test a new machine in a minute: import everything, and run a tiny step of each kind, in one process.

    python benchmarks/smoke.py --device cuda

If a check fails, the script prints the traceback and continues. The exit status is then 1.
"""

import importlib
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lib import cli, options
from lib.options import option

PROG = "smoke.py"
TINY: dict[str, Any] = {"init_channels": 2, "layers": 4, "batch_size": 8}


@dataclass
class SmokeSettings:
    """The settings of this script."""

    device: Literal["cpu", "cuda"] = option("cuda", "Device to test: cpu or cuda.")


def imports(device: str) -> None:
    """Import the modules of all scripts and print versions."""
    import pytorch_lightning
    import torch

    for module in ("search.train_search", "train.train", "nasbench201.table", "nasbench201.train", "imagenet.train"):
        importlib.import_module(module)
    print(torch.__version__, torch.version.cuda, torch.backends.cudnn.version(), pytorch_lightning.__version__)
    if device == "cuda":
        print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())


def depthwise(device: str) -> None:
    """Run a depthwise convolution in both memory formats."""
    import torch

    from benchmarks import depthwise

    settings = depthwise.DepthwiseSettings(batch_size=2, rounds=1)
    for layout in depthwise.FORMATS:
        print(depthwise.time_convolutions(settings, torch.float32, depthwise.SHAPES[0], layout, torch.device(device)))


def search_steps(device: str, space: Any, graphs: bool) -> None:
    """Take two steps of a search. With CUDA graphs, the first step captures and the second replays."""
    from benchmarks import search_step

    settings = search_step.SearchStepSettings(space=space, device=device, cells_per_stage=1, **TINY, image_size=8)
    step, _ = search_step.make_step(settings, "lambda-darts", "contiguous-graphs" if graphs else "contiguous")
    step(0)
    step(1)


def low_precision(device: str) -> None:
    """Compute the regularizer's gradient in float32, TF32 and bfloat16."""
    import torch

    from benchmarks import low_precision

    settings = low_precision.LowPrecisionSettings(space="s2", **TINY, image_size=8)
    print(low_precision.gradient_cosines(settings, torch.device(device)))


def retraining_step(device: str, precision: Any) -> None:
    """Take a step of a retraining."""
    from benchmarks import retraining_step
    from genotypes import load_genotype

    settings = retraining_step.RetrainingStepSettings(device=device, precision=precision, **TINY)
    step, _ = retraining_step.make_step(settings, load_genotype("DARTS_V2"), "contiguous")
    step(0)


def imagenet_loader(device: str) -> None:
    """Run the loader and the network of ImageNet on two pictures of each class."""
    from benchmarks import imagenet_loader
    from genotypes import load_genotype
    from lib.files import find_split
    from lib.pictures import read_tree

    settings = imagenet_loader.LoaderSettings(rounds=1, pictures=4, workers=1, image_size=64, device=device, **TINY)
    with tempfile.TemporaryDirectory() as folder:
        imagenet_loader.make_pictures(settings, Path(folder))
        tree = read_tree(find_split(Path(folder), "train"))
        print(imagenet_loader.measure_rates(settings, load_genotype("DARTS_V2"), tree)["rates"])


def resumed_search(device: str) -> None:
    """Search in NAS-Bench-201 on digits, stop after an epoch, and resume."""
    from dataclasses import replace

    from nasbench201.search201 import SearchState201
    from nasbench201.train_search import SCRIPT
    from search.command_line import Resolved
    from search.train_search import search

    sizes = {"init_channels": 2, "cells_per_stage": 1, "batch_size": 256, "device": device}
    settings = SCRIPT.settings_of("lambda-darts", dataset="digits", epochs=1, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        search(Resolved(settings, run, False, SCRIPT), SearchState201)
        (run / "genotype.json").unlink()  # as if the run had been interrupted
        search(Resolved(replace(settings, epochs=2), run, True, SCRIPT), SearchState201)


def gpu_tests() -> None:
    """Run some GPU tests. They are skipped on a machine without a GPU."""
    import pytest

    selected = "average_pooling or second_gpu or (captured and nasbench201)"
    status = pytest.main(["-q", "-p", "no:cacheprovider", "tests/test_gpu.py", "-k", selected])
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"pytest ended with status {status}")


def main() -> None:
    device = options.parse(SmokeSettings, PROG, __doc__.splitlines()[0]).device
    checks: dict[str, Callable[[], None]] = {"imports": partial(imports, device)}
    checks["depthwise"] = partial(depthwise, device)
    for space in ("nasbench201", "s5"):
        checks[space] = partial(search_steps, device, space, False)
        if device == "cuda":
            checks[f"{space}, graphs"] = partial(search_steps, device, space, True)
    for precision in ("32-true", "bf16-mixed"):
        checks[f"retraining, {precision}"] = partial(retraining_step, device, precision)
    checks["resumed search"] = partial(resumed_search, device)
    checks["low precision"] = partial(low_precision, device)
    checks["ImageNet's loader"] = partial(imagenet_loader, device)
    checks["GPU tests"] = gpu_tests
    failed = []
    for name, check in checks.items():
        begin = time.perf_counter()
        try:
            check()
        except Exception:
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {'failed' if name in failed else 'ok'}, {time.perf_counter() - begin:.1f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    cli.run(main, PROG)
