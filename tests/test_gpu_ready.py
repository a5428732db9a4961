"""GPU behaviour, tested without a GPU: memory formats, second derivatives, low precision, devices."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import low_precision, search_step
from genotypes import load_genotype
from lib import checkpoints, devices, kernels, side_by_side
from lib.batches import Batch
from lib.cli import InputError
from lib.datasets import DataSet, ImageSet
from lib.devices import memory_format, set_up_libraries
from lib.kernels import differentiated_twice, grouped_conv2d, layout
from lib.progress import StepProgress
from lib.retraining import Retraining
from model import NetworkCIFAR
from search.command_line import check
from search.settings import SCRIPT
from search.state import SearchState
from search.train_search import run_epoch, schedule
from tests.helpers import RECIPE
from tests.supernets import make_supernet, mixing_weights_of

DOUBLE = torch.float64
LAYOUTS = [torch.channels_last, torch.contiguous_format]
NO_LABELS = torch.zeros(4, dtype=torch.long)
#: layout -> the strides of depthwise 3x3 weights
STRIDES = {torch.channels_last: {(9, 1, 3, 1)}, torch.contiguous_format: {(9, 9, 3, 1)}}


def other(wanted):
    return LAYOUTS[1 - LAYOUTS.index(wanted)]


def strides_of(network):
    """Return the strides of the depthwise 3x3 weights of a network."""
    return {w.stride() for w in network.parameters() if w.dim() == 4 and w.shape[1:] == (1, 3, 3)}


# Memory formats


class Calls(TorchDispatchMode):
    """Records the calls of operators, and the memory formats that the backward passes of batch norms see."""

    def __init__(self):
        super().__init__()
        self.seen, self.layouts = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        if "batch_norm_backward" in function.__name__:
            self.layouts.append({layout(x) for x in args[:2]})
            assert all(x.is_contiguous(memory_format=layout(x)) for x in args[:2])
        return function(*args, **(kwargs or {}))


@pytest.fixture
def torchs_batch_norm(monkeypatch):
    """Use torch's batch norm, as on a GPU."""
    for module in (kernels, side_by_side):
        monkeypatch.setattr(module, "batch_norm", F.batch_norm)


@pytest.mark.parametrize("wanted", LAYOUTS)
@pytest.mark.parametrize(
    ("space", "auxiliary_skip", "drop_path_prob"),
    [
        ("s1", "none", 0.0),
        ("s4", "none", 0.0),
        ("s5", "skip", 0.2),
        ("s3", "conv1", 0.0),
        ("nasbench201", "conv1", 0.2),
    ],
)
def test_every_batch_norm_of_a_supernet_gets_the_requested_layout(
    space, auxiliary_skip, wanted, drop_path_prob, torchs_batch_norm
):
    supernet = make_supernet(space, auxiliary_skip, layers=4).to(memory_format=wanted)
    images, weights = torch.randn(4, 3, 16, 16).to(memory_format=wanted), mixing_weights_of(supernet)
    with Calls() as calls:
        loss = F.cross_entropy(supernet(images, weights, drop_path_prob, 0.5), NO_LABELS)
        torch.autograd.grad(loss, [*supernet.parameters(), *weights])
    assert len(calls.layouts) > 30
    assert all(seen == {wanted} for seen in calls.layouts)


@pytest.mark.parametrize("wanted", LAYOUTS)
def test_every_batch_norm_of_a_retrained_network_gets_the_requested_layout(wanted, torchs_batch_norm):
    """The images have the other layout."""
    network = NetworkCIFAR(load_genotype("DARTS_V2"), 4, 6, auxiliary=True)
    module = Retraining(network, 10, replace(RECIPE, drop_path_prob=0.0), wanted)
    images = torch.randn(4, 3, 32, 32).to(memory_format=other(wanted))
    with Calls() as calls:
        loss = module.training_step(Batch(images, NO_LABELS), 0)
        torch.autograd.grad(loss, list(network.parameters()))
    assert strides_of(network) == STRIDES[wanted]
    assert len(calls.layouts) > 30
    # The auxiliary head ends with 1x1 pixels, for which both formats are the same.
    assert sum(seen != {wanted} for seen in calls.layouts) <= 1


