"""Score a retrained network on its test images."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import nn

from lib import datasets
from lib.batches import Augmentation
from lib.callbacks import metrics_of
from lib.checkpoints import unnamed_classes
from lib.cli import InputError, blaming
from lib.data_modules import RetrainDataModule, TensorDataModule
from lib.devices import check_device, memory_format, set_up_libraries
from lib.pictures import same_names
from lib.preprocessing import Preprocessing
from lib.retraining import Retraining
from lib.trainer import silence


def score(
    network: nn.Module, data: RetrainDataModule, checkpoint: dict[str, Any], device: str, top5: bool = False
) -> str:
    """Score a network on the test images, in the precision of its training if the device supports it.

    Returns:
        The metrics as a JSON object.

    Raises:
        InputError: This machine has no such device.
    """
    accelerator, devices = check_device(device)
    precision = checkpoint["hyper_parameters"]["settings"]["precision"]
    set_up_libraries(tf32=False)
    silence()
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        precision="32-true" if precision == "16-mixed" and accelerator != "cuda" else precision,
        plugins=[LightningEnvironment()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    layout = memory_format("auto", torch.device(accelerator))
    trainer.test(Retraining(network, len(data.classes), None, layout, top5=top5), data, verbose=False)
    metrics = {name.removeprefix("test_"): value for name, value in metrics_of(trainer).items()}
    return json.dumps({**metrics, "images": data.test_count, "epochs": epochs_done(checkpoint)})


def epochs_done(checkpoint: dict[str, Any]) -> int | None:
    """The number of completed epochs in a checkpoint. None if its weights were imported."""
    return len(checkpoint["callbacks"]["EpochLog"]["rows"]) if "callbacks" in checkpoint else None


def check_classes(classes: Sequence[str], expected: Sequence[str]) -> None:
    """Raise an InputError if the classes of the images are not those that the network was trained on.

    If the network has placeholders for names (`lib.checkpoints.unnamed_classes`), only the number is compared.
    """
    if not same_names(classes, expected) and list(expected) != unnamed_classes(len(classes)):
        other = ", ".join(sorted(set(classes) ^ set(expected))[:5])
        raise InputError(
            f"--data: {len(classes)} classes, expected the {len(expected)} that the network was trained on; "
            f"they differ in {other}"
        )


def score_on_dataset(network: nn.Module, checkpoint: dict[str, Any], data: str, device: str) -> str:
    """Score a network on the test images of the data set that it was trained on; see `score`.

    Args:
        data: The folder of the data set. "" uses the folder of the run.

    Raises:
        InputError: The images cannot be read or have other classes, or the network is for imagenet/test.py.
    """
    about = checkpoint["hyper_parameters"]
    settings, preprocessing = about["settings"], Preprocessing(**about["preprocessing"])
    if "dataset" not in settings:
        raise InputError("checkpoint: the network is for ImageNet; score it with imagenet/test.py")
    name, where, size = settings["dataset"], data or settings["data"], preprocessing.image_size
    with blaming(f"--data: {name}"):
        dataset = datasets.load(
            name, where, size, images=settings["images"], channels=preprocessing.channels, test_only=True
        )
    check_classes(dataset.classes, about["classes"])
    dataset = replace(dataset, mean=preprocessing.mean, std=preprocessing.std)
    images = TensorDataModule(dataset, settings["batch_size"], Augmentation.none(dataset), settings["seed"])
    return score(network, images, checkpoint, device)
