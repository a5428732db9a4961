"""The examples of docs/extending.md, each run as a plugin and compared with independent computations."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from architect import Architecture
from genotypes import load_genotype
from lib import plugins
from lib.datasets import load
from lib.options import load_settings
from model import NetworkCIFAR, load_network
from regularizers import ALPHA_REGULARIZERS, weight_gradient
from search.methods import METHODS
from search.settings import SCRIPT
from search.state import open_search
from smoothing import SMOOTHING
from spaces import SPACES
from tests.helpers import (
    EXAMPLES,
    EXTENDING,
    TABLE,
    assert_rejected,
    script,
    script_in_process,
    temporary_plugins,
    write_table,
)
from tests.supernets import assert_gradients_of, batch_and_weights, fast_and_plain, space_with, uneven_space

DOUBLE = torch.float64


def test_the_table_of_costs_counts_the_lines_of_the_examples():
    counted = [
        len([line for line in text.splitlines() if line.strip() and not line.startswith(("from ", "import "))])
        for text in EXAMPLES.values()
    ]
    assert counted == [int(lines) for lines in re.findall(r"^\|.*\| (\d+) \| \d \|$", EXTENDING, re.MULTILINE)]
    assert len(counted) == 7


@pytest.fixture(autouse=True)
def own_registries():
    """Unload the plugins of a test when it ends."""
    with temporary_plugins():
        yield


@pytest.fixture
def example(tmp_path):
    """Return a function that writes examples to a plugin file and loads it."""

    def write(*headings, load=True):
        path = tmp_path / "mine.py"
        path.write_text("\n\n".join(EXAMPLES[heading] for heading in headings), encoding="utf-8")
        if load:
            plugins.load([path])
        return path

    return write


def test_a_cell_of_a_plugin_loads_by_its_name(example):
    example("A cell")
    assert load_genotype("mine").edges("normal")[0] == ("sep_conv_3x3", 2, 0)


def test_a_custom_operation_computes_the_same_in_the_supernet_the_fast_path_and_the_retrained_network(example):
    example("An operation")
    SPACES["se"] = space_with("skip_connect", "sep_conv_3x3", "sep_conv_3x3_se")
    supernet, plain = fast_and_plain(SPACES["se"])
    assert_gradients_of(supernet, plain, *batch_and_weights(supernet))

    # The network of a cell equals the supernet if mixing weights are 1 for the operations of that cell and 0 otherwise.
    kinds = ("normal", "reduce")
    chosen = {kind: [("sep_conv_3x3_se", edge) for edge in (0, 1, 2, 3, 5, 6, 9, 10)] for kind in kinds}
    weights = {kind: torch.zeros(14, 3, dtype=DOUBLE) for kind in kinds}
    for kind, edges in chosen.items():
        for _, edge in edges:
            weights[kind][edge, 2] = 1
    operations = [[name, SPACES["se"].edges[edge][0]] for name, edge in chosen["normal"]]
    cell = load_genotype(
        json.dumps({k: v for kind in kinds for k, v in ((kind, operations), (f"{kind}_concat", [2, 3, 4, 5]))})
    )
    network = NetworkCIFAR(cell, init_channels=4, layers=5).double()
    copy_chosen(plain, network, chosen["normal"])
    images = torch.randn(3, 3, 8, 8, dtype=DOUBLE)
    with torch.no_grad():
        expected = supernet(images, [weights[kind] for kind in supernet.kinds])
        torch.testing.assert_close(network(images)[0], expected, rtol=1e-10, atol=1e-12)


def copy_chosen(plain, network, chosen):
    """Copy the chosen weights of a plain supernet to a network, whose batch norms scale by 1, and set training mode."""
    network.stem.load_state_dict(plain.stem.state_dict(), strict=False)
    network.classifier.load_state_dict(plain.classifier.state_dict())
    for cell, mixed in zip(network.cells, plain.cells, strict=True):
        cell.preprocess0.load_state_dict(mixed.preprocess0.state_dict(), strict=False)
        cell.preprocess1.load_state_dict(mixed.preprocess1.state_dict(), strict=False)
        for operation, (_, edge) in zip(cell.operations, chosen, strict=True):
            operation.load_state_dict(mixed.edges.mixed_ops[edge].operations[2].state_dict(), strict=False)
    network.train()


def test_the_logged_regularizer_of_the_weights_equals_a_direct_computation(example, tmp_path):
    path = example("A regularizer of the weights", load=False)
    common = ("--dataset", "digits", "--images", "100", "--batch_size", "50", "--layers", "4", "--init_channels", "4")
    run = tmp_path / "run"
    result = script(
        "search/train_search.py", "--plugin", path, *common, "--space", "s2", "--method", "darts", "--reg", "dot",
        "--lambda_", "0.1", "--epochs", "1", "--arch_learning_rate", "1e-9", "--learning_rate", "1e-9",
        "--learning_rate_min", "0", "--precision", "64-true", "--save", run,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (row,) = (dict(zip(*[line.split(",") for line in (run / "metrics.csv").read_text().splitlines()], strict=True)),)

    plugins.load([path])

    state = open_search(load_settings(SCRIPT.settings, SCRIPT.path, run, "run"))
    batch = state.cast(next(iter(state.batches(0)[0])))
    gradients = weight_gradient(state.objective(0.0, 0.0), state.layer_weights(), batch, layers=True).layer_gradients
    pairs = [(a * b).sum().item() for i, a in enumerate(gradients) for b in gradients[i + 1 :]]
    assert float(row["regularizer"]) == pytest.approx(np.mean(pairs), rel=1e-4)


def test_the_beta_darts_example_equals_the_built_in_method(example):
    example("A regularizer of alpha: beta-DARTS")
    torch.manual_seed(0)
    alpha = {"normal": torch.randn(5, 3, dtype=DOUBLE), "reduce": torch.randn(5, 3, dtype=DOUBLE)}
    alpha["normal"][0, 2] = -torch.inf
    rows = [row[row.isfinite()] for values in alpha.values() for row in values]
    expected = np.mean([np.log(np.exp(row.numpy()).sum()) for row in rows])
    for name in ("my_logsumexp", "logsumexp"):
        value = ALPHA_REGULARIZERS[name](alpha, {})
        assert value.item() == pytest.approx(expected, rel=1e-12)
    assert METHODS["my-beta-darts"].settings == {**METHODS["beta-darts"].settings, "alpha_reg": "my_logsumexp"}


@pytest.mark.parametrize("name", ["random", "adversarial", "my_random"])
@pytest.mark.parametrize("space", [SPACES["s5"], uneven_space()])
def test_the_perturbed_p_is_on_the_simplex_and_up_to_a_factor_in_the_ball(example, name, space):
    """SmoothDARTS clips and then divides by the sum, so p' is in the ball only up to a factor for each edge."""
    example("A hook on the mixing weights: SDARTS-RS")
    torch.manual_seed(0)
    architecture = Architecture(space.counts).double()
    with torch.no_grad():
        for alpha in architecture.alphas.values():
            alpha.normal_()
    p = {kind: weights.detach() for kind, weights in architecture.mixing_weights().items()}
    slope = {kind: torch.randn_like(weights) for kind, weights in p.items()}
    q = SMOOTHING[name](p, 0.1, lambda mixing: slope, architecture.project)
    for kind, weights in q.items():
        places = architecture.places[kind]
        assert (weights[~places] == 0).all() and (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights), dtype=DOUBLE))
        assert (weights - p[kind]).abs().max() > 0.01 or name == "adversarial"
        # c q is in the ball for some factor c: each weight allows an interval of c, and the intervals intersect
        low = ((p[kind] - 0.1) / weights).where(places & (weights > 0), -torch.inf).amax(dim=1)
        high = ((p[kind] + 0.1) / weights).where(places & (weights > 0), torch.inf).amin(dim=1)
        assert (low <= high + 1e-12).all()
    if name == "adversarial":
        gain = sum((slope[kind] * (q[kind] - p[kind])).sum() for kind in p)
        assert gain > 0


