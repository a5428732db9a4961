"""What a GPU would meet, tested without one: emulated rounding, tensors without data, stubs of CUDA's graphs."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import cuda_graphs
import data
import kernels
import mixed_operations
import search.bilevel
from benchmarks import low_precision, search_step, smoke
from cli import InputError
from cuda_graphs import CapturedObjective, Graphs
from data import Batch
from gradients import Objective
from kernels import differentiated_twice, grouped_conv2d, layout
from mixed_operations import MixedEdges
from model import NetworkCIFAR
from model_search import Supernet
from nasbench201.networks import Supernet as Supernet201
from search.settings import method_settings
from spaces import SPACES
from tests.conftest import ROOT
from utils import load_optimizer_tensors, memory_format, optimizer_tensors, set_up_libraries

DOUBLE = torch.float64
LAYOUTS = [torch.channels_last, torch.contiguous_format]
NO_LABELS = torch.zeros(4, dtype=torch.long)


def make_supernet(space, auxiliary_skip="none", channels=4, layers=6):
    torch.manual_seed(0)
    if space == "nasbench201":
        supernet = Supernet201(channels, 2, auxiliary_skip=auxiliary_skip)
    else:
        supernet = Supernet(SPACES[space], channels, layers, auxiliary_skip=auxiliary_skip)
    for module in supernet.modules():
        if isinstance(module, MixedEdges):
            module.together = True  # as on a GPU
    return supernet


def weights_of(supernet, dtype=torch.float32):
    torch.manual_seed(1)
    shapes = [supernet.alpha_shapes[kind] for kind in supernet.kinds]
    return [torch.randn(shape, dtype=dtype).softmax(dim=-1).requires_grad_() for shape in shapes]


# Memory formats


class Layouts(TorchDispatchMode):
    """Records the memory formats that the backward passes of batch norms see."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "batch_norm_backward" in function.__name__:
            self.seen.append({layout(x) for x in args[:2]})
            assert all(x.is_contiguous(memory_format=layout(x)) for x in args[:2])
        return function(*args, **(kwargs or {}))


@pytest.fixture
def librarys_batch_norm(monkeypatch):
    """torch's, as on a GPU."""

    def batch_norm(x, mean, variance, weight, bias, training, momentum=0.1, eps=1e-5):
        return F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)

    for module in (kernels, mixed_operations):
        monkeypatch.setattr(module, "batch_norm", batch_norm)


@pytest.mark.parametrize("wanted", LAYOUTS)
@pytest.mark.parametrize("auxiliary_skip", ["none", "skip", "conv1"])
@pytest.mark.parametrize("space", ["s1", "s3", "s4", "s5", "nasbench201"])
def test_every_batch_norm_of_a_supernet_sees_the_layout_asked_for(space, auxiliary_skip, wanted, librarys_batch_norm):
    supernet = make_supernet(space, auxiliary_skip).to(memory_format=wanted)
    images, weights = torch.randn(4, 3, 32, 32).to(memory_format=wanted), weights_of(supernet)
    with Layouts() as layouts:
        loss = F.cross_entropy(supernet(images, weights, 0.2, 0.5), NO_LABELS)
        torch.autograd.grad(loss, [*supernet.parameters(), *weights])
    assert len(layouts.seen) > 30
    assert all(seen == {wanted} for seen in layouts.seen)


@pytest.mark.parametrize("wanted", LAYOUTS)
def test_every_batch_norm_of_a_retrained_network_sees_the_layout_asked_for(wanted, librarys_batch_norm):
    from genotypes import load_genotype

    network = NetworkCIFAR(load_genotype("DARTS_V2"), 4, 6, auxiliary=True).to(memory_format=wanted)
    with Layouts() as layouts:
        logits, auxiliary_logits = network(torch.randn(4, 3, 32, 32).to(memory_format=wanted), 0.2)
        torch.autograd.grad(logits.sum() + auxiliary_logits.sum(), list(network.parameters()))
    assert len(layouts.seen) > 30
    # Of 1 x 1 pixels, where the auxiliary head ends, both formats are one.
    assert sum(seen != {wanted} for seen in layouts.seen) <= 1


