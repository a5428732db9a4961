"""Operations, the supernet and the discrete network: shapes, values and published sizes."""

import pytest
import torch
from torch import nn

from benchmarks.plain import plain_supernet
from genotypes import CELLS
from model import NetworkCIFAR, NetworkImageNet, size
from model_search import Supernet
from operations import OPERATIONS, drop_path
from spaces import SPACES, cell_kinds

DARTS_SPACES = ("s1", "s2", "s3", "s4", "s5")


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_keeps_or_halves_the_size_rounding_up(name):
    for stride, image_size, expected in ((1, 7, 7), (2, 7, 4), (2, 8, 4)):
        output = OPERATIONS[name](6, stride, True)(torch.randn(2, 6, image_size, image_size))
        assert output.shape == (2, 6, expected, expected)


def test_average_pooling_does_not_count_its_padding():
    ones = torch.ones(1, 1, 5, 5)
    assert torch.equal(OPERATIONS["avg_pool_3x3"](1, 1, True)(ones), ones)


@pytest.mark.parametrize("image_size", [7, 8])
def test_factorized_reduction_equals_two_strided_convolutions(image_size):
    reduce = OPERATIONS["skip_connect"](6, 6, False)
    image = torch.randn(2, 6, image_size, image_size)
    padded = nn.functional.pad(image.relu(), (0, image_size % 2) * 2)
    halves = [
        nn.functional.conv2d(x, conv.weight, stride=2)
        for x, conv in ((padded, reduce.conv_1), (padded[:, :, 1:, 1:], reduce.conv_2))
    ]
    torch.testing.assert_close(reduce(image), reduce.bn(torch.cat(halves, dim=1)))


def test_no_pointwise_convolution_is_strided():
    """With few channels in channels last, its backward pass in oneDNN overwrites memory (oneDNN issue 6035)."""
    networks = [Supernet(SPACES[space], 4, 5) for space in DARTS_SPACES]
    networks += [NetworkCIFAR(CELLS["DARTS_V2"], 4, 5), NetworkImageNet(CELLS["DARTS_V2"], 4, 5)]
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
                assert module.stride == (1, 1)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    output = drop_path(torch.ones(20000, 2, 3, 3), 0.2)
    per_image = output.flatten(1)
    assert torch.equal(per_image.amin(1), per_image.amax(1))
    assert set(per_image[:, 0].tolist()) == {0.0, 1.25}
    assert output.mean().item() == pytest.approx(1.0, abs=0.01)


def test_reduction_cells_are_at_a_third_and_two_thirds():
    assert [layer for layer, kind in enumerate(cell_kinds(8)) if kind == "reduce"] == [2, 5]
    assert [layer for layer, kind in enumerate(cell_kinds(20)) if kind == "reduce"] == [6, 13]


@pytest.mark.parametrize("space", DARTS_SPACES)
def test_supernet_with_one_hot_weights_computes_that_operation_alone(space):
    """If one operation of one edge has weight 1 and all others 0, only that operation contributes."""
    torch.manual_seed(0)
    supernet = Supernet(SPACES[space], init_channels=4, layers=3).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    weights = [torch.zeros(supernet.alpha_shapes[kind], dtype=torch.float64) for kind in supernet.kinds]
    assert torch.equal(supernet(images, weights), supernet.classifier.bias.expand(2, 10))
    # the last candidate of edge 0 -> 2 in the last cell, which is not `noise` in any space
    weights[-1][0, -1] = 1.0
    cell = supernet.cells[-1]
    operation = plain_supernet(supernet).cells[-1].edges.mixed_ops[0].operations[-1]
    logits = supernet(images, weights)
    states = [supernet.stem(images)] * 2
    for layer, layer_weights in zip(supernet.cells[:-1], weights, strict=False):
        states = [states[1], layer(*states, layer_weights, 0.0, 0.0)]
    node = operation(cell.preprocess0(states[0]))
    expected = nn.functional.pad(node.mean(dim=(2, 3)), (0, 3 * node.shape[1]))
    torch.testing.assert_close(logits, supernet.classifier(expected))


