"""The supernets as the released codes build them: a module for every operation of every edge, one after another.

This is the explanation of fast_edges.py, the oracle of its tests, and what search_step.py compares with.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fast_edges import AuxiliaryConvs, Convs, FactorizedReduces, FastEdges, Separables
from lib.kernels import AveragePool, BatchNorm2d, DepthwiseConv2d, without_running_statistics
from operations import OPERATIONS, drop_path


class MixedOp(nn.Module):
    """All candidates of one edge; the output is their sum under the mixing weights: sum_k p_k op_k(x).

    With an auxiliary skip connection it is sum_k p_k op_k(x) + beta * aux(x) (DARTS-, equation 5).

    Args:
        pool_norm: a batch norm behind each pooling, as in DARTS; NAS-Bench-201 has none.
    """

    def __init__(
        self, candidates: Sequence[str], channels: int, stride: int, auxiliary_skip: str, pool_norm: bool
    ) -> None:
        super().__init__()
        self.operations = nn.ModuleList()
        for name in candidates:
            operation = OPERATIONS[name](channels, stride, False)
            if pool_norm and "pool" in name:
                operation = nn.Sequential(operation, nn.BatchNorm2d(channels, affine=False))
            self.operations.append(operation)
        self.auxiliary: nn.Module | None = None
        if auxiliary_skip == "conv1" and stride == 1:
            self.auxiliary = nn.Conv2d(channels, channels, 1, bias=False)
        elif auxiliary_skip != "none":
            self.auxiliary = OPERATIONS["skip_connect"](channels, stride, False)

    def forward(self, x: Tensor, weights: Sequence[Tensor], drop_path_prob: float, skip_beta: float) -> Tensor:
        outputs = []
        for weight, operation in zip(weights, self.operations, strict=True):
            output = operation(x)
            if self.training and drop_path_prob > 0 and not isinstance(operation, nn.Identity):
                output = drop_path(output, drop_path_prob)
            outputs.append(weight * output)
        if self.auxiliary is not None:
            outputs.append(skip_beta * self.auxiliary(x))
        return sum(outputs[1:], outputs[0])


class PlainEdges(nn.Module):
    """What FastEdges computes, edge by edge and operation by operation."""

    def __init__(self, mixed: FastEdges) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            MixedOp(operations, mixed.channels, stride, mixed.auxiliary_skip, mixed.pool_norm)
            for operations, stride in zip(mixed.candidates, mixed.strides, strict=True)
        )

    def forward(
        self, inputs: Sequence[Tensor], weights: Tensor, drop_path_prob: float, skip_beta: float
    ) -> list[Tensor]:
        states, rest = list(inputs), zip(self.edges, weights.unbind(), strict=True)
        # zip asks `states` first and stops there: each node takes the next len(states) edges.
        while incoming := [
            edge(state, row.unbind(), drop_path_prob, skip_beta)
            for state, (edge, row) in zip(states, rest, strict=False)
        ]:
            states.append(sum(incoming[1:], incoming[0]))
        return states


def plain_supernet(supernet: nn.Module) -> nn.Module:
    """The plain twin of a supernet of either space: channels first, with the same weights."""
    plain = copy.deepcopy(supernet)
    for name, module in supernet.named_modules():
        if isinstance(module, FastEdges):
            plain.set_submodule(name, PlainEdges(module))
    without_running_statistics(plain)
    library_layers(plain)
    plain.to(next(supernet.parameters()))
    left = plain.load_state_dict(as_plain(supernet, supernet.state_dict()), strict=False)
    if left.missing_keys or left.unexpected_keys:
        raise AssertionError(f"weights that the twins do not share: {left.missing_keys}, {left.unexpected_keys}")
    return plain.to(memory_format=torch.contiguous_format).train(supernet.training)


def library_layers(network: nn.Module) -> None:
    """Put the library's own layers in the place of those of kernels.py, with the same weights."""
    for name, module in list(network.named_modules()):
        if isinstance(module, DepthwiseConv2d):
            options = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
            channels, kernel_size = module.in_channels, module.kernel_size
            layer = nn.Conv2d(channels, channels, kernel_size, **options, groups=channels, bias=False)
        elif isinstance(module, BatchNorm2d):
            options = {"affine": module.affine, "track_running_stats": module.track_running_stats}
            layer = nn.BatchNorm2d(module.num_features, **options)
        elif isinstance(module, AveragePool):
            layer = nn.AvgPool2d(3, module.stride, padding=1, count_include_pad=False)
        else:
            continue
        layer.load_state_dict(module.state_dict())
        network.set_submodule(name, layer.to(next(network.parameters())))


def as_plain(supernet: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of a supernet's parameters, by those of its plain twin: cut into single edges."""
    tensors, plain = dict(tensors), {}
    for cell, mixed in supernet.named_modules():
        if not isinstance(mixed, FastEdges):
            continue
        for name, twins in _twins(mixed):
            tensor = tensors.pop(f"{cell}.{name}.weight", None)
            if tensor is not None:
                for piece, modules in zip(tensor.chunk(len(twins)), twins, strict=True):
                    plain |= {f"{cell}.{module}.weight": piece for module in modules}
        tensors.pop(f"{cell}.places", None)
    return {**tensors, **plain}


def _twins(mixed: FastEdges) -> Iterator[tuple[str, list[list[str]]]]:
    """Each layer of mixed operations, and for each piece of its tensors the layers of the plain twin that have it."""
    for source, operations in mixed.operations.items():
        for number, operation in enumerate(operations):
            prefix = f"operations.{source}.{number}"
            modules = [f"edges.{edge}.operations.{place}" for edge, place in operation.pairs]
            if isinstance(operation, Separables):
                yield from _separables(prefix, operation, modules)
            elif isinstance(operation, Convs):
                yield f"{prefix}.conv", [[f"{module}.1"] for module in modules]
            elif isinstance(operation, FactorizedReduces):
                yield from _reductions(prefix, modules)
        if source in mixed.auxiliaries:
            auxiliary = mixed.auxiliaries[source]
            modules = [f"edges.{edge}.auxiliary" for edge in auxiliary.edges]
            if isinstance(auxiliary, AuxiliaryConvs):
                yield f"auxiliaries.{source}.conv", [[module] for module in modules]
            else:
                yield from _reductions(f"auxiliaries.{source}.reduce", modules)


def _separables(prefix: str, operation: Separables, modules: list[str]) -> Iterator[tuple[str, list[list[str]]]]:
    rest, last = iter(modules), []
    for number, (edges, stage) in enumerate(zip(operation.edges, operation.stages, strict=True)):
        own = [next(rest) for _ in edges]
        # In the plain module a ReLU stands before.
        for layer in range(len(stage)):
            yield f"{prefix}.stages.{number}.{layer}", [[f"{module}.{layer + 1}"] for module in own]
        last += [(module, len(stage) + 1) for module in own]
    yield f"{prefix}.pointwise", [[f"{module}.{layer}"] for module, layer in last]


def _reductions(prefix: str, modules: list[str]) -> Iterator[tuple[str, list[list[str]]]]:
    for layer in ("conv_1", "conv_2"):
        yield f"{prefix}.{layer}", [[f"{module}.{layer}"] for module in modules]
