"""A minute on a new machine: import everything, and take a tiny step of each kind, in one process.

    python benchmarks/smoke.py --device cuda

Each line is a part with its seconds. A part that fails keeps its traceback and does not stop the others; the status is
then 1.
"""

import importlib
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lib import cli, options
from lib.options import option

PROG = "smoke.py"


@dataclass
class Settings:
    """benchmark"""

    device: Literal["cpu", "cuda"] = option("cuda", "Device to try.")


def imports(device: str) -> None:
    """Import every script's modules and print the versions."""
    import pytorch_lightning
    import torch

    scripts = (
        "search.train_search",
        "train.train",
        "nasbench201.table",
        "nasbench201.train",
        "imagenet.train",
        "analysis.page",
    )
    for module in scripts:
        importlib.import_module(module)
    print(torch.__version__, torch.version.cuda, torch.backends.cudnn.version(), pytorch_lightning.__version__)
    if device == "cuda":
        print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())


def depthwise(device: str) -> None:
    """A depthwise convolution, in both memory formats."""
    import torch

    from benchmarks import depthwise

    settings = depthwise.Settings(batch_size=2, rounds=1)
    for layout in depthwise.FORMATS:
        print(depthwise.measure(settings, torch.float32, depthwise.SHAPES[0], layout, torch.device(device)))


def search_steps(device: str, space: Any, graphs: bool) -> None:
    """Two steps of a search; with graphs the first captures, and the second replays."""
    from benchmarks import search_step

    sizes = {"init_channels": 2, "layers": 4, "cells_per_stage": 1, "image_size": 8, "batch_size": 8}
    settings = search_step.Settings(space=space, device=device, **sizes)
    step, _ = search_step.make_step(settings, "lambda-darts", "contiguous-graphs" if graphs else "contiguous")
    step(0), step(1)


def low_precision(device: str) -> None:
    """The regularizer's gradient in float32, TF32 and bfloat16."""
    import torch

    from benchmarks import low_precision

    settings = low_precision.Settings(space="s2", init_channels=2, layers=4, batch_size=8, image_size=8)
    print(low_precision.measure(settings, torch.device(device)))


def retraining_step(device: str, precision: Any) -> None:
    """A step of a retraining."""
    from benchmarks import retraining_step
    from genotypes import load_genotype

    sizes = {"init_channels": 2, "layers": 4, "batch_size": 8, "precision": precision}
    step, _ = retraining_step.make_step(
        retraining_step.Settings(device=device, **sizes), load_genotype("DARTS_V2"), "contiguous"
    )
    step(0)


def imagenet_loader(device: str) -> None:
    """ImageNet's loader and network on two pictures a class."""
    from benchmarks import imagenet_loader
    from genotypes import load_genotype
    from imagenet.images import read_tree
    from imagenet.layout import find_split

    sizes = {"init_channels": 2, "layers": 4, "image_size": 64, "batch_size": 4, "pictures": 4, "workers": 1}
    settings = imagenet_loader.Settings(rounds=1, device=device, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        imagenet_loader.make_pictures(settings, Path(folder))
        tree = read_tree(find_split(Path(folder), "train"))
        print(imagenet_loader.measure(settings, load_genotype("DARTS_V2"), tree)["rates"])


def resumed_search(device: str) -> None:
    """A search of NAS-Bench-201 on the digits that is stopped after an epoch, and resumed."""
    from dataclasses import replace

    from nasbench201.search201 import Search201
    from nasbench201.train_search import SCRIPT
    from search.settings import Resolved
    from search.train_search import search

    sizes = {"init_channels": 2, "cells_per_stage": 1, "batch_size": 256, "device": device}
    settings = SCRIPT.settings_of("lambda-darts", dataset="digits", epochs=1, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        search(Resolved(settings, run, False, SCRIPT), Search201)
        search(Resolved(replace(settings, epochs=2), run, True, SCRIPT), Search201)


def gpu_tests(device: str) -> None:
    """A few of the GPU tests; they are skipped where there is none."""
    import pytest

    selected = "average_pooling or second_gpu or (captured and nasbench201)"
    status = pytest.main(["-q", "-p", "no:cacheprovider", "tests/test_gpu.py", "-k", selected])
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"pytest ended with status {status}")


def main() -> None:
    settings = options.parse(Settings, PROG, __doc__.splitlines()[0])
    parts: list[tuple[str, Callable[..., None], tuple[Any, ...]]] = [("imports", imports, ())]
    parts += [("depthwise", depthwise, ())]
    for space in ("nasbench201", "s5"):
        parts += [
            (f"{space}{', graphs' if graphs else ''}", search_steps, (space, graphs))
            for graphs in ((False, True) if settings.device == "cuda" else (False,))
        ]
    parts += [(f"retraining, {precision}", retraining_step, (precision,)) for precision in ("32-true", "bf16-mixed")]
    parts += [("resumed search", resumed_search, ()), ("low precision", low_precision, ())]
    parts += [("ImageNet's loader", imagenet_loader, ()), ("GPU tests", gpu_tests, ())]
    failed = []
    for name, part, arguments in parts:
        begin, how = time.perf_counter(), "ok"
        try:
            part(settings.device, *arguments)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            how = "failed"
        print(f"{name}: {how}, {time.perf_counter() - begin:.1f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    cli.run(main, PROG)