def test_a_data_set_of_a_plugin_is_resized_and_normalized(example, tmp_path):
    example("A data set")
    generator = np.random.default_rng(0)
    arrays = {
        f"{part}_{what}": value
        for part, count in (("train", 40), ("test", 20))
        for what, value in (
            ("images", generator.integers(0, 256, (count, 3, 12, 12), dtype=np.uint8)),
            ("labels", np.arange(count) % 2),
        )
    }
    np.savez(tmp_path / "images.npz", **arrays)
    dataset = load("npz", str(tmp_path), image_size=8)
    assert dataset.train.images.shape == (40, 3, 8, 8) and dataset.classes == ("cat", "dog") and dataset.flip
    own = load("npz", str(tmp_path))
    assert torch.equal(own.test.images, torch.from_numpy(arrays["test_images"]))
    means = arrays["train_images"].mean(axis=(0, 2, 3)) / 255
    assert own.mean == pytest.approx(means.tolist())


BAD = {
    "import operations\noperations.OPERATIONS['skip_connect'] = 1": "operation 'skip_connect': this name is taken; "
    "choose another",
    "from operations import *\nOPERATIONS['a'] = lambda channels: 1": "operation 'a': <lambda>(channels); expected a "
    "function of (channels, stride, affine)",
    "from operations import *\nOPERATIONS['a'] = lambda c, s, a: nn.Conv2d(c, c, 3)": "operation 'a': with stride 1 it "
    "maps (2, 16, 8, 8) to (2, 16, 6, 6), expected (2, 16, 8, 8)",
    "from operations import *\nOPERATIONS['a'] = lambda c, s, a: nn.ReLU(inplace=True)": "operation 'a': it changes "
    "its input in place",
    "from operations import *\nOPERATIONS['a'] = lambda c, s, a: nn.Hardtanh(inplace=True)": "operation 'a': it "
    "changes its input in place",
    "from operations import *\nOPERATIONS['a'] = lambda c, s, a: nn.AvgPool2d(s)": "operation 'a': with stride 2 it "
    "maps (2, 16, 7, 7) to (2, 16, 3, 3), expected (2, 16, 4, 4)",
    "from regularizers import *\nREGULARIZERS['noise'] = lambda gradients: 0": "regularizer 'noise': this name is "
    "taken",
    "from search.methods import *\nMETHODS['a'] = Method('A', {}, {'s2': {}})": "method 'a': by_space or "
    "released_by_space: 's2'; expected",
    "from spaces import *\nSPACES['a'] = Space({'normal': (), 'reduce': ()}, ((0, 2), (1, 2)), 2)": "Space: normal: "
    "candidates for 0 edges; expected 2",
    "from search.methods import *\nMETHODS['a'] = {'reg': 'corr'}": "method 'a': {'reg': 'corr'}; expected a Method",
    "from regularizers import *\nALPHA_REGULARIZERS['a'] = lambda p: 0": "regularizer of alpha 'a': <lambda>(p); "
    "expected a function of (alpha, p)",
    "from smoothing import *\nSMOOTHING['a'] = 3": "smoothing 'a': 3; expected a function of (p, epsilon, gradient",
}