@pytest.mark.parametrize("wanted", LAYOUTS)
def test_depthwise_weights_have_the_strides_of_the_layout_and_keep_them_when_a_run_is_resumed(wanted, tmp_path):
    """With the strides of the other layout, torch calls the kernels of another library."""
    supernet = make_supernet("s2", layers=3).to(memory_format=other(wanted)).to(memory_format=wanted)
    depthwise = [w for w in supernet.parameters() if w.dim() == 4 and w.shape[1] == 1]
    assert len(depthwise) > 10
    assert strides_of(supernet) == STRIDES[wanted]

    optimizers = [torch.optim.SGD(supernet.parameters(), 0.1, 0.9) for _ in range(2)]
    for w in supernet.parameters():
        w.grad = torch.ones_like(w)
    optimizers[0].step()
    checkpoints.save(tmp_path / "epoch_1.ckpt", optimizers[0].state_dict())
    optimizers[1].load_state_dict(checkpoints.load(tmp_path / "epoch_1.ckpt"))
    for w in depthwise:
        buffer = optimizers[1].state[w]["momentum_buffer"]
        assert buffer.stride() == w.stride() and torch.equal(buffer, torch.ones_like(w))


def test_the_auto_memory_format_is_channels_last_on_a_cpu_only():
    devices = [torch.device(name) for name in ("cpu", "cuda", "mps")]
    assert [memory_format("auto", device) for device in devices] == [LAYOUTS[0], LAYOUTS[1], LAYOUTS[1]]
    for device in devices:
        assert [memory_format(name, device) for name in ("channels_last", "contiguous")] == LAYOUTS


def test_images_with_one_channel_get_the_layout_too():
    """torch cannot infer their layout from their strides."""
    state = small_search(memory_format="contiguous", channels=1)
    images = state.cast(next(iter(state.batches(0)[0]))).images
    assert images.stride() == (64, 64, 8, 1)


def test_a_search_uses_the_requested_layout_and_computes_the_same_in_both():
    one_step = {"images": 16, "precision": "64-true"}
    states = [small_search(memory_format=name, **one_step) for name in ("channels_last", "contiguous")]
    assert [strides_of(state.supernet) for state in states] == [STRIDES[wanted] for wanted in LAYOUTS]
    with StepProgress("test", 3, 0) as progress:
        for state in states:
            run_epoch(state, 1, schedule(state.settings, 1), progress, "epoch")
    trained = ([*state.supernet.parameters(), *state.architecture.parameters()] for state in states)
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_average_pooling_matches_torch_and_avoids_its_wrong_gradient_on_cuda(size, stride, device, monkeypatch):
    """With channels last, CUDA's gradient is wrong (pytorch issue 188344)."""
    if device == "cuda":
        monkeypatch.setattr(kernels, "pools_well", lambda x, stride: False)
    x = torch.randn(3, 4, size, size + 1, dtype=DOUBLE, requires_grad=True)
    y = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    expected = F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)
    pooled, direction = kernels.average_pool(y, stride), torch.randn_like(expected)
    torch.testing.assert_close(pooled, expected)
    with Calls() as calls:
        (measured,) = torch.autograd.grad(pooled, y, direction)
    assert (torch.ops.aten.avg_pool2d_backward.default in calls.seen) == (device == "cpu" and stride == 2)
    torch.testing.assert_close(measured, *torch.autograd.grad(expected, x, direction))


def test_only_contiguous_images_use_torch_pooling_on_cuda():
    image = {wanted: torch.empty(2, 4, 8, 8, device="meta").to(memory_format=wanted) for wanted in LAYOUTS}
    assert all(kernels.pools_well(image[torch.contiguous_format], stride) for stride in (1, 2))
    assert not any(kernels.pools_well(image[torch.channels_last], stride) for stride in (1, 2))


# Second derivatives


