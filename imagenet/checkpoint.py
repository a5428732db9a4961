"""The network in a checkpoint of imagenet/train.py."""

from collections.abc import Mapping
from typing import Any

from cli import InputError, blaming
from genotypes import make_genotype
from model import NetworkImageNet
from retraining import network_state

#: of the auxiliary head, which only training uses
AUXILIARY = "auxiliary_head."


def load_network(checkpoint: Mapping[str, Any]) -> NetworkImageNet:
    """The network with its weights, without the auxiliary head.

    Raises:
        InputError: the checkpoint is of another script.
    """
    settings = checkpoint["settings"]
    with blaming("checkpoint"):
        genotype = make_genotype(checkpoint["genotype"])
    network = NetworkImageNet(
        genotype, settings["init_channels"], settings["layers"], len(checkpoint.get("classes", ()))
    )
    state = {name: value for name, value in network_state(checkpoint).items() if not name.startswith(AUXILIARY)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError("checkpoint: it holds another network; expected one of imagenet/train.py") from error
    return network
