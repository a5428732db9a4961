"""The network in a checkpoint of imagenet/train.py."""

from collections.abc import Mapping
from typing import Any

import torch

import trainer
from cli import InputError, blaming
from genotypes import make_genotype
from model import NetworkImageNet


def load_network(checkpoint: Mapping[str, Any]) -> NetworkImageNet:
    """The network with its weights, without the auxiliary head.

    Raises:
        InputError: the checkpoint is of another script.
    """
    settings = checkpoint["settings"]
    with blaming("checkpoint"):
        genotype = make_genotype(checkpoint["genotype"])
    with torch.device("meta"):
        network = NetworkImageNet(genotype, settings["init_channels"], settings["layers"], len(checkpoint["classes"]))
    try:
        trainer.load_network(network, checkpoint, without="auxiliary_head.")
    except RuntimeError as error:
        raise InputError("checkpoint: it holds another network; expected one of imagenet/train.py") from error
    return network
