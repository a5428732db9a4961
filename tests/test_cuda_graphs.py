"""CUDA graphs, tested without a GPU: stubs replace the functions of CUDA and replay a pass by computing it again."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from lib import cuda_graphs
from lib.batches import Batch
from lib.cuda_graphs import CapturedObjective, Graphs
from lib.objective import Objective
from tests.supernets import make_supernet, mixing_weights_of


class FakeCuda:
    """Stubs of CUDA graphs. A replay computes the pass again from the captured tensors, into the captured result."""

    def __init__(self, monkeypatch):
        self.captures, self.pools, self.fails, self.last = [], [], False, None
        stream = SimpleNamespace(wait_stream=lambda other: None)
        stubs = {"current_stream": lambda: stream, "Stream": lambda: stream, "stream": lambda stream: nullcontext()}
        stubs |= {"graph": self.graph, "CUDAGraph": SimpleNamespace, "graph_pool_handle": lambda: (0, 1)}
        for name, stub in stubs.items():
            monkeypatch.setattr(torch.cuda, name, stub)
        pass_over = Objective.pass_over

        def recorded(objective, *arguments):
            result = pass_over(objective, *arguments)
            self.last = (lambda: pass_over(objective, *arguments), result)
            return result

        monkeypatch.setattr(cuda_graphs.Objective, "pass_over", recorded)

    @contextmanager
    def graph(self, graph, pool):
        yield
        if self.fails:
            raise RuntimeError("operation failed due to a previous error during capture")
        again, captured = self.last

        def replay():
            for old, new in zip(tensors(captured), tensors(again()), strict=True):
                old.copy_(new)

        graph.replay = replay
        self.captures.append(graph)
        self.pools.append(pool)


def tensors(result):
    return [result.loss, result.logits, *result.parameters, *result.layers]


@pytest.fixture
def fake_cuda(monkeypatch):
    return FakeCuda(monkeypatch)


def passes(objective, weights, batch):
    """Yield the result of each of the four passes of a step."""
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
        for a, b in zip(captured, eager, strict=True):  # all four together: none has overwritten another
            torch.testing.assert_close([a.loss, *a.parameters, *a.layers], [b.loss, *b.parameters, *b.layers])
    # Three kinds of passes, each without and with drop path. The epochs share them.
    assert len(fake_cuda.captures) == len(graphs.passes) == 6
    assert set(fake_cuda.pools) == {(0, 1)}


def test_a_failed_capture_ends_the_search_and_names_the_flag(fake_cuda):
    supernet = make_supernet("s2", channels=2, layers=4)
    weights, graphs = mixing_weights_of(supernet), Graphs(8)
    fake_cuda.fails = True
    with pytest.raises(RuntimeError, match="during capture") as caught:
        CapturedObjective(supernet, graphs=graphs).gradients(
            weights, Batch(torch.randn(8, 3, 8, 8), torch.arange(8), 0), [0]
        )
    assert caught.value.__notes__ == ["--cuda_graphs: a CUDA graph could not be captured; search without this flag"]
    assert not graphs.passes
