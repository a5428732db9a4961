"""Perturbation-based selection (DARTS-PT, ICLR 2021): keep the operations that the supernet misses most.

First every edge is decided, in random order: each of its operations is masked in turn, and the one whose removal costs
the most validation accuracy is kept alone. Then every node drops edges, one after another, the one it misses least,
until `space.keep` are left. A cell of NAS-Bench-201 keeps all its edges, so that `none` is a choice there and no node
decides. Between two decisions the supernet is fine-tuned for a few epochs.

As in the released code, a decision is one of each kind of cell together, accuracy is measured with the statistics of
the batches, alpha keeps learning, and the learning rate follows a cosine from a tenth of the search's (it is constant
in NAS-Bench-201).
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genotypes import AnyCell, Edge
from lib import checkpoints
from lib.batches import Augmentation, Batches
from lib.cli import blaming
from lib.files import write_csv
from lib.objective import Objective
from lib.progress import StepProgress
from search.state import Search
from utils import Averages, accuracy

#: an epoch of the search: its number, the learning rate, the progress, and its name there
FineTune = Callable[[int, float, StepProgress, str], object]


class Perturbation:
    """A selection in progress.

    Args:
        search: The finished search. Its supernet is fine-tuned, and its mixing weights are fixed decision by decision.
        fine_tune: Runs an epoch of the search.

    Attributes:
        scores: A row for each accuracy that was measured.
        done: The number of finished stages.
    """

    def __init__(self, search: Search, fine_tune: FineTune) -> None:
        self.search, self.fine_tune = search, fine_tune
        settings, space = search.settings, search.space
        self.finetune_epochs, self.epochs_done = settings.finetune_epochs, len(search.history.rows)
        self.scores: list[dict[str, Any]] = []
        self.done = 0
        search.weight_optimizer.state.clear()  # fine-tuning starts without momentum
        generator = np.random.default_rng((settings.seed, settings.epochs))
        deciding = [node for node, edges in space.edges_of.items() if space.keep and len(edges) > space.keep]
        #: kind of cell -> the order in which its edges, then its nodes, are decided
        self.order = {
            kind: [*generator.permutation(len(space.edges)).tolist(), *generator.permutation(deciding).tolist()]
            for kind in search.architecture.alphas
        }
        self.edges, self.decisions = len(space.edges), len(space.edges) + len(deciding)
        plain = Augmentation.none(search.dataset)
        self.batches = Batches(search.valid, settings.batch_size, plain, (settings.seed, 0, 2))

    @property
    def stages(self) -> list[tuple[str, int]]:
        """("decide", number) and ("finetune", number), in their order."""
        stages: list[tuple[str, int]] = []
        for decision in range(self.decisions):
            stages.append(("decide", decision))
            if decision < self.decisions - 1:
                first = decision * self.finetune_epochs
                stages += [("finetune", first + epoch) for epoch in range(self.finetune_epochs)]
        return stages

    def steps(self, stage: tuple[str, int]) -> int:
        """The number of batches of a stage."""
        what, number = stage
        if what == "finetune":
            return len(self.search.batches(0)[0])
        return len(self.batches) * sum(self._measurements(kind, number) for kind in self.order)

    def _measurements(self, kind: str, number: int) -> int:
        if number < self.edges:
            return len(self._candidates(kind, self.order[kind][number]))
        edges = len(self.search.space.edges_of[self.order[kind][number]])
        return sum(range((self.search.space.keep or 0) + 1, edges + 1))

    def _candidates(self, kind: str, edge: int) -> list[int]:
        """The operations of an edge that a cell may have: `none` only if the space keeps all edges."""
        space = self.search.space
        return [index for index, name in enumerate(space.cells[kind][edge]) if space.keep is None or name != "none"]

    def run(self, stage: tuple[str, int], progress: StepProgress) -> None:
        """Decide, or run an epoch of fine-tuning."""
        what, number = stage
        if what == "finetune":
            settings = self.search.settings
            total = (self.decisions - 1) * self.finetune_epochs
            high = settings.learning_rate / 10
            low = min(settings.learning_rate_min, high) if self.search.space.keep else high
            learning_rate = low + (high - low) * (1 + math.cos(math.pi * number / total)) / 2
            self.fine_tune(settings.epochs + number, learning_rate, progress, f"fine-tuning {number + 1}/{total}")
        else:
            progress.start(f"decision {number + 1}/{self.decisions}", self.steps(stage))
            for kind, order in self.order.items():
                decide = self._decide_edge if number < self.edges else self._decide_node
                decide(number + 1, kind, order[number], progress)
        self.done += 1

    def _decide_edge(self, number: int, kind: str, edge: int, progress: StepProgress) -> None:
        """Keep the operation whose removal costs the most accuracy, and of equals the most loss."""
        candidates, figures = self._candidates(kind, edge), []
        for operation in candidates:
            weights = self._weights()
            weights[kind][edge, operation] = 0
            figures.append(self.evaluate(weights, progress))
        kept = min(range(len(candidates)), key=lambda index: (figures[index][0], -figures[index][1]))
        names = self.search.space.cells[kind][edge]
        self._log(number, kind, [(edge, names[operation]) for operation in candidates], figures, kept, "kept")
        fixed = self.search.architecture.fixed[kind]
        fixed[edge] = 0
        fixed[edge, candidates[kept]] = 1

    def _decide_node(self, number: int, kind: str, node: int, progress: StepProgress) -> None:
        """Drop the edges whose removal costs the least accuracy, until `space.keep` are left."""
        space, fixed = self.search.space, self.search.architecture.fixed[kind]
        left = space.edges_of[node]
        while space.keep and len(left) > space.keep:
            figures = []
            for edge in left:
                weights = self._weights()
                weights[kind][edge] = 0
                figures.append(self.evaluate(weights, progress))
            dropped = max(range(len(left)), key=lambda index: (figures[index][0], -figures[index][1]))
            self._log(number, kind, [(edge, "edge") for edge in left], figures, dropped, "dropped")
            fixed[left.pop(dropped)] = 0

    def _log(
        self,
        number: int,
        kind: str,
        removed: list[tuple[int, str]],
        figures: list[tuple[float, float]],
        chosen: int,
        outcome: str,
    ) -> None:
        """Add a row for each removal, with the accuracy and loss of the supernet without it."""
        for index, ((edge, name), (valid_accuracy, valid_loss)) in enumerate(zip(removed, figures, strict=True)):
            source, target = self.search.space.edges[edge]
            row = {"decision": number, "cell": kind, "source": source, "target": target, "removed": name}
            row |= {"valid_accuracy": valid_accuracy, "valid_loss": valid_loss}
            self.scores.append({**row, "outcome": outcome if index == chosen else ""})

    def _weights(self) -> dict[str, Tensor]:
        """A copy of the mixing weights."""
        return {kind: p.detach().clone() for kind, p in self.search.architecture.mixing_weights().items()}

    def evaluate(self, mixing: Mapping[str, Tensor], progress: StepProgress) -> tuple[float, float]:
        """Accuracy and loss of the supernet on the validation images.

        Args:
            mixing: The mixing weights of each kind of cell.
        """
        search, averages = self.search, Averages()
        objective, weights = Objective(search.supernet, search.autocast), search.layer_weights(mixing)
        with torch.no_grad():
            for batch in self.batches:
                loss, logits = objective(weights, search.cast(batch))
                averages.add("loss", loss, len(batch.labels))
                averages.add("accuracy", accuracy(logits, batch.labels), len(batch.labels))
                progress.advance()
        means = averages.compute()
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(f"valid_loss is {means['loss']} in stage {self.done + 1} of the selection")
        return means["accuracy"], means["loss"]

    def cell(self) -> AnyCell:
        """The cell, after all decisions."""
        space, chosen = self.search.space, {}
        for kind, fixed in self.search.architecture.fixed.items():
            kept = [edge for edge in range(self.edges) if bool(fixed[edge].any())]
            names = {edge: space.cells[kind][edge][int(fixed[edge].argmax())] for edge in kept}
            chosen[kind] = [Edge(name, space.edges[edge][1], space.edges[edge][0]) for edge, name in names.items()]
        return self.search.assemble(chosen, pairs=True)

    def snapshot(self) -> dict[str, Any]:
        """The content of a checkpoint: tensors and plain values."""
        own = {name: getattr(self, name) for name in ("scores", "done", "finetune_epochs", "epochs_done")}
        return {**self.search.snapshot(), "perturbation": own}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `snapshot`.

        Raises:
            ValueError: It is the snapshot of another selection.
        """
        own = state["perturbation"]
        for name in ("finetune_epochs", "epochs_done"):
            if own[name] != getattr(self, name):
                raise ValueError(
                    f"the selection began with {name} {own[name]}, expected {getattr(self, name)}; name another folder"
                )
        self.search.restore(state)
        self.scores, self.done = own["scores"], own["done"]


