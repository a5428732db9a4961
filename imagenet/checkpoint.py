"""The network in a checkpoint of imagenet/train.py."""

from typing import Any

import torch

from genotypes import make_genotype
from lib.cli import InputError, blaming
from lib.scoring import network_state
from model import NetworkImageNet


def load_network(checkpoint: dict[str, Any]) -> NetworkImageNet:
    """Load the network with its weights, without the auxiliary head.

    Raises:
        InputError: The checkpoint is of another script.
    """
    about = checkpoint["hyper_parameters"]
    settings = about["settings"]
    if "warm_up" not in settings:
        raise InputError(
            "checkpoint: it is not one of imagenet/train.py; expected train/test.py or nasbench201/test.py"
        )
    with blaming("checkpoint"):
        genotype = make_genotype(about["genotype"])
    with torch.device("meta"):
        network = NetworkImageNet(genotype, settings["init_channels"], settings["layers"], len(about["classes"]))
    state = network_state(checkpoint)
    network.load_state_dict({n: w for n, w in state.items() if not n.startswith("auxiliary_head.")}, assign=True)
    return network
