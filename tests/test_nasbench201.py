"""NAS-Bench-201: its cells, its networks and its supernet."""

import pytest
import torch
from torch import nn

from benchmarks.plain import plain_supernet
from genotypes import Edge
from lib.objective import Objective
from model import size
from nasbench201.cells import EDGES, OPERATIONS, all_cells, make_cell, parse_cell
from nasbench201.networks import Network201, Supernet201
from regularizers import weight_gradient
from tests.supernets import batch_and_weights, in_plain_order

CONVOLUTIONS = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
MIXED = "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_3x3~1|none~2|"
SKIPS = CONVOLUTIONS.replace("nor_conv_3x3", "skip_connect")
DOUBLE = torch.float64


# Cells


def test_every_cell_is_read_as_it_was_written_and_6466_are_not_isomorphic():
    cells = list(all_cells())
    assert len({cell.arch for cell in cells}) == 5**6
    assert all(parse_cell(cell.arch) == cell and make_cell(cell.operations) == cell for cell in cells)
    assert len({cell.canonical() for cell in cells}) == 6466
    none_first = parse_cell("|none~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|none~0|skip_connect~1|skip_connect~2|")
    renamed = parse_cell("|none~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_1x1~1|skip_connect~2|")
    assert none_first.canonical() == renamed.canonical()


def test_a_cells_string_gives_its_edges_with_the_papers_numbers():
    cell = parse_cell(MIXED)
    assert cell.operations == ("nor_conv_1x1", "none", "skip_connect", "avg_pool_3x3", "nor_conv_3x3", "none")
    assert cell.edges() == [
        Edge("nor_conv_1x1", 1, 0),
        Edge("skip_connect", 2, 1),
        Edge("avg_pool_3x3", 3, 0),
        Edge("nor_conv_3x3", 3, 1),
    ]
    assert parse_cell(cell.to_json()) == cell
    for text in ("", CONVOLUTIONS.replace("~2", "~1"), "{}", '{"arch": 3}'):
        with pytest.raises(ValueError, match=r"not a cell|expected a JSON object|the string of a cell"):
            parse_cell(text)


# Networks


def test_the_size_equals_that_in_the_official_logs():
    with torch.device("meta"):
        counted = size(Network201(parse_cell(CONVOLUTIONS)))
    assert round(counted["params"] / 1e6, 3) == 1.532
    assert round(counted["multiply_adds"] / 1e6, 2) == 220.12


def plain_logits(supernet, images, weights, beta=0.0):
    """The logits of the plain supernet, computed edge by edge from its modules (NAS-Bench-201, section 2)."""

    def conv_bn(block, x):
        _, convolution, norm = block
        return norm(convolution(x.relu()))

    x = supernet.stem(images)
    layer = 0
    for stage in range(3):
        if stage:
            block = supernet.reductions[stage - 1]
            first, second = block.convolutions
            pooled = nn.functional.avg_pool2d(x, 2)
            x = conv_bn(second, conv_bn(first, x)) + block.shortcut[1](pooled)
        for cell in supernet.stages[stage]:
            states = {0: x, 1: 0, 2: 0, 3: 0}
            for edge, (source, target) in enumerate(EDGES):
                mixed, p, s = cell.edges.mixed_ops[edge], weights[layer][edge], states[source]
                states[target] = (
                    states[target]
                    + p[1] * s
                    + p[2] * conv_bn(mixed.operations[2], s)
                    + p[3] * conv_bn(mixed.operations[3], s)
                    + p[4] * nn.functional.avg_pool2d(s, 3, 1, 1, count_include_pad=False)
                    + beta * s
                )
            x = states[3]
            layer += 1
    return supernet.classifier(supernet.norm(x).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize("auxiliary", ["none", "skip"])
def test_the_supernet_computes_the_weighted_sum_of_its_operations(auxiliary):
    torch.manual_seed(0)
    supernet = Supernet201(4, 2, 10, auxiliary_skip=auxiliary).double()
    plain = plain_supernet(supernet)
    batch, weights = batch_and_weights(supernet)
    logits = plain_logits(plain, batch.images, weights, 0.7 if auxiliary == "skip" else 0.0)
    torch.testing.assert_close(supernet(batch.images, weights, skip_beta=0.7), logits)
    measured = weight_gradient(Objective(supernet, skip_beta=0.7), weights, batch).gradient
    loss = nn.functional.cross_entropy(logits, batch.labels)
    expected = torch.autograd.grad(loss, list(plain.parameters()))
    for gradient, known in zip(in_plain_order(supernet, plain, measured), expected, strict=True):
        torch.testing.assert_close(gradient, known)
    inside = [m for stage in plain.stages for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(inside) == 2 * 6 * 6
    assert not any(m.affine or m.track_running_stats for m in inside)


def test_the_supernet_with_one_hot_weights_computes_the_network_of_that_cell():
    torch.manual_seed(0)
    cell = parse_cell(MIXED)
    supernet, network = Supernet201(4, 1).double(), Network201(cell, 4, 1).double()
    for name in ("stem", "reductions", "norm", "classifier"):
        getattr(network, name).load_state_dict(getattr(supernet, name).state_dict(), strict=False)
    numbers = [OPERATIONS.index(operation) for operation in cell.operations]
    kept = [edge for edge, number in enumerate(numbers) if number]
    for mixed, discrete in zip(plain_supernet(supernet).stages, network.stages, strict=True):
        for edge, operation in zip(kept, discrete[0].operations, strict=True):
            source = mixed[0].edges.mixed_ops[edge].operations[numbers[edge]]
            operation.load_state_dict(source.state_dict(), strict=False)
    one_hot = nn.functional.one_hot(torch.tensor(numbers), 5).double()
    images = torch.randn(2, 3, 9, 9, dtype=DOUBLE)
    torch.testing.assert_close(supernet(images, [one_hot] * 3), network(images)[0])


def test_drop_path_is_not_applied_to_identities():
    torch.manual_seed(0)
    network = Network201(parse_cell(SKIPS), 4, 1).train()
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(network(images, 0.9)[0], network(images, 0.0)[0])
    network = Network201(parse_cell(CONVOLUTIONS), 4, 1).train()
    assert not torch.allclose(network(images, 0.9)[0], network(images, 0.0)[0])
