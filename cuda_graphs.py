"""A pass over a batch as one CUDA graph: its thousands of kernels are launched by a single call.

Captured are the passes of Objective.gradients, for whole batches; others run as they are, second derivatives too.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from data import Batch
from gradients import Gradients, Objective, Tensors


class Graphs:
    """The captured passes of one supernet.

    Args:
        batch_size: of the batches that are worth a graph.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.failed = False
        self.passes: dict[tuple[tuple[int, ...], bool, tuple[float, float]], _Pass] = {}


@dataclass
class CapturedObjective(Objective):
    """An objective that captures a pass when it is first asked for, and replays it from then on."""

    graphs: Graphs = field(default_factory=lambda: Graphs(0))

    def gradients(self, weights: Tensors, batch: Batch, layers: Sequence[int], parameters: bool = True) -> Gradients:
        """`Objective.gradients`, by a graph. Where a capture fails, all goes on without, with one warning."""
        graphs, epoch = self.graphs, (self.drop_path_prob, self.skip_beta)
        if graphs.failed or len(batch.labels) != graphs.batch_size:
            return super().gradients(weights, batch, layers, parameters)
        key = (tuple(layers), parameters, epoch)
        if key not in graphs.passes:
            # What was captured under another epoch's numbers is never asked for again.
            graphs.passes = {known: captured for known, captured in graphs.passes.items() if known[-1] == epoch}
            try:
                graphs.passes[key] = _Pass(self, weights, batch, layers, parameters)
            except Exception as error:
                graphs.failed = True
                graphs.passes.clear()
                warnings.warn(f"--cuda_graphs: goes on without, for the capture failed: {error}", stacklevel=2)
                return super().gradients(weights, batch, layers, parameters)
        torch.manual_seed(batch.seed)
        return graphs.passes[key](weights, batch)  # pragma: no cover (see _Pass)


class _Pass:  # pragma: no cover (only a GPU makes one)
    """A captured pass, with the memory that it reads and writes."""

    def __init__(
        self, objective: Objective, weights: Tensors, batch: Batch, layers: Sequence[int], parameters: bool
    ) -> None:
        self.weights = [weight.detach().clone() for weight in weights]
        self.batch = Batch(batch.images.clone(), batch.labels.clone(), batch.seed)
        arguments = (self.weights, self.batch, layers, parameters)
        # Libraries set themselves up in their first calls, which must not be captured, and leave no trace.
        kept = [buffer.clone() for buffer in objective.supernet.buffers()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                objective.pass_over(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            for buffer, value in zip(objective.supernet.buffers(), kept, strict=True):
                buffer.copy_(value)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = objective.pass_over(*arguments)

    def __call__(self, weights: Tensors, batch: Batch) -> Gradients:
        """The pass at other weights, on another batch of the same size."""
        torch._foreach_copy_(self.weights, [weight.detach() for weight in weights])
        self.batch.images.copy_(batch.images)
        self.batch.labels.copy_(batch.labels)
        self.graph.replay()
        # The next replay writes over what this one leaves.
        loss, logits, parameters, layers = self.result
        return Gradients(loss.clone(), logits.clone(), [g.clone() for g in parameters], [g.clone() for g in layers])
