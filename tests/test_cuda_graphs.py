"""CUDA graphs without a GPU: stubs take the place of CUDA's, and replay a pass by computing it again."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cuda_graphs
from cuda_graphs import CapturedObjective, Graphs
from data import Batch
from gradients import Objective
from tests.helpers import make_supernet, mixing_weights_of


class Stream:
    def wait_stream(self, other):
        pass


class FakeCuda:
    """Stubs of CUDA's graphs: a replay computes the pass again, from the captured tensors into the captured result."""

    def __init__(self, monkeypatch):
        self.current, self.captures, self.pools, self.fails = Stream(), [], [], False
        stubs = {"current_stream": lambda: self.current, "Stream": Stream}
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

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, graph, pool):
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
    supernet = make_supernet("s3", "skip", channels=2, layers=4)
    weights, graphs = mixing_weights_of(supernet), Graphs(8)
    for epoch in range(3):
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
    weights, graphs = mixing_weights_of(supernet), Graphs(8)
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
    # To the graph its inputs and the labels; from it all gradients, the loss and the logits.
    assert copies.names == ("_foreach_copy_.default", "copy_.default", "_foreach_copy_.default", *["clone.default"] * 2)
    assert len(left.parameters) == len(list(supernet.parameters())) and len(left.layers) == 1


def test_a_capture_that_fails_ends_the_search_and_names_the_flag(fake_cuda):
    supernet = make_supernet("s2", channels=2, layers=4)
    weights, graphs = mixing_weights_of(supernet), Graphs(8)
    fake_cuda.fails = True
    with pytest.raises(RuntimeError, match="during capture") as caught:
        CapturedObjective(supernet, graphs=graphs).gradients(
            weights, Batch(torch.randn(8, 3, 8, 8), torch.arange(8), 0), [0]
        )
    assert caught.value.__notes__ == ["--cuda_graphs: the capture of a pass failed; search without this flag"]
    assert not graphs.passes
