"""Seconds of a search step in NAS-Bench-201, beside the plain way of the released codes.

    python benchmarks/nasbench201_step.py --init_channels 8 --cells_per_stage 2 --image_size 16

A step is one of alpha and one of the weights. The plain way: channels first in memory, and every pass takes the
gradients of weights and mixing weights alike, whichever its step needs; supernet, weights and batches are the same. The
two take turns in one process; the medians of the rounds are printed, and how far their weights are apart at last.
"""

import json
import statistics
import time
from dataclasses import dataclass

from jsonargparse.typing import PositiveInt

import cli
from cli import Seed, option

PROG = "nasbench201_step.py"
METHODS = ("darts", "lambda-darts", "lambda-darts-exact")


@dataclass
class Settings:
    """benchmark"""

    init_channels: PositiveInt = option(16, "channels C of the first stage")
    cells_per_stage: PositiveInt = option(5, "cells N of each stage")
    image_size: PositiveInt = option(32, "height and width of the random images in pixels")
    batch_size: PositiveInt = option(64, "images of a step")
    rounds: PositiveInt = option(7, "timings of each, of which the median counts")
    seed: Seed = option(0, "of weights and images")
    device: str = option("auto", "auto, cpu, cuda, mps")


def main() -> None:
    settings = cli.parse(Settings, PROG, __doc__.splitlines()[0])

    import torch
    import torch.nn.functional as F

    import data
    from gradients import Objective, central_difference, norm
    from nasbench201.search201 import Search201
    from nasbench201.settings import SearchSettings, preset_201
    from regularizers import layer_alignment_derivative
    from search.bilevel import make_fabric
    from utils import Averages

    fabric = make_fabric(settings.device, "32-true")
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (4 * settings.batch_size, 3, settings.image_size, settings.image_size)
    images = data.ImageSet(
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        torch.randint(0, 10, (shape[0],), generator=generator),
    )
    names = tuple(map(str, range(10)))
    dataset = data.DataSet(images, images, names, (0.5,) * 3, (0.25,) * 3, flip=True)
    own = ("init_channels", "cells_per_stage", "batch_size", "seed", "device")
    given = {name: getattr(settings, name) for name in own}

    def start(method: str) -> Search201:
        settings_of_method = SearchSettings(**{**preset_201({"method": method}), "method": method, **given})
        return Search201(settings_of_method, dataset, fabric)

    def plain_pass(search: Search201, weights: list[torch.Tensor], batch: data.Batch) -> tuple:
        """Every gradient of the loss of one batch: in w, and in p of each layer."""
        parameters = list(search.supernet.parameters())
        loss = F.cross_entropy(search.supernet(batch.images, weights), batch.labels)
        gradients = torch.autograd.grad(loss, [*parameters, *weights])
        return gradients[: len(parameters)], gradients[len(parameters) :]

    def plain_step(search: Search201, train: data.Batch, valid: data.Batch, strength: float) -> None:
        """A step of alpha and of the weights."""
        search.supernet.train()
        weights = [w.requires_grad_() for w in search.layer_weights()]
        _, alpha_gradients = plain_pass(search, weights, valid)
        totals = search.architecture.gradients(search.supernet.kinds, alpha_gradients)
        for alpha, gradient in zip(search.architecture.parameters(), totals, strict=True):
            alpha.grad = gradient
        search.alpha_optimizer.step()
        weights = [w.requires_grad_() for w in search.layer_weights()]
        gradient, layer_gradients = plain_pass(search, weights, train)
        if strength:
            difference = central_difference(
                lambda point: plain_pass(search, [w.requires_grad_() for w in point], train)[0],
                weights,
                layer_alignment_derivative(layer_gradients),
                search.settings.epsilon_0,
            )
            gradient = [g - strength * d for g, d in zip(gradient, difference, strict=True)]
        for weight, g in zip(search.supernet.parameters(), gradient, strict=True):
            weight.grad = g
        torch.nn.utils.clip_grad_norm_(search.supernet.parameters(), search.settings.grad_clip)
        search.weight_optimizer.step()

    def our_step(search: Search201, train: data.Batch, valid: data.Batch, strength: float) -> None:
        objective, log = Objective(search.supernet.train(), search.fabric.autocast), Averages()
        search.alpha_step(objective, train, valid, False, log)
        search.weight_step(objective, train, strength, False, log)

    contenders = {(method, "ours"): start(method) for method in METHODS}
    contenders |= {(method, "plain"): start(method) for method in METHODS[:2]}
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in contenders}
    for (_, way), search in contenders.items():
        if way == "plain":
            search.supernet.to(memory_format=torch.contiguous_format)
    for turn in range(settings.rounds + 1):
        for (method, way), search in contenders.items():
            train, valid = (next(iter(batches)) for batches in search.batches(turn))
            if way == "plain":
                train, valid = (batch._replace(images=batch.images.contiguous()) for batch in (train, valid))
            strength = 0.0 if search.settings.reg == "none" else search.settings.lambda_
            begin = time.perf_counter()
            (our_step if way == "ours" else plain_step)(search, train, valid, strength)
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                seconds[method, way].append(time.perf_counter() - begin)
    ours, plain = (list(contenders["darts", way].supernet.parameters()) for way in ("ours", "plain"))
    apart = (norm([a - b for a, b in zip(ours, plain, strict=True)]) / norm(ours)).item()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("| method | s/step | plain s/step | of DARTS |")
    print("|---|---|---|---|")
    for method in METHODS:
        own, released = medians[method, "ours"], medians.get((method, "plain"))
        beside = "" if released is None else f"{released:.3f}"
        print(f"| {method} | {own:.3f} | {beside} | {own / medians['darts', 'ours']:.2f} |")
    print(
        json.dumps(
            {
                "command": cli.command_line(),
                "device": str(fabric.device),
                "seconds": {f"{method}, {way}": value for (method, way), value in medians.items()},
                "weights_apart_after_all_rounds": apart,
            }
        )
    )


if __name__ == "__main__":
    cli.run(main, PROG)