@pytest.mark.parametrize("wanted", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("groups", "kernel_size", "dilation"), [(2, 1, 1), (12, 3, 1), (12, 5, 2), (4, 3, 1)])
def test_grouped_convolutions_and_their_derivatives_match_torch(groups, kernel_size, dilation, stride, wanted):
    torch.manual_seed(0)
    x = torch.randn(2, 12, 6, 7, dtype=DOUBLE).to(memory_format=wanted).requires_grad_()
    weight = torch.randn(12, 12 // groups, kernel_size, kernel_size, dtype=DOUBLE).to(memory_format=wanted)
    weight.requires_grad_()
    with differentiated_twice():
        measured = grouped_conv2d(x, weight, groups, stride, dilation)
    expected = F.conv2d(x, weight, None, stride, dilation * (kernel_size // 2), dilation, groups)
    assert measured.grad_fn.name() != expected.grad_fn.name()
    first = [torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True) for y in (measured, expected)]
    torch.testing.assert_close([measured, *first[0]], [expected, *first[1]])
    directions = [torch.randn_like(gradient) for gradient in first[0]]
    second = [torch.autograd.grad(gradients, (x, weight), directions, create_graph=True) for gradients in first]
    torch.testing.assert_close(*second)
    third = [torch.autograd.grad(gradients, (x, weight), directions) for gradients in second]
    torch.testing.assert_close(*third)


@pytest.mark.slow
def test_the_number_of_convolutions_of_exact_derivatives_does_not_depend_on_the_channels():
    """torch's own second derivative of a grouped convolution is a loop over its groups."""
    counts = [
        search_step.count_work(
            search_step.SearchStepSettings(space="s2", init_channels=channels, layers=4, image_size=8, batch_size=4),
            "lambda-darts-exact",
            "auto",
        )
        for channels in (2, 8)
    ]
    assert counts[0][:2] == counts[1][:2]  # operator calls and convolutions
    assert counts[0].convolutions < 1000


def test_memory_traffic_counts_what_an_operator_reads_and_writes():
    x, weight = torch.zeros(2, 4, 8, 8), torch.zeros(4, 1, 3, 3)
    assert search_step.traffic("relu.default", (x,), x.clone()) == 2 * x.nbytes
    assert search_step.traffic("add.Tensor", (x, torch.zeros(1).expand(x.shape)), x.clone()) == 2 * x.nbytes + 4
    assert search_step.traffic("empty.memory_format", (list(x.shape),), x) == 0
    halved = x[:, :, ::2, ::2].clone()
    assert search_step.traffic("avg_pool2d_backward.default", (halved, x, [3, 3], [2, 2]), x.clone()) == 1.25 * x.nbytes

    def backward(*wanted):  # x has the size of its gradient and of the output's gradient
        gradients = [x.clone() if wanted[0] else None, weight.clone() if wanted[1] else None, None]
        args = (x, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 4, [*wanted, False])
        return search_step.traffic("convolution_backward.default", args, gradients)

    assert backward(True, False) == backward(False, True) == 2 * x.nbytes + weight.nbytes
    assert backward(True, True) == 3 * x.nbytes + 2 * weight.nbytes


def test_the_counted_work_of_a_step_is_less_than_that_of_the_released_codes():
    settings = search_step.SearchStepSettings(space="s2", init_channels=2, layers=4, image_size=8, batch_size=4)
    ours, plain = (search_step.count_work(settings, "darts", way) for way in ("contiguous", "plain"))
    assert 0 < ours.operator_calls < plain.operator_calls
    assert 0 < ours.traffic_gib < plain.traffic_gib


def test_the_counted_traffic_of_a_step_grows_linearly_with_the_batch():
    """The traffic of the weights stays the same, and that of the features is proportional to the images."""
    settings = search_step.SearchStepSettings(space="s2", init_channels=2, layers=4, image_size=8)
    works = [search_step.count_work(replace(settings, batch_size=size), "darts", "contiguous") for size in (4, 8, 12)]
    assert len({work.operator_calls for work in works}) == 1
    few, some, many = (work.traffic_gib for work in works)
    assert many - some == pytest.approx(some - few, rel=1e-9) and some > few


@pytest.mark.parametrize(("precision", "counted"), [("32-true", ["contiguous", "plain"]), ("bf16-mixed", ["plain"])])
def test_only_contiguous_steps_in_float32_are_counted(precision, counted):
    settings = search_step.SearchStepSettings(space="s2", init_channels=2, layers=4, image_size=8, batch_size=4)
    settings = replace(settings, count="only", precision=precision)
    rows = search_step.time_method(settings, "darts", ["channels_last", "contiguous", "plain"])
    assert [row["way"] for row in rows if "traffic_gib" in row] == counted


# Low precision


@pytest.mark.slow
def test_tf32_turns_differences_into_noise_but_not_exact_derivatives():
    """This is why low precision requires exact derivatives. The test emulates the rounding."""
    settings = low_precision.LowPrecisionSettings(
        space="s2", init_channels=4, layers=4, batch_size=16, image_size=8, epsilon_0=1e-3
    )
    difference, exact = low_precision.gradient_cosines(settings, torch.device("cpu"))
    assert difference["float32"] > 0.97 and exact["float32"] > 0.999
    assert abs(difference["tf32"]) < 0.5 < 0.9 < exact["tf32"]
    assert abs(difference["bfloat16"]) < 0.5 < exact["bfloat16"]


@pytest.mark.parametrize("low", [{"tf32": True}, {"precision": "bf16-mixed"}])
@pytest.mark.parametrize("method", ["lambda-darts", "darts-2nd", "idarts"])
def test_differences_in_low_precision_are_rejected(method, low):
    with pytest.raises(InputError, match=r"cannot be combined with --derivatives difference: .* exact"):
        check(SCRIPT.settings_of(method, **low))
    check(SCRIPT.settings_of(method, derivatives="exact", **low))


@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (3, 2), (5, 2)])
def test_depthwise_convolutions_are_right_in_bfloat16(kernel_size, dilation):
    """On a CPU with channels last, torch's own gradient of a dilated weight is wrong."""
    torch.manual_seed(0)
    numbers = (torch.randn(16, 4, 7, 7), torch.randn(4, 1, kernel_size, kernel_size))
    found = []
    for dtype in (torch.bfloat16, DOUBLE):
        x, weight = (value.to(dtype, memory_format=torch.channels_last).requires_grad_() for value in numbers)
        y = grouped_conv2d(x, weight, 4, 1, dilation)
        found.append([y, *torch.autograd.grad(y.square().sum(), (x, weight))])
    for rounded, expected in zip(*found, strict=True):
        assert torch.linalg.vector_norm(rounded.double() - expected) < 0.02 * torch.linalg.vector_norm(expected)


