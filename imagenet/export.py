"""Take the network out of a checkpoint of imagenet/train.py: as ONNX and as safetensors.

python imagenet/export.py runs/imagenet              # runs/imagenet/model.onnx and model.safetensors
python imagenet/export.py runs/imagenet/checkpoints/step_01250.ckpt --out exported

The network takes images (B, 3, H, W) in [0, 1], normalized by the mean and std that both files name, and gives logits
(B, classes). ONNX's runtime must give the logits that torch gives, or nothing is written.
"""

import json
import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import cli
from cli import InputError, Seed, blaming, option
from files import check_new_file, write_atomically, write_new

PROG = "export.py"
#: largest difference of two logits, relative to the largest logit: float32 rounding in another order
TOLERANCE = 1e-4


@dataclass
class ExportSettings:
    """export"""

    out: str = option("", "folder of the files; by default the run's, or that of the checkpoint")
    seed: Seed = option(0, "of the images that torch and ONNX's runtime are compared on")


def main() -> None:
    parser = cli.parser_for(ExportSettings, PROG, __doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a run folder of imagenet/train.py, finished or not, or a checkpoint file")
    given = parser.parse_args()

    import onnx
    import onnxruntime
    import torch
    from safetensors.torch import save

    from imagenet.checkpoint import load_network
    from imagenet.images import MEAN, STD
    from lib.trainer import open_checkpoint
    from model import Logits

    path = Path(given.checkpoint)
    out = Path(given.out or (path if path.is_dir() else path.parent))
    made = {"onnx": out / "model.onnx", "safetensors": out / "model.safetensors"}
    checkpoint = open_checkpoint(given.checkpoint)
    with blaming("--out"):
        if given.out:
            out.mkdir(parents=True, exist_ok=True)
        check_new_file(made["onnx"])  # the last to be written
    network = Logits(load_network(checkpoint)).float().eval()
    trained = checkpoint["hyper_parameters"]
    settings = trained["settings"]
    about = {
        "genotype": json.dumps(trained["genotype"]),
        "classes": json.dumps(trained["classes"]),
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
        **{name: str(settings[name]) for name in ("image_size", "init_channels", "layers")},
    }

    size = settings["image_size"]
    torch.manual_seed(given.seed)
    images = torch.randn(3, 3, size, size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own making
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            network,
            (images[:2],),
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
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = 0.0
    for batch in (images[:1], images):  # another number of images than it was made with
        with torch.no_grad():
            expected = network(batch)
        (came,) = session.run(None, {"images": batch.numpy()})
        difference = max(difference, ((torch.from_numpy(came) - expected).abs().max() / expected.abs().max()).item())
    if not difference <= TOLERANCE:
        raise InputError(
            f"checkpoint: with its weights ONNX's runtime differs from torch by {difference:.1e} of the largest logit; "
            f"expected at most {TOLERANCE:.0e}"
        )
    state = {name: value.contiguous() for name, value in network.network.state_dict().items()}
    with blaming("--out"):
        write_atomically(made["safetensors"], save(state, metadata=about))
        write_new(made["onnx"], content)
    files = {name: str(file) for name, file in made.items()}
    print(json.dumps({**files, "largest_relative_difference": difference}))


if __name__ == "__main__":
    cli.run(main, PROG)
