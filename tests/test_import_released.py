"""Importing released weights: the imported network gives the logits of the released one.

The networks below are written from the papers. Their parameters have the names that the released codes use: DARTS
(quark0/darts) for CIFAR and ImageNet, and FairDARTS (xiaomi-automl/FairDARTS).
"""

import json
import shutil
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision.datasets
from torch import Tensor, nn

from genotypes import Genotype, load_genotype
from lib import checkpoints, datasets
from model import NetworkCIFAR, NetworkImageNet, load_network
from tests.cifar_files import write_cifar
from tests.helpers import assert_rejected, last_checkpoint, script_in_process
from tests.imagenet_runs import CLASSES, make_tree

IMPORT = "train/import_released.py"
#: has every operation, unsorted sources, an edge twice, `none`, and a concatenation in another order
DARTS_CELL = Genotype(
    normal=(
        ("dil_conv_5x5", 1), ("sep_conv_3x3", 0), ("none", 2), ("conv_7x1_1x7", 1),
        ("skip_connect", 3), ("sep_conv_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_5x5", 1),
    ),
    normal_concat=(5, 2, 4),
    reduce=(
        ("max_pool_3x3", 1), ("skip_connect", 0), ("dil_conv_3x3", 2), ("none", 0),
        ("sep_conv_7x7", 1), ("avg_pool_3x3", 0), ("skip_connect", 4), ("conv_7x1_1x7", 1),
    ),
    reduce_concat=(3, 4, 5),
)  # fmt: skip
#: has unsorted nodes, several operations on one edge, and edges from a node that is computed later or never
FAIR_CELL = Genotype(
    normal=(
        ("sep_conv_3x3", 5, 1), ("dil_conv_3x3", 2, 1), ("dil_conv_3x3", 5, 0), ("sep_conv_5x5", 5, 1),
        ("sep_conv_5x5", 4, 2), ("sep_conv_3x3", 5, 4), ("skip_connect", 4, 0), ("dil_conv_5x5", 4, 3),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("skip_connect", 3, 1), ("sep_conv_3x3", 2, 0), ("sep_conv_5x5", 3, 1), ("max_pool_3x3", 3, 0),
        ("skip_connect", 2, 0), ("skip_connect", 2, 1),
    ),
    reduce_concat=(2, 3, 4, 5),
)  # fmt: skip


