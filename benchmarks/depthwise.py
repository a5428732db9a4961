"""Time depthwise convolutions in both memory formats, and list the GPU kernels that run.

    python benchmarks/depthwise.py --out depthwise.json

The script times the forward pass, the input gradient and the weight gradient of torch, and a copy of the input. It
prints means over --rounds calls in milliseconds.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.results import check_out, write_results
from lib import cli, options
from lib.options import PositiveInt, option

if TYPE_CHECKING:
    import torch

PROG = "depthwise.py"
#: channels, height and width, kernel size, and dilation of convolutions in S5
SHAPES = ((64, 32, 3, 1), (64, 32, 5, 1), (64, 32, 3, 2), (64, 32, 5, 2), (256, 8, 5, 1))
FORMATS = ("channels_last", "contiguous")


@dataclass
class DepthwiseSettings:
    """The settings of this benchmark."""

    batch_size: PositiveInt = option(64, "Number of images per batch.")
    rounds: PositiveInt = option(20, "Number of timed calls of each operation. Their mean is printed.")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Device to run on: auto, cpu or cuda.")
    out: str = option("", "JSON file for the results. By default none is written.")


def milliseconds(call: Callable[[], Any], rounds: int, device: "torch.device") -> float:
    """The mean time of a call in milliseconds, after four warm-up calls."""
    import torch

    for _ in range(4):
        call()
    if device.type == "cpu":
        begin = time.perf_counter()
        for _ in range(rounds):
            call()
        return 1e3 * (time.perf_counter() - begin) / rounds
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(rounds):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / rounds


def time_convolutions(
    settings: DepthwiseSettings, dtype: "torch.dtype", shape: Sequence[int], layout: str, device: "torch.device"
) -> dict[str, Any]:
    """Time each pass for one shape in one memory format. Returns milliseconds and, on a GPU, the kernels."""
    import torch
    import torch.nn.functional as F

    from lib.devices import memory_format

    order = memory_format(layout, device)
    channels, size, kernel_size, dilation = shape
    x, weight = (
        torch.randn(shape, device=device, dtype=dtype).to(memory_format=order)
        for shape in ((settings.batch_size, channels, size, size), (channels, 1, kernel_size, kernel_size))
    )
    gradient, padding = torch.randn_like(x), dilation * (kernel_size // 2)
    numbers = (None, [1, 1], [padding] * 2, [dilation] * 2, False, [0, 0], channels)
    backward = torch.ops.aten.convolution_backward
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: F.conv2d(x, weight, None, 1, padding, dilation, channels),
        "input gradient": lambda: backward(gradient, x, weight, *numbers, [True, False, False]),
        "weight gradient": lambda: backward(gradient, x, weight, *numbers, [False, True, False]),
        "copy": lambda: gradient.copy_(x),
    }
    row: dict[str, Any] = {"type": str(dtype).removeprefix("torch."), "memory_format": layout}
    row |= {"channels": channels, "size": size, "kernel_size": kernel_size, "dilation": dilation}
    row |= {name: milliseconds(call, settings.rounds, device) for name, call in calls.items()}
    if device.type == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for call in calls.values():
                call()
            torch.cuda.synchronize()
        events = profile.key_averages()
        row["kernels"] = [event.key[:100] for event in events if event.self_device_time_total > 0]
    return row


def main() -> None:
    settings = options.parse(DepthwiseSettings, PROG, __doc__.splitlines()[0])
    check_out(settings.out)
    import torch

    from lib.devices import check_device, set_up_libraries
    from lib.provenance import provenance

    device = torch.device(check_device(settings.device)[0])
    set_up_libraries(tf32=False)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"Milliseconds on {name}, batch size {settings.batch_size}")
    print("| type | channels, size | kernel, dilation | format | forward | input gradient | weight gradient | copy |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            for layout in FORMATS:
                row = time_convolutions(settings, dtype, shape, layout, device)
                rows.append(row)
                times = (f"{row[name]:.3f}" for name in ("forward", "input gradient", "weight gradient", "copy"))
                channels, size, kernel_size, dilation = shape
                cells = (row["type"], f"{channels}, {size}", f"{kernel_size}, {dilation}", layout, *times)
                print(f"| {' | '.join(cells)} |", flush=True)
    write_results(settings, settings.out, provenance=provenance(cli.command_line(), name), rows=rows)


if __name__ == "__main__":
    cli.run(main, PROG)
