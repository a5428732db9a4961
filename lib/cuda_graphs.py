"""Capture passes over a batch as CUDA graphs, each of which launches its thousands of kernels in a single call.

The passes of `Objective.gradients` over full batches are captured. Other passes and second derivatives run eagerly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lib.batches import Batch
from lib.objective import Gradients, Objective, Tensors


class Graphs:
    """The captured passes of one supernet. They share their memory.

    Args:
        batch_size: Size of a full batch. Smaller batches are not captured.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.pool: Any = None  # created with the first graph
        self.passes: dict[tuple[tuple[int, ...], bool, bool], _Pass] = {}


@dataclass
class CapturedObjective(Objective):
    """An objective that captures each pass on its first call and replays it in later calls."""

    graphs: Graphs = field(default_factory=lambda: Graphs(0))

    def gradients(self, weights: Tensors, batch: Batch, layers: Sequence[int], parameters: bool = True) -> Gradients:
        """Like `Objective.gradients`, with a CUDA graph for full batches.

        Raises:
            RuntimeError: torch cannot capture the pass. Afterwards, torch's random generator is unusable.
        """
        graphs = self.graphs
        if len(batch.labels) != graphs.batch_size:
            return super().gradients(weights, batch, layers, parameters)
        key = (tuple(layers), parameters, float(self.drop_path_prob) > 0)
        if key not in graphs.passes:
            graphs.pool = graphs.pool or torch.cuda.graph_pool_handle()
            try:
                graphs.passes[key] = _Pass(self, weights, batch, layers, parameters)
            except RuntimeError as error:
                error.add_note("--cuda_graphs: a CUDA graph could not be captured; search without this flag")
                raise
        self.seed(batch)
        return graphs.passes[key](self, weights, batch)


class _Pass:
    """A captured pass with its input and output tensors."""

    def __init__(
        self, objective: CapturedObjective, weights: Tensors, batch: Batch, layers: Sequence[int], parameters: bool
    ) -> None:
        self.weights = [weight.detach().clone() for weight in weights]
        self.batch = Batch(batch.images.clone(), batch.labels.clone(), batch.seed)
        #: as tensors, so that one graph serves all epochs
        self.drop_path_prob, self.skip_beta = (
            torch.tensor(float(value), dtype=torch.float64, device=batch.images.device)
            for value in (objective.drop_path_prob, objective.skip_beta)
        )
        dropping = self.drop_path_prob if float(objective.drop_path_prob) > 0 else 0.0
        own = Objective(objective.supernet, objective.autocast, dropping, self.skip_beta)
        arguments = (self.weights, self.batch, layers, parameters)
        stream = torch.cuda.current_stream()
        # Libraries initialize themselves in their first calls, which must not be captured.
        side = torch.cuda.Stream()
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            for _ in range(3):
                own.pass_over(*arguments)
        stream.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=objective.graphs.pool):
            self.result = own.pass_over(*arguments)

    def __call__(self, objective: Objective, weights: Tensors, batch: Batch) -> Gradients:
        """Replay the pass with other weights, another batch of the same size, and the current schedule."""
        torch._foreach_copy_(
            [*self.weights, self.batch.images], [*(weight.detach() for weight in weights), batch.images]
        )
        self.batch.labels.copy_(batch.labels)
        self.drop_path_prob.fill_(objective.drop_path_prob)
        self.skip_beta.fill_(objective.skip_beta)
        self.graph.replay()
        # The next replay overwrites these outputs.
        loss, logits, parameters, layers = self.result
        gradients = [*parameters, *layers]
        copies = [torch.empty_like(gradient) for gradient in gradients]
        torch._foreach_copy_(copies, gradients)  # one kernel, since all have one type
        return Gradients(loss.clone(), logits.clone(), copies[: len(parameters)], copies[len(parameters) :])
