"""The discrete network of a genotype, for small images and for ImageNet (DARTS, ICLR 2019, section 3)."""

import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genotypes import Genotype, load_genotype, make_genotype
from lib.checkpoints import open_retraining
from lib.kernels import BatchNorm2d, concatenate
from lib.plugins import check as check_plugins
from lib.plugins import load as load_plugins
from lib.registry import Registry, check_arguments
from operations import OPERATIONS, FactorizedReduce, ReLUConvBN, drop_path
from spaces import cell_kinds

if TYPE_CHECKING:
    from PIL import Image


class Cell(nn.Module):
    """A cell of a genotype. Its output concatenates the live nodes: (B, C * nodes, H, W)."""

    def __init__(
        self, genotype: Genotype, kind: str, c_prev_prev: int, c_prev: int, channels: int, reduction_prev: bool
    ) -> None:
        super().__init__()
        self.preprocess0 = (
            FactorizedReduce(c_prev_prev, channels) if reduction_prev else ReLUConvBN(c_prev_prev, channels, 1, 1, 0)
        )
        self.preprocess1 = ReLUConvBN(c_prev, channels, 1, 1, 0)
        self.edges = genotype.edges(kind)
        self.operations = nn.ModuleList(
            OPERATIONS.find(edge.operation)(channels, 2 if kind == "reduce" and edge.source < 2 else 1, True)
            for edge in self.edges
        )
        self.concat = genotype.concat(kind)
        self.drop_sums = genotype.sums_nodes(kind)
        self.out_channels = channels * len(self.concat)

    def forward(self, s0: Tensor, s1: Tensor, drop_path_prob: float) -> Tensor:
        dropping = self.training and drop_path_prob > 0
        states = {0: self.preprocess0(s0), 1: self.preprocess1(s1)}
        for target in sorted({edge.target for edge in self.edges}):
            terms = []
            for edge, operation in zip(self.edges, self.operations, strict=True):
                if edge.target != target:
                    continue
                output = operation(states[edge.source])
                if dropping and not self.drop_sums and not isinstance(operation, nn.Identity):
                    output = drop_path(output, drop_path_prob)
                terms.append(output)
            total = functools.reduce(torch.add, terms)
            # FairDARTS's network applies drop path to the sum of a node, not to its terms.
            states[target] = drop_path(total, drop_path_prob) if dropping and self.drop_sums else total
        return concatenate([states[node] for node in self.concat])


class AuxiliaryHead(nn.Module):
    """An auxiliary classifier on an inner layer, which is used only in training (DARTS's code).

    Args:
        channels: The number of channels of that layer.
        classes: The number of classes.
        pool_stride: The stride of the average pooling: 3 on CIFAR, 2 on ImageNet.
        second_bn: Add a batch norm after the 2x2 convolution. DARTS's head for ImageNet has none.
    """

    def __init__(self, channels: int, classes: int, pool_stride: int, second_bn: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=pool_stride, padding=0, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            BatchNorm2d(768) if second_bn else nn.Identity(),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 768, 1, 1) at the papers' image sizes; averaged over positions at larger ones
        return self.classifier(self.features(x).mean(dim=(2, 3)))


