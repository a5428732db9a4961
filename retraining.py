"""Training a discrete network from scratch, from a script's settings to its run folder.

The networks of this field have a few million parameters: each device holds all of them, so data parallelism is enough,
and nothing is sharded (FSDP).
"""

import json
import math
import shlex
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cli
import cluster
import data
from cli import InputError, blaming
from files import write_atomically
from model import size
from modules import Images, Retraining, TensorImages
from recipes import Recipe
from trainer import checkpoints_of, fit, load_checkpoint
from utils import check_device, memory_format, provenance, write_config


def tensor_images(settings: Any) -> TensorImages:
    """The data set that the flags of `DataSettings` name.

    Raises:
        InputError: its files are not what is expected, or the cutout does not fit.
    """
    with blaming(f"--data: {settings.dataset}"):
        dataset = data.load(settings.dataset, settings.data, settings.image_size, settings.download, settings.images)
    with blaming("--cutout_length"):
        augmentation = data.Augmentation.training(dataset, settings.cutout_length if settings.cutout else 0)
    return TensorImages(dataset, settings.batch_size, augmentation, settings.seed)


def _check_same_images(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other images than a run began with: ValueError."""
    if before["classes"] != now["classes"]:
        other = sorted(set(before["classes"]) ^ set(now["classes"]))
        raise ValueError(f"the run began with other classes than --data has; they differ in {', '.join(other[:5])}")
    if before["images"] != now["images"]:
        raise ValueError(f"the run began with {before['images']} training images, and --data has {now['images']}")
    if before.get("images_sha256") != now["images_sha256"]:
        raise ValueError("the run began with other training images than --data has, though as many of the same classes")


def retrain(
    settings: Any,
    run: Path,
    resumed: bool,
    script: str,
    cell: Any,
    recipe: Recipe,
    make_network: Callable[[int, int, bool], nn.Module],
    describe: Callable[[Path], object],
    make_images: Callable[[Any], Images] = tensor_images,
    top5: bool = False,
) -> None:
    """Train the network of a cell from scratch, and leave a run folder.

    Args:
        settings: the dataclass of a script's flags: RunSettings, DevicesSettings, the batch size and what
            `make_images` reads.
        resumed: go on with the run folder that is there.
        script: the path of the script, for whoever interrupts it.
        cell: what the network is made of, with `to_json` and `_asdict`.
        make_network: from the numbers of classes and of image channels, and whether with an auxiliary head.
        describe: writes what a person reads of the run folder, when all else is there.
        make_images: from the settings.
        top5: record also how often the label is among the five largest logits.

    Raises:
        InputError: the settings do not fit the data or the machine; it names the flag.
    """
    devices_here, num_nodes = cluster.devices_and_nodes(settings.devices, settings.num_nodes)
    accelerator, devices = check_device(settings.device, devices_here)
    if settings.precision == "16-mixed" and accelerator != "cuda":
        raise InputError(
            f"--precision: 16-mixed needs a cuda device, not {accelerator}; expected bf16-mixed or 32-true"
        )
    world, accumulate = devices_here * num_nodes, settings.accumulate
    least = accumulate * max(world, 2)  # batch norm cannot normalize a single image
    if settings.batch_size < least:
        passes = f" in each of --accumulate {accumulate} passes" if accumulate > 1 else ""
        raise InputError(
            f"--batch_size: {settings.batch_size}, expected {least} or more: one image for each of {world} device(s), "
            f"and two images or more{passes}"
        )
    # Each further device has a process that runs this script, when the first one's has made the folder.
    first = cluster.is_first()
    if first and not resumed:
        cli.check_new_folder(run, "--save")
    images = make_images(settings)
    if settings.batch_size > images.count:
        raise InputError(
            f"--batch_size: {settings.batch_size}, but there are {images.count} images; expected at most {images.count}"
        )
    if images.test_count < world:
        raise InputError(f"--data: {images.test_count} test images; expected one or more for each of {world} device(s)")
    auxiliary = getattr(settings, "auxiliary", False)
    shape = (len(images.classes), images.in_channels)
    torch.manual_seed(settings.seed)
    network = make_network(*shape, auxiliary)
    if settings.precision == "64-true":
        network.double()  # before a checkpoint is loaded into it, which Lightning does first
    about = {
        "settings": {**asdict(settings), "save": str(run)},
        "genotype": cell._asdict(),
        "classes": list(images.classes),
        "images": images.count,
        "images_sha256": images.sha256(),
    }
    largest = math.ceil(settings.batch_size / (world * accumulate))
    compile_for = (largest, images.in_channels, images.image_size, images.image_size) if settings.compile else ()
    layout = memory_format(settings.memory_format, torch.device(accelerator))
    ignoring = getattr(settings, "broken_images", "refuse") == "skip"
    flag, command = "--resume" if resumed else "--save", f"python {script} --resume {shlex.quote(str(run))}"
    if first and num_nodes > 1:
        print(f"waiting for the processes of {num_nodes} nodes", flush=True)
    with cli.open_folder(run, flag, new=not resumed) if first else nullcontext():
        if first:
            with blaming(flag):
                # The file that makes the folder a run comes first; until its cell is there too, --arch has it.
                if not resumed:
                    write_config(run, about["settings"], provenance(cli.command_line(), f"{world} x {accelerator}"))
                write_atomically(run / "genotype.json", cell.to_json())
                checkpoints_of(run).prune()
        checkpoint = None
        if checkpoints_of(run).numbers:
            with blaming(flag):
                checkpoint = load_checkpoint(run / "checkpoints")
                _check_same_images(checkpoint, about)
        rows = fit(
            Retraining(network, len(images.classes), layout, recipe, compile_for, top5, ignoring),
            images,
            run,
            about,
            resume=command,
            checkpoint=checkpoint,
            checkpoint_steps=settings.checkpoint_steps,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=settings.precision,
            tf32=settings.tf32,
            deterministic=settings.deterministic,
            accumulate_grad_batches=accumulate,
        )
        if not first:
            return
        # The papers count the parameters without the auxiliary head.
        with torch.device("meta"):
            counted_size = size(make_network(*shape, False), images.in_channels, images.image_size)
        last = {name: rows[-1][f"test_{name}"] for name in ("accuracy", "top5") if f"test_{name}" in rows[-1]}
        last["test_images"] = rows[-1].get("test_images", images.test_count)
        summary = {**last, **counted_size, "seed": settings.seed, **about}
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in summary.items())
        with cli.saving(run, f"go on with: {command}"):
            write_atomically(run / "result.json", f"{{\n{lines}\n}}\n")
            describe(run)
    print(
        f"test accuracy {100 * summary['accuracy']:.2f} %, {counted_size['params'] / 1e6:.3f} M parameters, "
        f"{counted_size['multiply_adds'] / 1e6:.1f} M multiply-adds\nrun folder {run}",
        flush=True,
    )