def test_supernet_in_s1_has_the_candidates_of_each_edge():
    supernet = plain_supernet(Supernet(SPACES["s1"], init_channels=4, layers=3))
    for cell, kind in zip(supernet.cells, supernet.kinds, strict=True):
        for edge, candidates in zip(cell.edges.mixed_ops, SPACES["s1"].cells[kind], strict=True):
            for operation, name in zip(edge.operations, candidates, strict=True):
                inner = operation[0] if "pool" in name else operation  # batch norm follows pooling
                expected = nn.AvgPool2d if name == "avg_pool_3x3" else type(OPERATIONS[name](4, 2, False))
                assert type(inner) is expected or (name == "skip_connect" and isinstance(inner, nn.Identity))


@pytest.mark.parametrize(
    ("name", "network", "auxiliary", "params", "multiply_adds", "tolerance"),
    [
        ("DARTS_V2", NetworkCIFAR, False, 3.349e6, 528.4e6, 2e-4),
        ("LambdaDARTS_corr_0", NetworkCIFAR, False, 3.321e6, 522.6e6, 2e-4),
        ("DARTS_V2", NetworkImageNet, False, 4.719e6, 529.9e6, 2e-4),
        ("LambdaDARTS_corr_0", NetworkImageNet, False, 4.793e6, 530.7e6, 2e-4),
        # FairDARTS counts the auxiliary head
        ("FairDARTS_a", NetworkCIFAR, True, 2.83e6, 373e6, 1e-2),
        ("FairDARTS_b", NetworkCIFAR, True, 3.88e6, 536e6, 1e-2),
        ("FairDARTS_d", NetworkCIFAR, True, 3.84e6, 532e6, 1e-2),
        ("DARTS_ID2_1", NetworkCIFAR, True, 3.20e6, 433e6, 1e-2),
        ("DARTS_ID2_FPT_7", NetworkCIFAR, True, 3.90e6, 553e6, 1e-2),
        ("NOISEDARTS_50_1", NetworkCIFAR, True, 3.96e6, 553e6, 1e-2),
        ("DCO_SPARSE_BS_64", NetworkCIFAR, False, 3.01e6, 469e6, 1e-2),
    ],
)
def test_the_size_equals_the_published_one(name, network, auxiliary, params, multiply_adds, tolerance):
    channels, layers, classes, pixels = (36, 20, 10, 32) if network is NetworkCIFAR else (48, 14, 1000, 224)
    with torch.device("meta"):
        built = network(CELLS[name], channels, layers, classes, auxiliary=auxiliary)
    measured = size(built, 3, pixels)
    assert measured["params"] == pytest.approx(params, rel=tolerance)
    assert measured["multiply_adds"] == pytest.approx(multiply_adds, rel=tolerance)


def test_the_parameter_counts_of_darts_pt_cells_equal_the_published_ones():
    """The repository of DARTS-PT gives them in millions; the networks of CIFAR-100 have 100 classes."""
    published = {"darts_pt_s1_1": 1.87, "darts_pt_s2_1": 3.09, "darts_pt_s4_1": 4.70, "darts_pt_s1_c100_1": 2.47}
    published |= {"darts_pt_s5_0": 2.85, "darts_pt_s5_3": 3.33, "blank_pt_s5_0": 3.04, "blank_pt_s5_3": 3.40}
    for name, millions in published.items():
        with torch.device("meta"):
            network = NetworkCIFAR(CELLS[name], classes=100 if "c100" in name else 10)
        assert size(network, 3, 32)["params"] / 1e6 == pytest.approx(millions, abs=0.006), name


def test_every_parameter_of_a_published_cell_has_a_gradient():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    for name, genotype in CELLS.items():
        network = NetworkCIFAR(genotype, init_channels=4, layers=3)
        logits, _ = network(images)
        assert logits.shape == (4, 10) and logits.isfinite().all(), name
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
        assert all(grad is not None and grad.isfinite().all() for grad in gradients.values()), name
