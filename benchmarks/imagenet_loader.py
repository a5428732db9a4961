"""Time each stage of retraining on ImageNet, and compute the number of workers that keep a device busy.

    python benchmarks/imagenet_loader.py --data ILSVRC --arch DARTS_V2
    python benchmarks/imagenet_loader.py                                  # random pictures

The script first times each stage alone: decoding in one process, and transfer, normalization and a training step on
the device. It then times all stages together, with 1 to --workers workers. It prints medians in images per second.
"""

import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.results import check_out, write_results
from genotypes import Genotype, load_genotype
from lib import cli, options
from lib.cli import blaming
from lib.files import find_split
from lib.options import AtLeastTwo, Channels, ImageSize, Layers, PositiveInt, Seed, option

PROG = "imagenet_loader.py"


@dataclass
class LoaderSettings:
    """The settings of this benchmark."""

    data: str = option("", "Folder of ILSVRC, or a folder with train/<class>/*. By default random pictures are made.")
    width: PositiveInt = option(500, "Width of the random pictures in pixels. The mean size in ImageNet is 470 x 390.")
    height: PositiveInt = option(375, "Height of the random pictures in pixels.")
    pictures: PositiveInt = option(256, "Number of random pictures.")
    arch: str = option("DARTS_V2", "Cell: a name in genotypes.py, a genotype file, or the run folder of a search.")
    init_channels: Channels = option(48, "Channels C of the first cells.")
    layers: Layers = option(14, "Number of cells in the network.")
    image_size: ImageSize = option(224, "Height and width of the images in pixels.")
    batch_size: AtLeastTwo = option(128, "Number of images per step, on one device.")
    workers: PositiveInt = option(2, "Largest number of workers when all stages run together.")
    rounds: PositiveInt = option(5, "Number of timings of each stage. Their median is printed.")
    precision: Literal["32-true", "bf16-mixed"] = option("32-true", "Precision of the network's passes.")
    compile: bool = option(False, "Compile the network with torch.compile.")
    seed: Seed = option(0, "Seed of the weights and the pictures.")
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1 (the second GPU) or mps.")
    out: str = option("", "JSON file for the results. By default none is written.")


def make_pictures(settings: LoaderSettings, root: Path) -> None:
    """Write JPEG pictures of blurred noise in two classes. Files are as large as in ImageNet (110 kB at 500 x 375)."""
    import numpy as np
    from PIL import Image, ImageFilter

    generator = np.random.default_rng(settings.seed)
    for number in range(settings.pictures):
        noise = generator.integers(0, 256, (settings.height, settings.width, 3), dtype=np.uint8)
        folder = root / "train" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(0.8)).save(folder / f"{number}.jpg", quality=90)


def images_per_second(what: Callable[[], Any], count: int, rounds: int, device: Any, warm_up: int = 2) -> float:
    """The median throughput, in images per second, of a call that processes `count` images."""
    import torch

    seconds = []
    for number in range(warm_up + rounds):
        start = time.perf_counter()
        what()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= warm_up:
            seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)