@pytest.mark.parametrize("wanted", LAYOUTS)
def test_depthwise_weights_have_the_strides_of_the_layout_and_keep_them_when_a_run_is_resumed(wanted):
    """Those of the other layout send torch to another library's kernels."""
    supernet = make_supernet("s2").to(memory_format=LAYOUTS[1 - LAYOUTS.index(wanted)]).to(memory_format=wanted)
    depthwise = [w for w in supernet.parameters() if w.dim() == 4 and w.shape[1] == 1]
    assert len(depthwise) > 10
    strides = {w.stride() for w in depthwise}
    assert strides == ({(9, 1, 3, 1)} if wanted is torch.channels_last else {(9, 9, 3, 1)})

    optimizers = [torch.optim.SGD(supernet.parameters(), 0.1, 0.9) for _ in range(2)]
    for w in supernet.parameters():
        w.grad = torch.ones_like(w)
    optimizers[0].step()
    saved = {name: tensor.contiguous() for name, tensor in optimizer_tensors(optimizers[0], "sgd").items()}
    load_optimizer_tensors(optimizers[1], saved, "sgd")
    for w in depthwise:
        buffer = optimizers[1].state[w]["momentum_buffer"]
        assert buffer.stride() == w.stride() and torch.equal(buffer, torch.ones_like(w))


def test_auto_is_channels_last_on_a_cpu_alone():
    devices = [torch.device(name) for name in ("cpu", "cuda", "mps")]
    assert [memory_format("auto", device) for device in devices] == [LAYOUTS[0], LAYOUTS[1], LAYOUTS[1]]
    for device in devices:
        assert [memory_format(name, device) for name in ("channels_last", "contiguous")] == LAYOUTS


def test_images_of_one_channel_take_the_layout_too():
    """Whose strides say nothing of their layout, so that torch would take them for those of the other one."""
    state = small_search(memory_format="contiguous", channels=1)
    images = state.cast(next(iter(state.batches(0)[0]))).images
    assert images.stride() == (64, 64, 8, 1)


@pytest.mark.parametrize("wanted", ["channels_last", "contiguous"])
def test_a_search_is_the_same_in_either_layout(wanted):
    state, other = (small_search(memory_format=name, precision="64-true") for name in (wanted, "auto"))
    with search.bilevel.StepProgress("test", 3, 0) as progress:
        for each in (state, other):
            each.run_epoch(1, search.bilevel.schedule(each.settings, 1), progress, "epoch")
    for a, b in zip(state.supernet.parameters(), other.supernet.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_average_pooling_channels_last_never_asks_torch_for_its_gradient(size, stride, monkeypatch):
    """Which is wrong on CUDA (pytorch issue 188344); ours is that of the other layout, where torch's is right."""
    x = torch.randn(3, 4, size, size + 1, dtype=DOUBLE, requires_grad=True)
    expected = F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)
    direction = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, x, direction)
    y = x.detach().to(memory_format=torch.channels_last).requires_grad_()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function is not torch.ops.aten.avg_pool2d_backward.default
            return function(*args, **(kwargs or {}))

    with Watch():
        pooled = kernels.average_pool(y, stride)
        (measured,) = torch.autograd.grad(pooled, y, direction)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(measured, gradient)


# Second derivatives


@pytest.mark.parametrize("wanted", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("groups", "kernel_size", "dilation"), [(2, 1, 1), (3, 1, 1), (12, 3, 1), (12, 5, 2), (4, 3, 1)]
)
def test_grouped_convolutions_and_their_derivatives_are_torchs(groups, kernel_size, dilation, stride, wanted):
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


