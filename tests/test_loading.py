"""Using a retrained network: load_network, its transform, scores on other folders, and exports."""

import functools
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import lib.trainer
from lib import checkpoints
from lib.pictures import read_tree
from lib.retraining import Retraining
from model import create_network, load_network
from tests.helpers import CELL, ROOT, assert_rejected, last_checkpoint, script_in_process, without_figures, write_folder
from tests.imagenet_runs import CLASSES, make_tree, settings

KINDS = ["cifar", "nasbench201", "imagenet"]
CELL_201 = "|nor_conv_3x3~0|+|avg_pool_3x3~0|skip_connect~1|+|none~0|nor_conv_1x1~1|nor_conv_3x3~2|"
TEST = {"cifar": "train/test.py", "nasbench201": "nasbench201/test.py", "imagenet": "imagenet/test.py"}
EXPORT = "train/export.py"


class Trained(NamedTuple):
    """A finished retraining."""

    run: Path
    data: Path
    pictures: list[Path]  # the test pictures
    images: Tensor  # the test images as the network received them
    network: nn.Module  # the trained network, in evaluation mode


def make_gray(folder: Path) -> Path:
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    return folder


def retrain(kind: str, folder: Path) -> Trained:
    run = folder / "run"
    small = ("--init_channels", 4, "--epochs", 1, "--batch_size", 6, "--device", "cpu", "--save", run)
    if kind == "cifar":  # the pictures are resized to 36 x 32, then cropped
        data = write_folder(folder / "data", size=(45, 40))
        command = ("train/train.py", "--arch", CELL, "--layers", 3, "--auxiliary", "--image_size", 32, *small)
    elif kind == "nasbench201":  # gray pictures in their original size
        data = make_gray(write_folder(folder / "data", size=(20, 16)))
        command = ("nasbench201/train.py", "--arch", CELL_201, "--cells_per_stage", 1, *small)
    else:  # trains in float64
        data = make_tree(folder / "data") / "Data/CLS-LOC"
        command = ("imagenet/train.py", *settings(data, run, "--epochs", 1))
    if kind != "imagenet":
        command += ("--dataset", "folder", "--data", data)
    batches, modules = [], []
    step, write_result = Retraining.validation_step, lib.trainer.write_result

    def validation_step(module, batch, number):
        batches.append(batch.images)
        step(module, batch, number)

    def keep(run, module, *rest):
        modules.append(module)
        write_result(run, module, *rest)

    with pytest.MonkeyPatch.context() as patch, without_figures():
        patch.setattr(Retraining, "validation_step", validation_step)
        patch.setattr(lib.trainer, "write_result", keep)
        result = script_in_process(*command)
    assert result.returncode == 0, result.stderr
    tree = read_tree(data / ("val" if kind == "imagenet" else "test"))
    pictures = [tree.path(number) for number in range(len(tree))]
    return Trained(run, data, pictures, torch.cat(batches), modules[0].network.eval())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return functools.cache(lambda kind: retrain(kind, tmp_path_factory.mktemp(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_network_gives_the_logits_of_the_trained_one(trained, kind):
    run, _, _, images, network = trained(kind)
    with torch.no_grad():
        expected = network(images)[0].float()
    for path in (run, str(last_checkpoint(run))):
        loaded = load_network(path)
        assert loaded.classes == (CLASSES if kind == "imagenet" else ("cat", "dog"))
        assert not any(module.training for module in loaded.network.modules())
        assert not any("auxiliary" in name for name in loaded.network.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(loaded.network(images.float()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_transform_gives_the_images_of_the_test_loader(trained, kind):
    run, _, pictures, images, _ = trained(kind)
    transform = load_network(run).transform
    assert images.shape[1:] == ((1, 16, 16) if kind == "nasbench201" else (3, 32, 32))
    came = torch.stack([transform(Image.open(path)) for path in pictures])
    torch.testing.assert_close(came, images.float(), rtol=1e-5, atol=1e-5)
    if kind == "nasbench201":  # a picture in colour becomes gray
        assert torch.equal(transform(Image.open(pictures[0]).convert("RGB")), came[0])


def score(script, run, *flags):
    result = script_in_process(script, run, *flags)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("kind", ["cifar", "nasbench201"])
def test_a_score_does_not_depend_on_the_training_images(trained, tmp_path, kind):
    run, data, *_ = trained(kind)
    other = shutil.copytree(data, tmp_path / "other")
    for path in (other / "train").rglob("*.png"):  # another size, mean, deviation and number of channels
        Image.new("RGB" if kind == "nasbench201" else "L", (30, 30), 200).save(path)
    expected = json.loads((run / "result.json").read_text())["accuracy"]
    scored = score(TEST[kind], run, "--data", other)
    assert scored == score(TEST[kind], run)
    assert (scored["accuracy"], scored["images"], scored["epochs"]) == (expected, 6, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_test_images_of_other_classes_are_rejected(trained, tmp_path, kind):
    run, data, *_ = trained(kind)
    other = shutil.copytree(data, tmp_path / "other")
    first = load_network(run).classes[0]
    for split in other.iterdir():
        (split / first).rename(split / "zebra")
    count = len(CLASSES) if kind == "imagenet" else 2
    says = f"--data: {count} classes, expected the {count} that the network was trained on; they differ in {first}, zeb"
    assert_rejected(script_in_process(TEST[kind], run, "--data", other), says)


def test_each_scoring_script_rejects_networks_for_other_images(trained):
    assert_rejected(script_in_process("train/test.py", trained("imagenet").run), "score it with imagenet/test.py")
    assert_rejected(script_in_process("imagenet/test.py", trained("cifar").run), "score it with train/test.py")


def test_a_damaged_or_foreign_checkpoint_gives_a_one_line_error(trained, tmp_path):
    run = shutil.copytree(trained("cifar").run, tmp_path / "run")
    path, content = last_checkpoint(run), checkpoints.load(last_checkpoint(run))
    about = content["hyper_parameters"]
    wide = {**about, "settings": {**about["settings"], "init_channels": 6}}
    earlier = {name: value for name, value in about.items() if name != "preprocessing"}
    for changed, says in (
        ({**content, "hyper_parameters": earlier}, "is not a checkpoint of a retraining by this version"),
        ({**content, "hyper_parameters": {**about, "network": "vit"}}, "'vit'; expected one of cifar, imagenet"),
        ({**content, "hyper_parameters": wide}, "the weights do not fit the network that the checkpoint describes"),
        (torch.zeros(3), "is not a checkpoint of a retraining"),
    ):
        torch.save(changed, path)
        for script in (*TEST.values(), EXPORT):
            assert_rejected(script_in_process(script, run), "checkpoint: ", says)
        with pytest.raises(ValueError, match=says):
            load_network(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert_rejected(script_in_process(EXPORT, run), "is corrupt or not a checkpoint")
    shutil.copy(
        last_checkpoint(trained("cifar").run), path.with_name("step_00000.ckpt")
    )  # an earlier checkpoint, which is intact
    assert load_network(run).classes == ("cat", "dog")


@pytest.mark.parametrize(
    "kind",
    [pytest.param("cifar", marks=pytest.mark.slow), "nasbench201", pytest.param("imagenet", marks=pytest.mark.slow)],
)
def test_an_exported_network_gives_the_logits_of_the_loaded_one(trained, tmp_path, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    safetensors = pytest.importorskip("safetensors")
    run, _, _, images, _ = trained(kind)
    exported = script_in_process(EXPORT, run, "--out", tmp_path / "out")
    assert exported.returncode == 0, exported.stderr
    said = json.loads(exported.stdout)
    assert said["largest_relative_difference"] < 1e-4
    loaded = load_network(run)
    session = onnxruntime.InferenceSession(said["onnx"], providers=["CPUExecutionProvider"])
    for batch in (images[:1].float(), images[:3].float()):
        with torch.no_grad():
            expected = loaded.network(batch)
        (came,) = session.run(None, {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(came), expected, rtol=1e-4, atol=1e-5)
    with safetensors.safe_open(said["safetensors"], "pt") as file:
        about, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    torch.testing.assert_close(state, dict(loaded.network.network.state_dict()), rtol=0, atol=0)
    assert about == session.get_modelmeta().custom_metadata_map
    trained_with = checkpoints.load(last_checkpoint(run))["hyper_parameters"]
    assert about["network"] == kind and json.loads(about["classes"]) == list(loaded.classes)
    assert json.loads(about["genotype"]) == json.loads((run / "genotype.json").read_text())
    for name in ("mean", "std", "image_size", "channels"):
        value = trained_with["preprocessing"][name]
        assert json.loads(about[name]) == (list(value) if isinstance(value, tuple) else value)
    assert about["init_channels"] == "4" and ("cells_per_stage" in about) == (kind == "nasbench201")


@pytest.mark.slow
def test_nothing_is_exported_if_the_logits_differ(trained, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    run = onnxruntime.InferenceSession.run

    def wrong(session, *arguments):
        return [1.001 * logits for logits in run(session, *arguments)]

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", wrong)
    refused = script_in_process(EXPORT, trained("nasbench201").run, "--out", tmp_path / "out")
    assert_rejected(refused, "ONNX Runtime's logits differ from torch's by 1.0e-03")
    assert not list((tmp_path / "out").iterdir())


def test_a_created_network_has_the_published_size():
    with torch.device("meta"):
        for imagenet, params in ((False, 3_349_342), (True, 4_718_752)):
            network = create_network("DARTS_V2", imagenet=imagenet)
            assert sum(parameter.numel() for parameter in network.parameters()) == params
    network = create_network("FairDARTS_a", init_channels=4, layers=3, classes=7, in_channels=1)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    with pytest.raises(ValueError, match="DARTS_V3"):
        create_network("DARTS_V3")


def test_the_example_of_the_readme_classifies_a_picture(trained, tmp_path, monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n([^`]*load_network[^`]*)```", readme)
    run, _, pictures, images, network = trained("cifar")
    shutil.copytree(run, tmp_path / "runs/retrained")
    shutil.copy(pictures[4], tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert capsys.readouterr().out == f"{('cat', 'dog')[network(images[4:5])[0].argmax()]}\n"