def test_tf32_applies_to_convolutions_only():
    """Matrix products keep full precision because mixing weights go through one."""
    for tf32 in (True, False):
        set_up_libraries(tf32)
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("wanted", LAYOUTS)
def test_autocast_does_not_round_mixing_weights(wanted):
    outputs = [torch.randn(2, 4, 6, 6).to(memory_format=wanted) for _ in range(3)]
    weights = torch.rand(6)
    with torch.autocast("cpu", torch.bfloat16):
        measured = side_by_side.mix(outputs, weights)
    for edge, y in enumerate(measured):
        expected = sum(weights[2 * number + edge] * output for number, output in enumerate(outputs))
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)  # bfloat16 rounds by up to 4e-3
        assert layout(y) is wanted


# Devices and libraries


def test_a_search_on_the_second_gpu_makes_it_the_current_device(monkeypatch):
    """CUDA graphs are captured on the current device."""
    chosen = []
    monkeypatch.setattr(devices, "check_device", lambda device: ("cuda", [1]))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert devices.prepare_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]


def small_search(method="lambda-darts", channels=3, images=40, **changes):
    """Return the state of a search on a few images."""
    settings = SCRIPT.settings_of(
        method,
        **{"space": "s5", "layers": 4, "init_channels": 2, "batch_size": 8, "epochs": 2, "device": "cpu"} | changes,
    )
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (images, channels, 8, 8), dtype=torch.uint8)
    images = ImageSet(pixels, torch.randint(0, 10, (images,)))
    flat = ((0.5,) * channels, (0.25,) * channels)
    dataset = DataSet(images, images, tuple(map(str, range(10))), *flat, flip=True)
    return SearchState(settings, dataset, torch.device("cpu"))