def test_exact_derivatives_take_as_many_convolutions_whatever_the_number_of_channels():
    """torch's own second derivative of a grouped convolution is a loop over its groups."""
    counts = [
        search_step.count_calls(
            search_step.Settings(init_channels=channels, layers=4, image_size=8, batch_size=4),
            "lambda-darts-exact",
            "auto",
        )
        for channels in (2, 8)
    ]
    assert counts[0] == counts[1]
    assert counts[0]["convolutions"] < 2000


# Low precision


def test_tf32_makes_noise_of_a_difference_but_not_of_the_exact_derivative():
    """Why the one is refused, and the other is not; rounding is emulated."""
    settings = low_precision.Settings(
        space="s2", init_channels=4, layers=5, batch_size=16, image_size=16, epsilon_0=1e-3
    )
    difference, exact = low_precision.measure(settings, torch.device("cpu"))
    assert difference["float32"] > 0.97 and exact["float32"] > 0.999
    assert abs(difference["tf32"]) < 0.5 < 0.9 < exact["tf32"]
    assert abs(difference["bfloat16"]) < 0.5 < exact["bfloat16"]


@pytest.mark.parametrize("low", [{"tf32": True}, {"precision": "bf16-mixed"}])
@pytest.mark.parametrize(
    ("method", "changes"),
    [("lambda-darts", {}), ("darts-2nd", {}), ("idarts", {}), ("darts", {"compare_derivatives": True})],
)
def test_differences_in_low_precision_are_refused(method, changes, low):
    with pytest.raises(InputError, match=r"--(tf32: True|precision: bf16-mixed) with --(derivatives|compare)") as said:
        small_search(method, **changes, **low)
    assert "expected float32, or --derivatives exact" in str(said.value)
    assert "\n" not in str(said.value)
    if not changes:
        small_search(method, derivatives="exact", **low)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_depthwise_convolutions_are_right_in_bfloat16(kernel_size, dilation, size):
    """torch's gradient in a weight with a dilation is not, on a CPU, channels last."""
    torch.manual_seed(0)
    numbers = (torch.randn(16, 4, size, size), torch.randn(4, 1, kernel_size, kernel_size))
    found = []
    for dtype in (torch.bfloat16, DOUBLE):
        x, weight = (value.to(dtype, memory_format=torch.channels_last).requires_grad_() for value in numbers)
        y = grouped_conv2d(x, weight, 4, 1, dilation)
        found.append([y, *torch.autograd.grad(y.square().sum(), (x, weight))])
    for rounded, expected in zip(*found, strict=True):
        assert torch.linalg.vector_norm(rounded.double() - expected) < 0.02 * torch.linalg.vector_norm(expected)


def test_tf32_is_for_convolutions_alone():
    """Mixing weights go through a matrix product."""
    for tf32 in (True, False):
        set_up_libraries(tf32)
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("wanted", LAYOUTS)
def test_autocast_does_not_round_mixing_weights(wanted):
    outputs = [torch.randn(2, 4, 6, 6).to(memory_format=wanted) for _ in range(3)]
    weights = torch.rand(6)
    with torch.autocast("cpu", torch.bfloat16):
        measured = mixed_operations._mix(outputs, weights)
    for edge, y in enumerate(measured):
        expected = sum(weights[2 * number + edge] * output for number, output in enumerate(outputs))
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)  # bfloat16's unit is 4e-3
        assert layout(y) is wanted


# CUDA graphs


class Stream:
    def wait_stream(self, other):
        pass


