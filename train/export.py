"""Export the network of train/train.py, nasbench201/train.py or imagenet/train.py as ONNX and as safetensors.

python train/export.py runs/retrained              # runs/retrained/model.onnx and model.safetensors
python train/export.py runs/retrained/checkpoints/step_09000.ckpt --out exported

The exported network maps images (B, channels, H, W) to logits (B, classes). The images are in [0, 1], normalized by the
mean and std in the metadata of both files. The metadata also has the classes, the genotype, and the sizes of the
network and its images. The script writes nothing if ONNX Runtime's logits differ from torch's.
"""

import importlib.util
import json
import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import cli, options
from lib.cli import InputError, blaming
from lib.files import check_new_file, write_atomically
from lib.options import Seed, argument, option

if TYPE_CHECKING:
    from torch import Tensor, nn

PROG = "export.py"
#: largest allowed difference of two logits, relative to the largest logit; float32 sums differ in their order
TOLERANCE = 1e-4


@dataclass
class ExportSettings:
    """The settings of train/export.py."""

    checkpoint: str = argument("Run folder of a retraining, finished or not, or one of its checkpoint files.")
    out: str = option("", "Folder for both files. By default, the folder of the run or of the checkpoint.")
    seed: Seed = option(0, "Seed of the images on which torch and ONNX Runtime are compared.")


def metadata(trained: dict[str, Any]) -> dict[str, str]:
    """The metadata of both files, from the hyperparameters of a checkpoint. Values other than text are JSON."""
    sizes = {name: trained["settings"].get(name) for name in ("init_channels", "layers", "cells_per_stage")}
    about = {name: trained[name] for name in ("genotype", "classes")} | trained["preprocessing"] | sizes
    return {"network": trained["network"]} | {n: json.dumps(value) for n, value in about.items() if value is not None}


def to_onnx(network: "nn.Module", images: "Tensor", about: dict[str, str]) -> bytes:
    """The network as an ONNX model for any number of images, with `about` as its metadata."""
    import onnx
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own code
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            network,
            (images,),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            external_data=False,
            verbose=False,
        )
        model = onnx.load(path)
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def largest_difference(content: bytes, network: "nn.Module", images: "Tensor") -> float:
    """The largest difference between ONNX Runtime's logits and the network's, relative to its largest logit."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = network(images)
    (logits,) = session.run(None, {"images": images.numpy()})
    return ((torch.from_numpy(logits) - expected).abs().max() / expected.abs().max()).item()


def main() -> None:
    given = options.parse(ExportSettings, PROG, __doc__.splitlines()[0])
    for package in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{package} is not installed; run pip install -e '.[export]'")

    import torch
    from safetensors.torch import save

    from model import Logits, restore_network

    path = Path(given.checkpoint)
    out = Path(given.out or (path if path.is_dir() else path.parent))
    made = {"onnx": out / "model.onnx", "safetensors": out / "model.safetensors"}
    with blaming("checkpoint"):
        restored, checkpoint = restore_network(given.checkpoint)
    with blaming("--out" if given.out else "checkpoint"):
        if given.out:
            out.mkdir(parents=True, exist_ok=True)
        check_new_file(made["onnx"])  # the file that is written last
    network, trained = Logits(restored).float().eval(), checkpoint["hyper_parameters"]
    about, preprocessing = metadata(trained), trained["preprocessing"]

    torch.manual_seed(given.seed)
    images = torch.randn(3, preprocessing["channels"], preprocessing["image_size"], preprocessing["image_size"])
    content = to_onnx(network, images[:2], about)
    # compare at other batch sizes than that of the export, too
    difference = max(largest_difference(content, network, batch) for batch in (images[:1], images))
    if not difference <= TOLERANCE:
        raise InputError(
            f"checkpoint: ONNX Runtime's logits differ from torch's by {difference:.1e} of the largest logit; "
            f"expected at most {TOLERANCE:.0e}"
        )
    state = {name: value.contiguous() for name, value in restored.state_dict().items()}
    with blaming("--out"):
        write_atomically(made["safetensors"], save(state, metadata=about))
        write_atomically(made["onnx"], content)
    files = {name: str(file) for name, file in made.items()}
    print(json.dumps({**files, "largest_relative_difference": difference}))


if __name__ == "__main__":
    cli.run(main, PROG)
