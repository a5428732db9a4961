"""Score a retrained network on the test images of its data set, and print that as one JSON object.

python train/test.py runs/retrain-...     # of train/train.py or nasbench201/train.py
python train/test.py runs/retrain-.../checkpoints/step_09000.safetensors --data /elsewhere/data --device cuda
"""

import json
from dataclasses import dataclass
from typing import Any

import cli
from cli import InputError, blaming, option

PROG = "test.py"


@dataclass
class TestSettings:
    """test"""

    data: str = option("", "folder of the data set's files; by default where the run had them")
    device: str = option("auto", "auto, cpu, cuda, mps; cuda:1 for the second GPU")


def main() -> None:
    parser = cli.parser_for(TestSettings, PROG, __doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a run folder of a retraining, finished or not, or a checkpoint file of one")
    given = parser.parse_args()

    import torch

    import data
    from genotypes import Genotype, make_genotype
    from model import NetworkCIFAR
    from modules import Evaluation, TensorImages
    from nasbench201.cells import Cell201, parse_cell
    from nasbench201.networks import Network as Network201
    from trainer import load_network, make_trainer, open_checkpoint, scoring_precision
    from utils import check_device, memory_format

    accelerator, devices = check_device(given.device)
    checkpoint = open_checkpoint(given.checkpoint)
    settings = checkpoint["settings"]
    if "dataset" not in settings:
        raise InputError("checkpoint: it is one of imagenet/train.py; expected imagenet/test.py for it")
    with blaming(f"--data: {settings['dataset']}"):
        where, images = given.data or settings["data"], settings.get("images", 0)
        dataset = data.load(settings["dataset"], where, settings["image_size"], images=images)
    with blaming("checkpoint"):
        cell: Genotype | Cell201
        auxiliary: tuple[bool, ...]
        if "cells_per_stage" in settings:
            cell, depth, auxiliary = parse_cell(str(checkpoint["genotype"].get("arch"))), "cells_per_stage", ()
        else:
            cell, depth, auxiliary = make_genotype(checkpoint["genotype"]), "layers", (settings["auxiliary"],)
    kind: Any = Network201 if isinstance(cell, Cell201) else NetworkCIFAR
    shape = (settings["init_channels"], settings[depth], len(dataset.classes), *auxiliary)
    with torch.device("meta"):
        network = kind(cell, *shape, in_channels=dataset.in_channels)
    try:
        load_network(network, checkpoint)
    except RuntimeError as error:
        raise InputError(
            f"--data: {len(dataset.classes)} classes of images with {dataset.in_channels} channels, "
            "expected the data set that the network was trained on"
        ) from error
    module = Evaluation(network, len(dataset.classes), memory_format("auto", torch.device(accelerator)))
    images = TensorImages(dataset, settings["batch_size"], data.Augmentation.none(dataset), settings["seed"])
    make_trainer(accelerator, devices, scoring_precision(checkpoint, accelerator)).test(module, images, verbose=False)
    print(json.dumps({**module.test_scores.take(), "images": len(dataset.test), "epochs": len(checkpoint["rows"])}))


if __name__ == "__main__":
    cli.run(main, PROG)