class FakeCuda:
    """Stubs of CUDA's graphs: a replay computes the pass again, from the captured tensors into the captured result."""

    def __init__(self, monkeypatch):
        self.current, self.captures, self.pools, self.fails = Stream(), [], [], False
        stubs = {"current_stream": lambda: self.current, "set_stream": self.set_stream, "Stream": Stream}
        stubs |= {"stream": self.stream, "graph": self.graph, "CUDAGraph": SimpleNamespace}
        stubs["graph_pool_handle"] = lambda: (0, 1)
        for name, stub in stubs.items():
            monkeypatch.setattr(torch.cuda, name, stub)
        pass_over, self.last = Objective.pass_over, None

        def recorded(objective, *arguments):
            result = pass_over(objective, *arguments)
            self.last = (lambda: pass_over(objective, *arguments), result)
            return result

        monkeypatch.setattr(cuda_graphs.Objective, "pass_over", recorded)

    def set_stream(self, stream):
        self.current = stream

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, graph, pool):
        self.current = Stream()  # a failure leaves it
        yield
        if self.fails:
            raise RuntimeError("operation failed due to a previous error during capture")
        again, (loss, logits, parameters, layers) = self.last

        def replay():
            found = again()
            for old, new in zip(
                [loss, logits, *parameters, *layers],
                [found.loss, found.logits, *found.parameters, *found.layers],
                strict=True,
            ):
                old.copy_(new)

        graph.replay = replay
        self.captures.append(graph)
        self.pools.append(pool)


@pytest.fixture
def fake_cuda(monkeypatch):
    return FakeCuda(monkeypatch)


def passes(objective, weights, batch):
    """The four passes of a step, each with what it gave."""
    for shift in (0.0, 0.01, -0.01):
        moved = [weight.detach() + shift for weight in weights]
        yield objective.gradients(moved, batch, [0, 1] if shift == 0 else [])
    yield objective.gradients(weights, batch, range(len(weights)), parameters=False)


def test_graphs_are_captured_once_share_their_memory_and_follow_the_schedule(fake_cuda):
    supernet = make_supernet("s5", "skip", channels=2, layers=4)
    weights, graphs = weights_of(supernet), Graphs(8)
    for epoch in range(4):
        batch = Batch(torch.randn(8, 3, 8, 8), torch.arange(8), epoch)
        now = {"drop_path_prob": 0.1 * epoch, "skip_beta": 1 - 0.2 * epoch}
        captured = list(passes(CapturedObjective(supernet, **now, graphs=graphs), weights, batch))
        eager = list(passes(Objective(supernet, **now), weights, batch))
        for a, b in zip(captured, eager, strict=True):  # all four at once: none wrote over another
            torch.testing.assert_close([a.loss, *a.parameters, *a.layers], [b.loss, *b.parameters, *b.layers])
    # Three passes, without drop path and with it; not one an epoch.
    assert len(fake_cuda.captures) == len(graphs.passes) == 6
    assert set(fake_cuda.pools) == {(0, 1)}


def test_what_a_graph_left_is_copied_by_one_call(fake_cuda, monkeypatch):
    supernet = make_supernet("s2", channels=2, layers=4)
    weights, graphs = weights_of(supernet), Graphs(8)
    batch = Batch(torch.randn(8, 3, 8, 8), torch.arange(8), 0)
    objective = CapturedObjective(supernet, graphs=graphs)
    objective.gradients(weights, batch, [0])
    (captured,) = graphs.passes.values()
    monkeypatch.setattr(captured.graph, "replay", lambda: None)

    class Copies(TorchDispatchMode):
        names = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "copy" in function.__name__ or "clone" in function.__name__:
                self.names += (function.__name__,)
            return function(*args, **(kwargs or {}))

    with Copies() as copies:
        left = captured(objective, weights, batch)
    assert copies.names == ("_foreach_copy_.default", "copy_.default", "_foreach_copy_.default")
    assert len(left.parameters) == len(list(supernet.parameters())) and len(left.layers) == 1