def jitter_rates(settings: LoaderSettings, device: Any) -> dict[str, float]:
    """The throughput of color jitter on single images, in a worker and on the device, in images per second."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    jitter, size = v2.ColorJitter(0.4, 0.4, 0.4, 0.2), settings.image_size
    picture = Image.fromarray(np.random.default_rng(settings.seed).integers(0, 256, (size, size, 3), dtype=np.uint8))
    tensor = v2.functional.pil_to_tensor(picture).to(device)

    def jitter_repeatedly(image: Any) -> None:
        for _ in range(32):
            jitter(image)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    places = {"jitter, a PIL image in a worker": picture, "jitter, a tensor on the device": tensor}
    rates = {
        name: images_per_second(partial(jitter_repeatedly, image), 32, settings.rounds, device)
        for name, image in places.items()
    }
    torch.set_num_threads(threads)
    return rates


def make_step(network: Any, precision: str, layout: Any, device: Any) -> Callable[[Any, Any], None]:
    """Return a function that takes a training step on images and labels on the device."""
    import torch
    import torch.nn.functional as F

    from lib.devices import autocast

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-5)

    def train(images: torch.Tensor, labels: torch.Tensor) -> None:
        with autocast(precision, device):
            logits, auxiliary_logits = network(images.to(memory_format=layout))
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            if auxiliary_logits is not None:
                loss = loss + 0.4 * F.cross_entropy(auxiliary_logits, labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()

    return train


def measure_rates(settings: LoaderSettings, genotype: Genotype, tree: Any) -> dict[str, Any]:
    """Measure images per second of each stage and of all stages together, on a `lib.pictures.PictureFolder`."""
    import torch
    from torch.utils.data import DataLoader

    from imagenet.images import Decoder, begin_worker, normalize
    from lib.data_modules import Pass
    from lib.devices import memory_format, prepare_device
    from lib.preprocessing import papers_preprocessing
    from model import NetworkImageNet, smallest_image

    device, size = prepare_device(settings.device), settings.batch_size
    torch.manual_seed(settings.seed)
    decoder = Decoder(tree, preprocessing := papers_preprocessing(settings.image_size), settings.seed)
    pictures = Pass(torch.randint(0, len(tree), (size,)).numpy(), 1.0, epoch=0, number=0, seed=0)
    auxiliary = settings.image_size >= smallest_image(settings.layers, imagenet=True)
    network = NetworkImageNet(genotype, settings.init_channels, settings.layers, len(tree.classes), auxiliary)
    layout = memory_format("auto", device)
    network = network.to(device).to(memory_format=layout).train()
    if settings.compile:
        network.compile()
    train = make_step(network, settings.precision, layout, device)

    def augment(batch: Any) -> torch.Tensor:
        return normalize(batch.images.to(device, non_blocking=True), preprocessing)

    def rate(what: Callable[[], Any], warm_up: int = 2) -> float:
        return images_per_second(what, size, settings.rounds, device, warm_up)

    batch: Any = decoder[pictures]
    if device.type == "cuda":
        batch = batch._replace(images=batch.images.pin_memory())
    images, labels = augment(batch), batch.labels.to(device)
    rates = {
        "decode": rate(lambda: decoder[pictures]),
        "transfer": rate(lambda: batch.images.to(device, non_blocking=True)) if device.type != "cpu" else math.inf,
        "augment": rate(lambda: augment(batch)),
        "model": rate(lambda: train(images, labels)),
        **jitter_rates(settings, device),
    }
    together = {}
    for workers in range(1, settings.workers + 1):
        loader = DataLoader(
            decoder,
            sampler=itertools.repeat(pictures, workers * 2 + 1 + settings.rounds),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=begin_worker,
            pin_memory=device.type == "cuda",
        )
        batches: Iterator[Any] = iter(loader)

        def step(batches: Iterator[Any] = batches) -> None:
            batch = next(batches)
            train(augment(batch), batch.labels.to(device, non_blocking=True))

        # Each worker prefetches two batches, which are not timed.
        together[workers] = rate(step, warm_up=2 * workers)
        del batches, loader
    return {"device": str(device), "rates": rates, "together": together}


def main() -> None:
    settings = options.parse(LoaderSettings, PROG, __doc__.splitlines()[0])
    check_out(settings.out)
    with blaming("--arch"):
        genotype = load_genotype(settings.arch)
    with tempfile.TemporaryDirectory() if not settings.data else nullcontext(settings.data) as folder:
        from lib.pictures import read_tree

        if not settings.data:
            make_pictures(settings, Path(folder))
        with blaming("--data"):
            tree = read_tree(find_split(Path(folder), "train"))
        measured = measure_rates(settings, genotype, tree)
    rates = measured["rates"]
    device_rate = 1 / (1 / rates["transfer"] + 1 / rates["augment"] + 1 / rates["model"])
    needed = math.ceil(device_rate / rates["decode"])
    print(f"| on {measured['device']} | images/s | ms/image |\n|---|---|---|")
    names = {"decode": "decode, crop, jitter (one worker)", "augment": "normalize", "model": "training step"}
    for name, value in rates.items():
        if math.isfinite(value):  # a CPU needs no transfer
            print(f"| {names.get(name, name)} | {value:.1f} | {1e3 / value:.2f} |")
    for workers, value in measured["together"].items():
        print(f"| together, {workers} worker(s) | {value:.1f} | {1e3 / value:.2f} |")
    each = f"{needed} worker(s) with {rates['decode']:.0f} images/s each"
    print(f"\nThis device can train on {device_rate:.0f} images/s. It needs {each}.")
    if needed > (os.cpu_count() or 1):
        print(f"This machine has only {os.cpu_count()} core(s), so decoding is the bottleneck.")
    measured["rates"] = {name: value for name, value in rates.items() if math.isfinite(value)}
    write_results(settings, settings.out, command=cli.command_line(), **measured, workers_needed=needed)


if __name__ == "__main__":
    cli.run(main, PROG)
