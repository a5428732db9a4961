"""The plain twin of a supernet: the same weights in `model_search.MixedEdges` and the layers of torch.

Tests compare fast_edges.py and lib/kernels.py with it, and search_step.py uses it as the baseline.
"""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fast_edges import AuxiliarySkips, Convs, FactorizedReduces, FastEdges, OperationGroup, Separables, SeparateModules
from lib.kernels import AveragePool, BatchNorm2d, DepthwiseConv2d, without_running_statistics
from model_search import MixedEdges


def plain_edges(fast: FastEdges) -> MixedEdges:
    """Make plain mixed operations of the same shape, with new weights."""
    return MixedEdges(fast.edges, fast.candidates, fast.channels, fast.strides, fast.auxiliary_skip, fast.pool_norm)


def plain_supernet(supernet: nn.Module) -> nn.Module:
    """Make the plain twin of a supernet of any space, with the same weights in contiguous format."""
    plain = copy.deepcopy(supernet)
    for name, module in supernet.named_modules():
        if isinstance(module, FastEdges):
            plain.set_submodule(name, plain_edges(module))
    without_running_statistics(plain)
    library_layers(plain)
    plain.to(next(supernet.parameters()))
    left = plain.load_state_dict(as_plain(supernet, supernet.state_dict()), strict=False)
    if left.missing_keys or left.unexpected_keys:
        raise AssertionError(f"weights that only one of the twins has: {left.missing_keys}, {left.unexpected_keys}")
    return plain.to(memory_format=torch.contiguous_format).train(supernet.training)


def library_layers(network: nn.Module) -> None:
    """Replace the layers of lib/kernels.py by layers of torch with the same weights."""
    for name, module in list(network.named_modules()):
        layer = _library_layer(module)
        if layer is not None:
            layer.load_state_dict(module.state_dict())
            network.set_submodule(name, layer.to(next(network.parameters())))


def _library_layer(module: nn.Module) -> nn.Module | None:
    if isinstance(module, DepthwiseConv2d):
        channels, size, dilation = module.in_channels, module.kernel_size[0], module.dilation[0]
        padding = dilation * (size // 2)
        return nn.Conv2d(channels, channels, size, module.stride[0], padding, dilation, channels, bias=False)
    if isinstance(module, BatchNorm2d):
        tracking = module.track_running_stats
        return nn.BatchNorm2d(module.num_features, affine=module.affine, track_running_stats=tracking)
    if isinstance(module, AveragePool):
        return nn.AvgPool2d(3, module.stride, padding=1, count_include_pad=False)
    return None


def as_plain(supernet: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a mapping from names of a supernet's parameters to names of the plain twin's parameters."""
    tensors = dict(tensors)
    plain: dict[str, Tensor] = {}
    for cell, mixed in supernet.named_modules():
        if not isinstance(mixed, FastEdges):
            continue
        for name, twins in _twins(mixed):
            tensor = tensors.pop(f"{cell}.{name}.weight", None)
            if tensor is not None:
                for piece, modules in zip(tensor.chunk(len(twins)), twins, strict=True):
                    plain |= {f"{cell}.{module}.weight": piece for module in modules}
        tensors.pop(f"{cell}.places", None)
        for name, twin in _copies(mixed):
            for old in [old for old in tensors if old.startswith(f"{cell}.{name}.")]:
                plain[old.replace(name, twin, 1)] = tensors.pop(old)
    return {**tensors, **plain}


def _copies(mixed: FastEdges) -> Iterator[tuple[str, str]]:
    """Pairs of names: an operation that the fast path runs as a module, and the same operation in the plain twin."""
    for source, operations in mixed.operations.items():
        for number, operation in enumerate(operations.children()):
            if isinstance(operation, SeparateModules):
                for index, (edge, place) in enumerate(operation.pairs):
                    own = f"operations.{source}.{number}.operations.{index}"
                    yield own, f"mixed_ops.{edge}.operations.{place}"


def _twins(mixed: FastEdges) -> Iterator[tuple[str, list[list[str]]]]:
    """Pairs of a fast layer and, for each chunk of its weight, the layers of the plain twin that hold this chunk."""
    for source, operations in mixed.operations.items():
        for number, operation in enumerate(operations.children()):
            assert isinstance(operation, OperationGroup)
            prefix = f"operations.{source}.{number}"
            modules = [f"mixed_ops.{edge}.operations.{place}" for edge, place in operation.pairs]
            if isinstance(operation, Separables):
                yield from _separables(prefix, operation, modules)
            elif isinstance(operation, Convs):
                yield f"{prefix}.conv", [[f"{module}.1"] for module in modules]
            elif isinstance(operation, FactorizedReduces):
                yield from _reductions(prefix, modules)
        if source in mixed.auxiliaries:
            auxiliary = mixed.auxiliaries[source]
            assert isinstance(auxiliary, AuxiliarySkips)
            modules = [f"mixed_ops.{edge}.auxiliary" for edge, _ in auxiliary.pairs]
            if auxiliary.conv is not None:
                yield f"auxiliaries.{source}.conv", [[module] for module in modules]
            elif auxiliary.reduce is not None:
                yield from _reductions(f"auxiliaries.{source}.reduce", modules)


def _separables(prefix: str, operation: Separables, modules: list[str]) -> Iterator[tuple[str, list[list[str]]]]:
    rest, last = iter(modules), []
    for number, (edges, stage) in enumerate(zip(operation.edges, operation.stages, strict=True)):
        own = [next(rest) for _ in edges]
        layers = len(list(stage.children()))
        for layer in range(layers):  # the plain module begins with a ReLU
            yield f"{prefix}.stages.{number}.{layer}", [[f"{module}.{layer + 1}"] for module in own]
        last += [(module, layers + 1) for module in own]
    yield f"{prefix}.pointwise", [[f"{module}.{layer}"] for module, layer in last]


def _reductions(prefix: str, modules: list[str]) -> Iterator[tuple[str, list[list[str]]]]:
    for layer in ("conv_1", "conv_2"):
        yield f"{prefix}.{layer}", [[f"{module}.{layer}"] for module in modules]