def test_a_capture_that_fails_at_its_end_leaves_nothing_moved(fake_cuda):
    supernet = make_supernet("s2", channels=2, layers=4)
    weights, graphs = weights_of(supernet), Graphs(8)
    batch = Batch(torch.randn(8, 3, 8, 8), torch.arange(8), 0)
    stream, buffers = fake_cuda.current, [buffer.clone() for buffer in supernet.buffers()]
    fake_cuda.fails = True
    objective = CapturedObjective(supernet, graphs=graphs)
    with pytest.raises(RuntimeError, match="during capture"):
        cuda_graphs._Pass(objective, weights, batch, [0], True)
    assert fake_cuda.current is stream
    assert all(map(torch.equal, buffers, supernet.buffers()))
    with pytest.warns(UserWarning, match="--cuda_graphs: goes on without, for the capture failed: operation failed"):
        objective.gradients(weights, batch, [0])
    assert graphs.failed and not graphs.passes and fake_cuda.current is stream
    objective.gradients(weights, batch, [0])  # without a second warning, which would be an error here


# Devices and libraries


def test_the_second_gpu_is_the_current_device_of_its_search(monkeypatch):
    """CUDA graphs are captured on the current device."""
    fabric, chosen = SimpleNamespace(device=torch.device("cuda", 1)), []
    monkeypatch.setattr(search.bilevel, "check_device", lambda device: ("cuda", [1]))
    monkeypatch.setattr(search.bilevel, "Fabric", lambda accelerator, devices, precision: fabric)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert search.bilevel.make_fabric("cuda:1", "32-true") is fabric
    assert chosen == [torch.device("cuda", 1)]


@pytest.mark.parametrize(
    ("accelerator", "count", "counted"), [("cuda", "auto", 0), ("cuda", "yes", 1), ("cpu", "auto", 1)]
)
def test_operator_calls_are_not_counted_on_a_gpu_unless_asked_for(accelerator, count, counted, monkeypatch):
    asked = []
    monkeypatch.setattr("utils.check_device", lambda device: (accelerator, 1))
    monkeypatch.setattr(
        search_step, "count_calls", lambda *_: asked.append(1) or {"operator_calls": 1, "convolutions": 1}
    )
    timing = SimpleNamespace(median=1.0, seconds=[1.0], peak_memory_mib=1.0, kernels=[])
    monkeypatch.setattr(search_step, "take_turns", lambda contenders, rounds: dict.fromkeys(contenders, timing))
    (row,) = search_step.measure(search_step.Settings(ways=["auto"], count=count), "darts")
    assert len(asked) == counted == ("operator_calls" in row)