def select_by_perturbation(search: Search, fine_tune: FineTune, folder: Path, resume_with: str) -> AnyCell:
    """DARTS-PT's cell of a search, with scores.csv in `folder`; resumes an interrupted selection there.

    Args:
        fine_tune: Runs an epoch of the search.
        resume_with: How to resume, for the message after an interruption.

    Raises:
        KeyboardInterrupt: With that message.
        InputError: The folder holds another selection.
    """
    state = Perturbation(search, fine_tune)
    kept, keep = folder / "checkpoints", search.settings.keep_checkpoints
    with blaming(str(folder)):
        folder.mkdir(exist_ok=True)
        last = checkpoints.load_last(kept)
        if last:
            state.restore(last[1])
    stages = state.stages
    steps = [state.steps(stage) for stage in stages]
    decisions = state.decisions
    print(
        f"perturbation-based selection: {decisions} decisions, {state.finetune_epochs} epochs between two", flush=True
    )
    with StepProgress("selection", sum(steps), sum(steps[: state.done])) as progress:
        try:
            for stage in stages[state.done :]:
                state.run(stage, progress)
                checkpoints.save(kept / f"stage_{state.done:05d}.ckpt", state.snapshot(), keep)
                if stage[0] == "decide":
                    write_csv(folder / "scores.csv", state.scores)
                    progress.line(_summary(state.scores, stage[1] + 1, decisions))
        except KeyboardInterrupt:
            done = f"after {state.done} of {len(stages)} stages of the selection"
            raise KeyboardInterrupt(f"{done}; {resume_with}") from None
    write_csv(folder / "scores.csv", state.scores)
    return state.cell()


def _summary(scores: list[dict[str, Any]], number: int, decisions: int) -> str:
    outcomes = [
        f"{row['cell']} {row['source']} -> {row['target']} "
        + (f"keeps {row['removed']}" if row["outcome"] == "kept" else "dropped")
        + f" ({100 * row['valid_accuracy']:.1f} % without it)"
        for row in scores
        if row["decision"] == number and row["outcome"]
    ]
    return f"decision {number}/{decisions}  " + ", ".join(outcomes)
