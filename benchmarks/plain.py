"""The supernets as the released codes build them: a module for every operation of every edge, one after another.

This is the explanation of mixed_operations.py, the oracle of its tests, and what search_step.py compares with.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

import mixed_operations
from depthwise import AveragePool, DepthwiseConv2d
from mixed_operations import MixedEdges
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
    """What MixedEdges computes, edge by edge and operation by operation."""

    def __init__(self, mixed: MixedEdges) -> None:
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
    """The plain twin of a supernet of either space: channels first, with the same weights and statistics."""
    plain = copy.deepcopy(supernet)
    for name, module in supernet.named_modules():
        if isinstance(module, MixedEdges):
            plain.set_submodule(name, PlainEdges(module))
    for name, module in list(plain.named_modules()):
        if isinstance(module, DepthwiseConv2d):
            options = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
            channels, kernel_size = module.in_channels, module.kernel_size
            conv = nn.Conv2d(channels, channels, kernel_size, **options, groups=channels, bias=False)
            plain.set_submodule(name, conv)
        elif isinstance(module, AveragePool):
            plain.set_submodule(name, nn.AvgPool2d(3, module.stride, padding=1, count_include_pad=False))
    plain.to(next(supernet.parameters()))
    left = plain.load_state_dict(as_plain(supernet, supernet.state_dict()), strict=False)
    missing = [name for name in left.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or left.unexpected_keys:
        raise AssertionError(f"weights that the twins do not share: {missing}, {left.unexpected_keys}")
    return plain.to(memory_format=torch.contiguous_format).train(supernet.training)


#: what a tensor of an operation on several edges is called in the module of one edge
_SEPARABLE = ("depthwise", "pointwise", "norm")
_NAMES: dict[type[nn.Module], dict[str, str]] = {
    mixed_operations.SepConvs: {
        f"{part}.{layer}": str(number + place)
        for part, number in (("first", 1), ("second", 5))
        for place, layer in enumerate(_SEPARABLE)
    },
    mixed_operations.DilConvs: {f"only.{layer}": str(1 + place) for place, layer in enumerate(_SEPARABLE)},
    mixed_operations.Convs: {"conv": "1", "norm": "2"},
    mixed_operations.FactorizedReduces: {"conv_1": "conv_1", "conv_2": "conv_2", "norm": "bn"},
    mixed_operations.Pool: {"norm": "1"},
    mixed_operations.AuxiliaryConvs: {"conv": ""},
}


def as_plain(supernet: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of a supernet's parameters or buffers, by those of its plain twin: cut into single edges."""
    tensors, plain = dict(tensors), {}
    for cell, mixed in supernet.named_modules():
        if not isinstance(mixed, MixedEdges):
            continue
        places = [
            (f"operations.{index}", operation, [f"edges.{e}.operations.{k}" for e, k in zip(edges, own, strict=True)])
            for index, (operation, (_, _, edges, own)) in enumerate(zip(mixed.operations, mixed.places, strict=True))
        ]
        for source, operation in mixed.auxiliaries.items():
            leaving = [edge for edge, (begin, _) in enumerate(mixed.edges) if begin == int(source)]
            places.append((f"auxiliaries.{source}", operation, [f"edges.{edge}.auxiliary" for edge in leaving]))
        for prefix, operation, twins in places:
            begin = f"{cell}.{prefix}."
            for name in [name for name in tensors if name.startswith(begin)]:
                tensor, own = tensors.pop(name), name.removeprefix(begin)
                if isinstance(operation, mixed_operations.Modules):
                    _, number, own = own.split(".", 2)
                    plain[f"{cell}.{twins[int(number)]}.{own}"] = tensor
                    continue
                layer, kind = own.rsplit(".", 1)
                path = ".".join(filter(None, (_NAMES[type(operation)][layer], kind)))
                shared = isinstance(operation, mixed_operations.Pool)
                pieces = [tensor] * len(twins) if shared else tensor.chunk(len(twins))
                plain |= {f"{cell}.{twin}.{path}": piece for twin, piece in zip(twins, pieces, strict=True)}
    return {**tensors, **plain}