def test_a_search_draws_its_cells_where_the_package_graphviz_is_missing(tmp_path):
    code = (
        "import sys; sys.modules['graphviz'] = None; import search.loop; from genotypes import load_genotype\n"
        f"search.loop.draw_genotype(load_genotype('DARTS_V2'), __import__('pathlib').Path({str(tmp_path / 'cells')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("no Python package `graphviz`, so matplotlib draws the cells")
    assert {path.name for path in (tmp_path / "cells").iterdir()} == {
        f"{kind}.{suffix}" for kind in ("normal", "reduce") for suffix in ("png", "svg")
    }


def small_search(method="lambda-darts", channels=3, **changes):
    """A search on a few images."""
    settings = method_settings(
        method,
        **{"space": "s5", "layers": 4, "init_channels": 2, "batch_size": 8, "epochs": 2, "device": "cpu"} | changes,
    )
    torch.manual_seed(0)
    images = data.ImageSet(torch.randint(0, 256, (40, channels, 8, 8), dtype=torch.uint8), torch.randint(0, 10, (40,)))
    flat = ((0.5,) * channels, (0.25,) * channels)
    dataset = data.DataSet(images, images, tuple(map(str, range(10))), *flat, flip=True)
    fabric = search.bilevel.make_fabric("cpu", settings.precision, settings.tf32)
    return search.bilevel.Search(settings, dataset, fabric)


SCRIPTS = ("first_gpu_run.sh", "second_gpu_run.sh")


def run_script(name, out, *flags, site="", timeout):
    """Run a script for a GPU on the CPU, at toy size; its summary and results."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(site)}
    command = ["bash", f"benchmarks/{name}", out, "--device", "cpu", *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()
    assert len(list(out.iterdir())) <= 8
    summary = dict(line.split("\t")[:2] for line in (out / "summary.tsv").read_text().splitlines())
    return summary, json.loads((out / "results.json").read_text())


def test_the_first_run_on_a_gpu_at_toy_size(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'a').close()\n")
    summary, results = run_script(SCRIPTS[0], tmp_path / "out", "--seconds", "300", site=site, timeout=400)
    names = ["tests", "search", "resume", "resumed", "s5", "nasbench201", "depthwise", "s5_channels_last", "methods"]
    assert summary == dict.fromkeys(names, "ok")
    assert (tmp_path / "seen").exists()  # PYTHONPATH is extended, not replaced
    assert (tmp_path / "out/search.tar.gz").exists()
    assert [row["way"] for row in results["s5"]["rows"]] == ["contiguous", "plain"]
    assert [row["method"] for row in results["methods"]["rows"]] == ["darts", "lambda-darts-exact"]
    assert len(results["depthwise"]["rows"]) == 20


def test_the_second_run_on_a_gpu_at_toy_size(tmp_path):
    """But for the compiler, which takes minutes."""
    summary, results = run_script(SCRIPTS[1], tmp_path / "out", "--seconds", "60", timeout=150)
    names = ["low_precision_s2", "low_precision_s5", "search", "search_tf32", "search_bf16", "retraining"]
    assert {name: summary[name] for name in names[:4]} == dict.fromkeys(names[:4], "ok")
    assert set(summary) > set(names)
    assert all(row["seconds_per_step"] > 0 for row in results["search_tf32"]["rows"])


def test_the_smoke_run_imports_all_and_takes_a_step_of_each_kind(tmp_path):
    summary, _ = run_script(SCRIPTS[0], tmp_path / "out", "--smoke", timeout=150)
    assert summary == {"smoke": "ok"}
    log = (tmp_path / "out/log.txt").read_text()
    parts = ["imports", "depthwise", "nasbench201", "s5", "retraining, bf16-mixed", "resumed search", "low precision"]
    for part in [*parts, "ImageNet's loader", "GPU tests"]:
        assert f"\n{part}: ok, " in log


def test_a_part_of_the_smoke_run_that_fails_keeps_its_traceback_and_the_others_go_on(monkeypatch, capsys):
    def broken(device, *arguments):
        raise RuntimeError("no such kernel")

    names = [name for name, part in vars(smoke).items() if getattr(part, "__module__", "") == smoke.__name__]
    for name in set(names) - {"Settings", "main", "depthwise"}:
        monkeypatch.setattr(smoke, name, lambda device, *arguments: None)
    monkeypatch.setattr(smoke, "depthwise", broken)
    monkeypatch.setattr(sys, "argv", ["smoke.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="failed: depthwise"):
        smoke.main()
    said = capsys.readouterr()
    assert "RuntimeError: no such kernel" in said.err
    assert "depthwise: failed" in said.out and "GPU tests: ok" in said.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "OUT: missing"),
        (["OUT", "--device", "tpu"], "--device: 'tpu'"),
        (["OUT", "--seconds", "ten"], "--seconds: 'ten'"),
        (["OUT", "--fast"], "--fast: unknown"),
        (["tests"], "OUT: tests is not empty"),
    ],
)
def test_the_gpu_scripts_refuse_what_they_do_not_know(arguments, says):
    for name in SCRIPTS:
        done = subprocess.run(
            ["bash", f"benchmarks/{name}", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and not (ROOT / "OUT").exists()
        expected = "expected OUT [--smoke] [--device cpu|cuda] [--seconds N]"
        assert done.stderr == f"{name}: error: {says}; {expected}\n"