class Op(nn.Module):
    """A sequence of layers whose parameters are named `op.*`, as in DARTS."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Halved(nn.Module):
    """DARTS's factorized reduction."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class Nothing(nn.Module):
    """The operation `none`."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x[:, :, :: self.stride, :: self.stride]


def relu_conv_bn(c_in: int, c_out: int) -> nn.Module:
    return Op(nn.ReLU(), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))


def separable(c: int, kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    depthwise = nn.Conv2d(c, c, kernel, stride, dilation * (kernel // 2), dilation, groups=c, bias=False)
    return [nn.ReLU(), depthwise, nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c)]


def operation(name: str, c: int, stride: int) -> nn.Module:
    if name == "none":
        return Nothing(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else Halved(c, c)
    if name == "conv_7x1_1x7":
        wide = nn.Conv2d(c, c, (1, 7), (1, stride), (0, 3), bias=False)
        tall = nn.Conv2d(c, c, (7, 1), (stride, 1), (3, 0), bias=False)
        return nn.Sequential(nn.ReLU(), wide, tall, nn.BatchNorm2d(c))
    kind, kernel = name.split("_")[0], int(name[-1])
    return {
        "max": lambda: nn.MaxPool2d(3, stride, 1),
        "avg": lambda: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
        "sep": lambda: Op(*separable(c, kernel, stride), *separable(c, kernel, 1)),
        "dil": lambda: Op(*separable(c, kernel, stride, dilation=2)),
    }[kind]()


class DartsCell(nn.Module):
    """A cell whose `_ops` is a list in the order of the genotype, with two operations for each node."""

    def __init__(self, edges, concat, c_prev_prev, c_prev, c, reduction, reduction_prev) -> None:
        super().__init__()
        self.preprocess0 = Halved(c_prev_prev, c) if reduction_prev else relu_conv_bn(c_prev_prev, c)
        self.preprocess1 = relu_conv_bn(c_prev, c)
        self.edges, self.concat = edges, concat
        self.make_operations(c, lambda source: 2 if reduction and source < 2 else 1)

    def make_operations(self, c: int, stride: Callable[[int], int]) -> None:
        self._ops = nn.ModuleList(operation(name, c, stride(source)) for name, source in self.edges)
        self.out_channels = c * len(self.concat)

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for first in range(0, len(self.edges), 2):
            inputs = [states[source] for _, source in self.edges[first : first + 2]]
            states.append(self._ops[first](inputs[0]) + self._ops[first + 1](inputs[1]))
        return torch.cat([states[node] for node in self.concat], dim=1)


class FairCell(DartsCell):
    """A cell whose `_ops` maps each node to a dictionary: source -> list of operations."""

    def make_operations(self, c: int, stride: Callable[[int], int]) -> None:
        self._ops = nn.ModuleDict()
        for name, target, source in self.edges:
            if str(target) not in self._ops:
                self._ops[str(target)] = nn.ModuleDict()
            if str(source) not in self._ops[str(target)]:
                self._ops[str(target)][str(source)] = nn.ModuleList()
            self._ops[str(target)][str(source)].append(operation(name, c, stride(source)))
        self.out_channels = c * len(self._ops)

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        states = {"0": self.preprocess0(s0), "1": self.preprocess1(s1)}
        for target, sources in self._ops.items():
            terms = [op(states[source]) for source, ops in sources.items() if source in states for op in ops]
            states[target] = sum(terms)
        return torch.cat(list(states.values())[2:], dim=1)


class Head(nn.Module):
    def __init__(self, c: int, classes: int, imagenet: bool) -> None:
        super().__init__()
        pool = nn.AvgPool2d(5, stride=2 if imagenet else 3, count_include_pad=False)
        first = [nn.ReLU(), pool, nn.Conv2d(c, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()]
        second = [nn.Conv2d(128, 768, 2, bias=False), *([] if imagenet else [nn.BatchNorm2d(768)]), nn.ReLU()]
        self.features = nn.Sequential(*first, *second)
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Released(nn.Module):
    """DARTS's network for CIFAR or ImageNet, with an auxiliary head, random weights and random statistics."""

    def __init__(self, genotype: Genotype, c: int, layers: int, classes: int, imagenet: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.imagenet, self.auxiliary_layer = imagenet, 2 * layers // 3
        if imagenet:
            half, strided = c // 2, {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}
            begin = [nn.Conv2d(3, half, **strided), nn.BatchNorm2d(half), nn.ReLU()]
            self.stem0 = nn.Sequential(*begin, nn.Conv2d(half, c, **strided), nn.BatchNorm2d(c))
            self.stem1 = nn.Sequential(nn.ReLU(), nn.Conv2d(c, c, **strided), nn.BatchNorm2d(c))
            c_prev_prev = c_prev = c
        else:
            self.stem = nn.Sequential(nn.Conv2d(3, 3 * c, 3, padding=1, bias=False), nn.BatchNorm2d(3 * c))
            c_prev_prev = c_prev = 3 * c
        self.cells, reduction_prev = nn.ModuleList(), imagenet
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            c *= 2 if reduction else 1
            edges, concat = genotype[2:] if reduction else genotype[:2]
            make = DartsCell if len(edges[0]) == 2 else FairCell
            cell = make(edges, concat, c_prev_prev, c_prev, c, reduction, reduction_prev)
            self.cells.append(cell)
            c_prev_prev, c_prev, reduction_prev = c_prev, cell.out_channels, reduction
            if layer == self.auxiliary_layer:
                self.auxiliary_head = Head(c_prev, classes, imagenet)
        self.classifier = nn.Linear(c_prev, classes)
        for tensor in self.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() < 2:  # batch norms and classifiers
                tensor.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the logits of the auxiliary head."""
        s0 = self.stem0(x) if self.imagenet else self.stem(x)
        s1 = self.stem1(s0) if self.imagenet else s0
        for layer, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1)
            if layer == self.auxiliary_layer:
                auxiliary = self.auxiliary_head(s1)
        pooled = F.avg_pool2d(s1, 7) if self.imagenet else F.adaptive_avg_pool2d(s1, 1)
        return self.classifier(pooled.flatten(1)), auxiliary


class Layout(NamedTuple):
    """A released network and the layout of its file.

    Attributes:
        arch: The value of --arch.
        imagenet: True for the network for ImageNet.
        classes: Number of classes.
        save: Return the object that the file stores.
        zipped: Use the file format of torch 1.6 and later.
    """

    arch: str
    imagenet: bool
    classes: int
    save: Callable[[Released], object]
    zipped: bool = True

    def make(self) -> Released:
        return Released(load_genotype(self.arch), 4, 4, self.classes, self.imagenet)

    def write(self, path) -> Released:
        network = self.make()
        torch.save(self.save(network), path, _use_new_zipfile_serialization=self.zipped)
        return network


def uncounted(network: nn.Module) -> dict[str, Tensor]:
    """The state dict as torch 0.3 saves it: its batch norms have no `num_batches_tracked`."""
    return {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}


def training_state(network: nn.Module, profiled: bool = False, parallel: bool = False) -> dict[str, object]:
    """A training checkpoint, with an optimizer and a scheduler.

    Args:
        network: The trained network.
        profiled: Add the buffers that the profiler thop leaves.
        parallel: Save the network in nn.DataParallel.
    """
    if profiled:
        for module in network.modules():
            module.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
            module.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    network = nn.DataParallel(network) if parallel else network
    optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600.0)
    state = {"epoch": 600, "dur_time": 0.5, "state_dict": network.state_dict(), "best_acc_top1": 97.5}
    return {**state, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}


LAYOUTS = {
    "DARTS, CIFAR-10": Layout(DARTS_CELL.to_json(), False, 10, uncounted, zipped=False),
    "DARTS, CIFAR-100": Layout("PC_DARTS_cifar10", False, 100, lambda network: network.state_dict()),
    "FairDARTS": Layout(FAIR_CELL.to_json(), False, 10, lambda network: training_state(network, profiled=True)),
    "FairDARTS, several GPUs": Layout("FairDARTS_c", False, 10, lambda n: training_state(n, True, True), zipped=False),
    "ImageNet": Layout("DARTS_V2", True, 3, lambda network: training_state(network, parallel=True)),
    "ImageNet, Lightning": Layout(
        DARTS_CELL.to_json(), True, 3, lambda n: {"state_dict": {f"model.{k}": v for k, v in n.state_dict().items()}}
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_an_imported_network_gives_the_logits_of_the_released_one(tmp_path, layout):
    released, run = layout.write(tmp_path / "released.pt"), tmp_path / "run"
    result = script_in_process(IMPORT, tmp_path / "released.pt", "--arch", layout.arch, "--save", run)
    assert result.returncode == 0, result.stderr
    images = torch.randn(2, 3, *[224 if layout.imagenet else 32] * 2, dtype=torch.float64)
    with torch.no_grad():
        expected, _ = released.double().eval()(images)
        assert expected.std() > 0.01
        torch.testing.assert_close(load_network(run).network.double()(images), expected, rtol=1e-6, atol=1e-6)

    checkpoint = checkpoints.load(last_checkpoint(run))
    make = NetworkImageNet if layout.imagenet else NetworkCIFAR
    network = make(load_genotype(str(run)), 4, 4, layout.classes, auxiliary=True)
    network.load_state_dict({name.removeprefix("network."): value for name, value in checkpoint["state_dict"].items()})
    with torch.no_grad():  # in training mode, because our network computes the auxiliary head only there
        torch.testing.assert_close(network.double()(images), released.train()(images), rtol=1e-6, atol=1e-6)


def test_a_released_cifar_network_is_scored(tmp_path, monkeypatch):
    """The images are normalized as in DARTS's code. With --data, the class names come from the data set's files."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    write_cifar(tmp_path)
    layout = LAYOUTS["DARTS, CIFAR-10"]
    released = layout.write(tmp_path / "released.pt").eval()
    test = datasets.load("cifar10", str(tmp_path)).test
    mean = torch.tensor([0.49139968, 0.48215827, 0.44653124]).view(3, 1, 1)
    std = torch.tensor([0.24703233, 0.24348505, 0.26158768]).view(3, 1, 1)
    with torch.no_grad():
        logits, _ = released((test.images / 255 - mean) / std)
    for flags, first in ((["--data", tmp_path], "airplane"), ([], "class 0")):
        run = tmp_path / first
        result = script_in_process(IMPORT, tmp_path / "released.pt", "--arch", layout.arch, "--save", run, *flags)
        assert json.loads(result.stdout)["init_channels"] == 4
        scored = json.loads(script_in_process("train/test.py", run, "--data", tmp_path, "--device", "cpu").stdout)
        assert scored["loss"] == pytest.approx(F.cross_entropy(logits, test.labels).item(), rel=1e-5)
        assert (scored["images"], scored["epochs"]) == (len(test), None)
        assert load_network(run).classes[0] == first


def test_a_released_imagenet_network_is_scored(tmp_path):
    tree, layout = make_tree(tmp_path / "ILSVRC"), LAYOUTS["ImageNet"]
    layout.write(tmp_path / "released.tar")
    losses = []
    for name, flags in (("named", ["--data", tree]), ("unnamed", [])):
        run = tmp_path / name
        result = script_in_process(IMPORT, tmp_path / "released.tar", "--arch", layout.arch, "--save", run, *flags)
        assert result.returncode == 0, result.stderr
        result = script_in_process("imagenet/test.py", run, "--data", tree, "--workers", 0, "--device", "cpu")
        losses.append(json.loads(result.stdout)["loss"])
    assert losses[0] == losses[1]
    assert load_network(tmp_path / "named").classes == CLASSES
    shutil.rmtree(tree / "Data/CLS-LOC/val" / CLASSES[0])
    result = script_in_process("imagenet/test.py", tmp_path / "unnamed", "--data", tree)
    assert_rejected(result, "--data: 2 classes, expected the 3 that the network was trained on")
    result = script_in_process(IMPORT, tmp_path / "released.tar", "--arch", layout.arch, "--data", tree)
    assert_rejected(result, "has 2 classes, expected the network's 3")


def test_a_file_that_does_not_fit_gives_a_one_line_error_and_writes_nothing(tmp_path):
    layout = LAYOUTS["DARTS, CIFAR-100"]
    network, run, path = layout.make(), tmp_path / "run", tmp_path / "released.pt"
    state, own_cell = network.state_dict(), ("--arch", layout.arch)
    missing, moved = (
        "cells.1._ops.2.op.1.weight",
        "cells.0._ops.1.op.1.weight",
    )  # the second belongs to a skip connection
    no_input = FAIR_CELL._replace(normal=(("skip_connect", 3, 2), ("skip_connect", 2, 0)), normal_concat=(2, 3))
    for content, flags, says in (
        ({name: value for name, value in state.items() if name != missing}, own_cell, f"no tensor {missing}"),
        ({**state, moved: torch.zeros(4)}, own_cell, f"tensor {moved} does not belong to the network"),
        ({**state, "classifier.bias": torch.zeros(9)}, own_cell, "classifier.bias has shape (9,), expected (100,)"),
        (state, ("--arch", "DARTS_V2"), "; --arch DARTS_V2 is probably not the cell of this network"),
        (state, ("--arch", no_input.to_json()), "--arch: the normal cell has a node without input"),
        (state, (*own_cell, "--dataset", "imagenet"), "the stem for CIFAR and 100 classes; expected cifar100"),
        ({**state, "module.classifier.bias": torch.zeros(100)}, own_cell, "two tensors are named classifier.bias"),
        (
            {**state, "classifier.bias": torch.full((100,), torch.nan)},
            own_cell,
            "expected finite floating-point values",
        ),
        (
            {**state, "classifier.bias": torch.zeros(100, dtype=torch.int64)},
            own_cell,
            "tensor classifier.bias: expected",
        ),
        (network, own_cell, "test_import_released.Released, which is not loaded"),
        ({"state_dict": [1, 2]}, own_cell, "expected a state dict, or a dictionary that has one"),
    ):
        torch.save(content, path)
        assert_rejected(script_in_process(IMPORT, path, *flags, "--save", run), says)
        assert not run.exists()
