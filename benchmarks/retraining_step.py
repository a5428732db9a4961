"""Measure time and memory of a retraining step, compared with a plain implementation as in the released codes.

    python benchmarks/retraining_step.py --arch DARTS_V2

`auto`, `channels_last` and `contiguous` are this project's network with this --memory_format. `plain` uses the layers
of torch and contiguous images. The ways take turns, each in a separate process, on random images. The script prints
medians.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.results import check_out, write_results
from benchmarks.turns import take_turns
from genotypes import Genotype, load_genotype
from lib import cli, options
from lib.cli import blaming
from lib.options import Channels, ImageSize, Layers, PositiveInt, Seed, option

PROG = "retraining_step.py"
Way = Literal["auto", "channels_last", "contiguous", "plain"]


@dataclass
class RetrainingStepSettings:
    """The settings of this benchmark."""

    arch: str = option("DARTS_V2", "Cell: a name in genotypes.py, a genotype file, or the run folder of a search.")
    init_channels: Channels = option(36, "Channels C of the first cells.")
    layers: Layers = option(20, "Number of cells in the network.")
    image_size: ImageSize = option(32, "Height and width of the random images in pixels.")
    batch_size: PositiveInt = option(96, "Number of images per step.")
    rounds: PositiveInt = option(5, "Number of timings of each way. Their median is printed.")
    ways: list[Way] | None = option(None, "Ways to compute the step. By default auto and plain.")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = option("32-true", "Precision of all ways except plain.")
    tf32: bool = option(False, "Use TensorFloat-32 for float32 convolutions in all ways except plain.")
    compile: bool = option(False, "Compile the network in all ways except plain.")
    seed: Seed = option(0, "Seed of the weights and the images.")
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1 (the second GPU) or mps.")
    out: str = option("", "JSON file for the results. By default none is written.")


def make_step(settings: RetrainingStepSettings, genotype: Genotype, way: str) -> tuple[Callable[[int], None], Any]:
    """Return a step of SGD with momentum and an auxiliary head, and its device."""
    import torch

    from benchmarks.plain import library_layers
    from lib.devices import autocast, memory_format, prepare_device
    from model import NetworkCIFAR

    ours = way != "plain"
    device = prepare_device(settings.device, settings.tf32 and ours)
    torch.manual_seed(settings.seed)
    network = NetworkCIFAR(genotype, settings.init_channels, settings.layers, auxiliary=True).to(device).train()
    layout = memory_format(way if ours else "contiguous", device)
    if not ours:
        library_layers(network)
    network.to(memory_format=layout)
    if settings.compile and ours:
        network.compile()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
    shape = (settings.batch_size, 3, settings.image_size, settings.image_size)
    images, labels = torch.randn(shape), torch.randint(0, 10, shape[:1])
    images = images.to(device).to(memory_format=layout)
    labels = labels.to(device)
    entropy = torch.nn.functional.cross_entropy

    def turn(_: int) -> None:
        with autocast(settings.precision if ours else "32-true", device):
            logits, auxiliary = network(images, 0.1)
            loss = entropy(logits, labels) + 0.4 * entropy(auxiliary, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()

    return turn, device


def main() -> None:
    settings = options.parse(RetrainingStepSettings, PROG, __doc__.splitlines()[0])
    check_out(settings.out)
    with blaming("--arch"):
        genotype = load_genotype(settings.arch)
    ways: list[Way] = settings.ways or ["auto", "plain"]
    timings = take_turns({way: (make_step, (settings, genotype, way)) for way in ways}, settings.rounds)
    print("| way | s/step | images/s | peak memory [MiB] | times as fast as plain |")
    print("|---|---|---|---|---|")
    rows = []
    for way, timing in timings.items():
        seconds = timing.median
        faster = f"{timings['plain'].median / seconds:.2f}" if "plain" in timings else ""
        rate, peak = settings.batch_size / seconds, timing.peak_memory_mib
        rows.append({"way": way, "seconds_per_step": seconds, "images_per_second": rate, "peak_memory_mib": peak})
        rows[-1] |= {"seconds": timing.seconds, "kernels": [kernel._asdict() for kernel in timing.kernels]}
        print(f"| {way} | {seconds:.4f} | {rate:.1f} | {peak:.0f} | {faster} |")
    write_results(settings, settings.out, command=cli.command_line(), rows=rows)


if __name__ == "__main__":
    cli.run(main, PROG)