class _Network(nn.Module):
    """The cells, the classifier and the auxiliary head of the two networks below, which add different stems."""

    def __init__(
        self,
        genotype: Genotype,
        init_channels: int,
        layers: int,
        classes: int,
        auxiliary: bool,
        stem_channels: tuple[int, int],
        reduction_prev: bool,
        imagenet: bool,
    ) -> None:
        super().__init__()
        channels = init_channels
        c_prev_prev, c_prev = stem_channels
        self.cells = nn.ModuleList()
        self.auxiliary_layer = 2 * layers // 3
        self.auxiliary_head: AuxiliaryHead | None = None
        for layer, kind in enumerate(cell_kinds(layers)):
            channels *= 2 if kind == "reduce" else 1
            cell = Cell(genotype, kind, c_prev_prev, c_prev, channels, reduction_prev)
            self.cells.append(cell)
            c_prev_prev, c_prev, reduction_prev = c_prev, cell.out_channels, kind == "reduce"
            if auxiliary and layer == self.auxiliary_layer:
                self.auxiliary_head = AuxiliaryHead(
                    c_prev, classes, pool_stride=2 if imagenet else 3, second_bn=not imagenet
                )
        self.classifier = nn.Linear(c_prev, classes)

    def stems(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, images: Tensor, drop_path_prob: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Compute the logits (B, classes) and, in training, those of the auxiliary head if there is one, else None."""
        auxiliary_logits = None
        s0, s1 = self.stems(images)
        for layer, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, drop_path_prob)
            if layer == self.auxiliary_layer and self.auxiliary_head is not None and self.training:
                auxiliary_logits = self.auxiliary_head(s1)
        return self.classifier(F.adaptive_avg_pool2d(s1, 1).flatten(1)), auxiliary_logits


def smallest_image(layers: int, imagenet: bool = False) -> int:
    """The smallest height and width of images, in pixels, for which the auxiliary head works."""
    halvings = cell_kinds(layers)[: 2 * layers // 3 + 1].count("reduce") + (3 if imagenet else 0)
    layer = 5 + (2 if imagenet else 3)  # two positions of its 5x5 pooling, which the 2x2 convolution needs
    return (layer - 1) * 2**halvings + 1


class NetworkCIFAR(_Network):
    """The network for small images: a 3x3 stem at full resolution.

    Args:
        genotype: The cells.
        init_channels: C of the first cells (36 in the papers).
        layers: The number of cells (20 in the papers).
        classes: The number of classes.
        auxiliary: Add the auxiliary head, which needs images of 29 pixels or more.
        in_channels: The number of channels of the images.
    """

    def __init__(
        self,
        genotype: Genotype,
        init_channels: int = 36,
        layers: int = 20,
        classes: int = 10,
        auxiliary: bool = False,
        in_channels: int = 3,
    ) -> None:
        width = 3 * init_channels
        super().__init__(genotype, init_channels, layers, classes, auxiliary, (width, width), False, imagenet=False)
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), BatchNorm2d(width))

    def stems(self, images: Tensor) -> tuple[Tensor, Tensor]:
        state = self.stem(images)
        return state, state


class NetworkImageNet(_Network):
    """The network for 224x224 images: three stride-2 convolutions, then 14 cells (C = 48) from 28x28 pixels on."""

    def __init__(
        self,
        genotype: Genotype,
        init_channels: int = 48,
        layers: int = 14,
        classes: int = 1000,
        auxiliary: bool = False,
        in_channels: int = 3,
    ) -> None:
        stem_channels = (init_channels, init_channels)
        super().__init__(genotype, init_channels, layers, classes, auxiliary, stem_channels, True, imagenet=True)
        half = init_channels // 2
        self.stem0 = nn.Sequential(
            nn.Conv2d(in_channels, half, 3, stride=2, padding=1, bias=False),
            BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, init_channels, 3, stride=2, padding=1, bias=False),
            BatchNorm2d(init_channels),
        )
        self.stem1 = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(init_channels, init_channels, 3, stride=2, padding=1, bias=False),
            BatchNorm2d(init_channels),
        )

    def stems(self, images: Tensor) -> tuple[Tensor, Tensor]:
        s0 = self.stem0(images)
        return s0, self.stem1(s0)


class Logits(nn.Module):
    """A wrapper that returns only the logits (B, classes) of a network, for use outside training."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


def size(network: nn.Module, in_channels: int = 3, image_size: int = 32) -> dict[str, int]:
    """Count parameters, and multiply-adds of convolutions and linear layers for one image, as papers do.

    The parameters include those of the auxiliary head if there is one. Its multiply-adds do not count, because it does
    not run in evaluation.

    Args:
        network: A network on the meta device, so that nothing is computed or stored.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, in_channels, image_size, image_size, device="meta"))
    return {
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
    }


def create_network(name: str, imagenet: bool = False, **sizes: Any) -> Logits:
    """Create the network of a cell, by default at the papers' sizes. Its weights are random, not pretrained.

    Args:
        name: A cell in genotypes.py, a genotype file, or the run folder of a search.
        imagenet: Create the network for 224x224 images instead of the one for small images.
        sizes: Arguments of `NetworkCIFAR` or `NetworkImageNet`, such as init_channels, layers, classes, in_channels.

    Returns:
        The network in training mode. It maps images (B, in_channels, H, W) to logits (B, classes).

    Raises:
        ValueError: There is no such cell.
        OSError: The genotype file cannot be read.
    """
    return Logits((NetworkImageNet if imagenet else NetworkCIFAR)(load_genotype(name), **sizes))


def _of_checkpoint(network: type[NetworkCIFAR] | type[NetworkImageNet], about: dict[str, Any]) -> nn.Module:
    settings, channels = about["settings"], about["preprocessing"]["channels"]
    sizes = (settings["init_channels"], settings["layers"], len(about["classes"]))
    return network(make_genotype(about["genotype"]), *sizes, in_channels=channels)


#: Functions by name that make the network of a checkpoint, without auxiliary head, from its hyperparameters.
#: nasbench201/networks.py adds another.
NETWORKS: Registry[Callable[[dict[str, Any]], nn.Module]] = Registry(
    "network",
    {
        "cifar": functools.partial(_of_checkpoint, NetworkCIFAR),
        "imagenet": functools.partial(_of_checkpoint, NetworkImageNet),
    },
    lambda make: check_arguments(make, "about"),
)


def restore_network(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Restore the network of a retraining with its weights, in evaluation mode and without the auxiliary head.

    Args:
        path: A checkpoint file, or a run folder, of which the last intact checkpoint is read.

    Returns:
        The network, and the content of its checkpoint.

    Raises:
        ValueError: There is no checkpoint, it is corrupt or not from a retraining, or a plugin of it is not loaded.
        OSError: The file cannot be read.
    """
    checkpoint = open_retraining(Path(path))
    about = checkpoint["hyper_parameters"]
    check_plugins(about.get("plugins", []), path)
    kind = about["network"]
    if kind == "nasbench201":
        importlib.import_module("nasbench201.networks")  # by name: the root never imports that folder
    network = NETWORKS.find(kind)(about)
    state = {name.removeprefix("network."): value for name, value in checkpoint["state_dict"].items()}
    state = {name: value for name, value in state.items() if not name.startswith("auxiliary_head.")}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the network that the checkpoint describes") from error
    # In channels last, torch's ONNX exporter translates the pooling of lib/kernels.py wrongly.
    return network.to(memory_format=torch.contiguous_format).eval(), checkpoint


class LoadedNetwork(NamedTuple):
    """A trained network, ready for use.

    Attributes:
        network: The network in evaluation mode. It maps normalized images (B, channels, H, W) to logits (B, classes).
        classes: The names of the classes.
        transform: The preprocessing of test images. It maps a PIL image to a normalized tensor (channels, H, W).
    """

    network: Logits
    classes: tuple[str, ...]
    transform: "Callable[[Image.Image], Tensor]"


def load_network(path: str | Path, plugins: Sequence[str | Path] = ()) -> LoadedNetwork:
    """Load a network of train/train.py, nasbench201/train.py or imagenet/train.py, in float32 on the CPU.

    Args:
        path: A checkpoint file, or a run folder, of which the last intact checkpoint is read.
        plugins: The plugins of the run. Their code is executed.

    Raises:
        ValueError: There is no checkpoint, it is corrupt or not from a retraining, or a plugin is missing.
        OSError: The file cannot be read.
    """
    from lib.preprocessing import Preprocessing  # torchvision takes seconds to import

    load_plugins(plugins)
    network, checkpoint = restore_network(path)
    about = checkpoint["hyper_parameters"]
    transform = Preprocessing(**about["preprocessing"]).transform()
    return LoadedNetwork(Logits(network).float().eval(), tuple(about["classes"]), transform)