@pytest.mark.parametrize(("text", "message"), BAD.items())
def test_a_bad_plugin_is_rejected_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    result = script_in_process("search/train_search.py", "--plugin", path, "--dataset", "digits")
    assert_rejected(result, f"--plugin: {path}: {message}")


def test_a_missing_plugin_and_an_unknown_setting_of_a_method_are_rejected_in_one_line(tmp_path):
    result = script_in_process("search/train_search.py", "--plugin", tmp_path / "mine.py")
    assert_rejected(result, "--plugin: there is no file")
    (tmp_path / "other.py").write_text("from search.methods import *\nMETHODS['a'] = Method('A', {'lamda': 1})")
    result = script_in_process("search/train_search.py", "--plugin", tmp_path / "other.py", "--method", "a")
    assert_rejected(result, "--method: a: lamda: unknown setting")


def test_an_error_in_the_code_of_a_plugin_keeps_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("import math\nmath.sqrt(-1)\n")
    result = script("search/train_search.py", "--plugin", tmp_path / "mine.py")
    assert result.returncode == 1 and 'mine.py", line 2' in result.stderr and "math domain error" in result.stderr


@pytest.mark.slow
def test_an_operation_of_a_plugin_is_searched_retrained_scored_exported_and_loaded(example, tmp_path):
    path = example("An operation", load=False)
    path.write_text(
        path.read_text().replace("sep_conv_3x3_se", "attention") + "\n\nfrom spaces import SPACES, Space\n\n"
        "EDGES = ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))\n"
        "CELL = (('attention',),) * 5\n"
        "SPACES['se'] = Space({'normal': CELL, 'reduce': CELL}, EDGES, keep=2)\n"
    )
    search, run = tmp_path / "search", tmp_path / "run"
    small = ("--dataset", "digits", "--init_channels", "4", "--layers", "3", "--epochs", "1", "--device", "cpu")

    def call(*arguments, ok=True, plugin=path):
        result = script(*arguments, *(("--plugin", plugin) if plugin else ()))
        assert not ok or result.returncode == 0, result.stderr
        return result

    call("search/train_search.py", "--space", "se", "--method", "darts", *small, "--save", search)
    assert (search / "cells/normal.png").exists()
    asks = f"used the plugin {path}; add --plugin"
    assert_rejected(call("search/train_search.py", "--resume", search, plugin=None, ok=False), asks)
    assert_rejected(call("train/train.py", "--arch", search, *small, plugin=None, ok=False), f"--arch: {search} {asks}")
    assert_rejected(call("analysis/size.py", search, plugin=None, ok=False), asks)
    assert "params" in call("analysis/size.py", search).stdout
    call("train/train.py", "--arch", search, *small, "--save", run)
    assert yaml.safe_load((run / "config.yaml").read_text())["provenance"]["plugins"] == [
        {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    ]
    assert_rejected(call("train/test.py", run, plugin=None, ok=False), f"checkpoint: {run} {asks}")
    with pytest.raises(ValueError, match="add --plugin"):
        load_network(run)
    score = json.loads(call("train/test.py", run).stdout)
    assert score["accuracy"] == json.loads((run / "result.json").read_text())["accuracy"]
    call("train/export.py", run, "--out", tmp_path / "exported")
    assert_rejected(
        call("analysis/report.py", tmp_path, tmp_path / "report.html", plugin=None, ok=False), "add --plugin"
    )
    call("analysis/report.py", tmp_path, tmp_path / "report.html")

    path.write_text(path.read_text() + "# another comment\n")
    changed = call("train/test.py", run)
    assert f"warning: {path} has changed since {run} used it" in changed.stderr
    loaded = load_network(run, [path])
    images = load("digits").test.images[:8]
    pictures = [Image.fromarray(image[0].numpy()) for image in images]
    with torch.no_grad():
        logits = loaded.network(torch.stack([*map(loaded.transform, pictures)]))
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "exported/model.onnx"))
    (exported,) = session.run(None, {"images": torch.stack([*map(loaded.transform, pictures)]).numpy()})
    torch.testing.assert_close(torch.from_numpy(exported), logits, rtol=1e-4, atol=1e-5)
    assert any(type(module).__name__ == "SepConvSE" for module in loaded.network.modules())


def test_a_table_passes_its_plugins_on_to_its_runs(example, tmp_path):
    path = example("A hook on the mixing weights: SDARTS-RS", load=False)
    table = write_table(
        tmp_path,
        {**TABLE, "methods": {"RS": {"search": {"method": "my-sdarts-rs"}}}, "scales": {"paper": {"seeds": 1}}},
    )
    arguments = ("--table", table, "--scale", "paper", "--out", tmp_path / "out", "--dry_run")
    assert_rejected(script_in_process("scripts/reproduce.py", *arguments), "my-sdarts-rs")
    result = script_in_process("scripts/reproduce.py", *arguments, "--plugin", path)
    lines = result.stdout.splitlines()
    assert len(lines) > 2 and all(f"--plugin {path}" in line for line in lines if "query" not in line), result.stderr
