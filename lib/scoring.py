"""Score a retrained network on its test images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import nn

from lib import checkpoints, datasets
from lib.batches import Augmentation
from lib.callbacks import metrics_of
from lib.cli import InputError, blaming
from lib.data_modules import RetrainDataModule, TensorDataModule
from lib.devices import check_device, memory_format, set_up_libraries
from lib.retraining import Retraining
from lib.trainer import silence


def score(
    network: nn.Module, data: RetrainDataModule, checkpoint: dict[str, Any], device: str, top5: bool = False
) -> str:
    """Score a network on the test images, in the precision of its training if the device supports that.

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


def open_checkpoint(given: str) -> dict[str, Any]:
    """The checkpoint of a retraining that a command line names: a file, or the last one of a run folder.

    Raises:
        InputError: There is none, or it is corrupt.
    """
    path = Path(given)
    with blaming("checkpoint"):
        if not path.is_dir():
            checkpoint = checkpoints.load(path)
        elif last := checkpoints.load_last(path / "checkpoints"):
            path, checkpoint = last
        else:
            raise ValueError(f"{path} has none; expected a checkpoint, or a run folder that has one")
    if "hyper_parameters" not in checkpoint:
        raise InputError(f"checkpoint: {path} is not one of a retraining")
    return checkpoint


def network_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The weights of the network in a checkpoint; their running mean if the recipe has one."""
    prefix = "network."
    return {n.removeprefix(prefix): w for n, w in checkpoint["state_dict"].items() if n.startswith(prefix)}


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """The number of epochs that are complete in a checkpoint."""
    return len(checkpoint["callbacks"]["EpochLog"]["rows"])


def score_on_dataset(
    checkpoint: dict[str, Any],
    make_network: Callable[[dict[str, Any], dict[str, Any], datasets.DataSet], nn.Module],
    data: str,
    device: str,
) -> str:
    """Score a network on the test images of the data set that it was trained on; see `score`.

    Args:
        make_network: From settings and genotype of the checkpoint, and the data set.
        data: The folder of the data set; "" takes that of the run.

    Raises:
        InputError: The images are not those of the data set.
    """
    about = checkpoint["hyper_parameters"]
    settings = about["settings"]
    with blaming(f"--data: {settings['dataset']}"):
        where = data or settings["data"]
        dataset = datasets.load(settings["dataset"], where, settings["image_size"], images=settings["images"])
    with torch.device("meta"):
        network = make_network(settings, about["genotype"], dataset)
    try:
        network.load_state_dict(network_state(checkpoint), assign=True)
    except RuntimeError as error:
        raise InputError(
            f"--data: {len(dataset.classes)} classes of images with {dataset.in_channels} channels, "
            "expected the data set that the network was trained on"
        ) from error
    images = TensorDataModule(dataset, settings["batch_size"], Augmentation.none(dataset), settings["seed"])
    return score(network, images, checkpoint, device)
