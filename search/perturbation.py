"""Perturbation-based selection (DARTS-PT, ICLR 2021): keep the operations whose removal costs the most accuracy.

First the edges are decided in random order. For each edge, every operation is masked in turn, and the edge keeps only
the operation whose removal costs the most validation accuracy. Then the nodes are decided in random order. Each node
repeatedly drops the edge whose removal costs the least accuracy, until `space.keep` edges are left. In NAS-Bench-201
a cell keeps all its edges, so `none` can be chosen and nodes are not decided. Between two decisions the supernet is
fine-tuned for a few epochs.

These details follow the released code: each decision is made for all kinds of cells, accuracy is measured with batch
statistics, alpha is trained during fine-tuning, and the learning rate is a tenth of the search's (D6).

With --released, three more details follow it:

- `none` can be kept, and such an edge counts as dropped. A node that needs such edges takes the first ones, with their
  first operations (D5).
- If accuracies are equal, the first operation is kept and the last edge is dropped; the loss does not decide (D8).
- In NAS-Bench-201, fine-tuning before the last decision is one epoch shorter (D9).
"""

import math
from collections.abc import Callable, Mapping
from itertools import islice
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
from search.state import SearchState
from utils import Averages, accuracy

#: runs an epoch of the search: (number, learning rate, progress, label in the progress bar)
FineTune = Callable[[int, float, StepProgress, str], object]


class Perturbation:
    """A selection in progress.

    Args:
        state: The finished search. Its supernet is fine-tuned, and its mixing weights are fixed decision by decision.
        fine_tune: Runs an epoch of the search.

    Attributes:
        scores: A row for each measured accuracy.
        done: The number of finished stages.
        measured: The number of measurements.
    """

    def __init__(self, state: SearchState, fine_tune: FineTune) -> None:
        self.state, self.fine_tune = state, fine_tune
        settings, space = state.settings, state.space
        self.settings = {"finetune_epochs": settings.finetune_epochs, "released": settings.released}
        self.settings |= {name: getattr(settings, name) for name in ("selection_criterion", "selection_augment")}
        self.finetune_epochs = settings.finetune_epochs
        self.scores: list[dict[str, Any]] = []
        self.done = self.measured = 0
        state.weight_optimizer.state.clear()  # fine-tuning starts without momentum
        generator = np.random.default_rng((settings.seed, settings.epochs))
        deciding = [node for node, edges in space.edges_of.items() if space.keep and len(edges) > space.keep]
        #: kind of cell -> the order in which its edges, then its nodes, are decided
        self.order = {
            kind: [*generator.permutation(len(space.edges)).tolist(), *generator.permutation(deciding).tolist()]
            for kind in state.architecture.alphas
        }
        self.edges, self.decisions = len(space.edges), len(space.edges) + len(deciding)
        self.augmentation = state.augmentation if settings.selection_augment else Augmentation.none(state.dataset)

    @property
    def stages(self) -> list[tuple[str, int]]:
        """The stages in order, each ("decide", number) or ("finetune", number)."""
        epochs = [self.finetune_epochs] * (self.decisions - 1)
        if self.state.settings.released and self.state.space.keep is None and self.finetune_epochs:
            epochs[-1] -= 1  # (D9)
        numbers = iter(range(sum(epochs)))
        stages: list[tuple[str, int]] = []
        for decision, following in enumerate([*epochs, 0]):
            stages += [("decide", decision), *(("finetune", number) for number in islice(numbers, following))]
        return stages

    def steps(self, stage: tuple[str, int]) -> int:
        """The number of batches of a stage."""
        what, number = stage
        if what == "finetune":
            return len(self.state.batches(0)[0])
        return len(self.batches()) * sum(self._measurements(kind, number) for kind in self.order)

    def _measurements(self, kind: str, number: int) -> int:
        if number < self.edges:
            return len(self._candidates(kind, self.order[kind][number]))
        edges = len(self.state.space.edges_of[self.order[kind][number]])
        return sum(range((self.state.space.keep or 0) + 1, edges + 1))

    def _candidates(self, kind: str, edge: int) -> list[int]:
        """The operations that are compared on an edge."""
        released = self.state.settings.released  # the released code may keep `none` (D5)
        return list(range(len(self.state.space.cells[kind][edge]))) if released else self._operations(kind, edge)

    def _operations(self, kind: str, edge: int) -> list[int]:
        """The operations that a derived cell may have on an edge: `none` only if the space keeps all edges."""
        space = self.state.space
        return [index for index, name in enumerate(space.cells[kind][edge]) if space.keep is None or name != "none"]

    def run(self, stage: tuple[str, int], progress: StepProgress) -> None:
        """Run a stage: make a decision, or run an epoch of fine-tuning."""
        what, number = stage
        if what == "finetune":
            settings = self.state.settings
            total = sum(what == "finetune" for what, _ in self.stages)
            name = f"fine-tuning {number + 1}/{total}"
            self.fine_tune(settings.epochs + number, settings.learning_rate / 10, progress, name)
        else:
            progress.start(f"decision {number + 1}/{self.decisions}", self.steps(stage))
            for kind, order in self.order.items():
                decide = self._decide_edge if number < self.edges else self._decide_node
                decide(number + 1, kind, order[number], progress)
        self.done += 1

    def _decide_edge(self, number: int, kind: str, edge: int, progress: StepProgress) -> None:
        """Keep the operation whose removal costs the most accuracy."""
        candidates, figures = self._candidates(kind, edge), []
        for operation in candidates:
            weights = self._weights()
            weights[kind][edge, operation] = 0
            figures.append(self.evaluate(weights, progress))
        kept = min(range(len(candidates)), key=lambda index: self._score(figures[index]))  # the first if equal
        names = self.state.space.cells[kind][edge]
        self._log(number, kind, [(edge, names[operation]) for operation in candidates], figures, kept, "kept")
        fixed = self.state.architecture.fixed[kind]
        fixed[edge] = 0
        fixed[edge, candidates[kept]] = 1

    def _decide_node(self, number: int, kind: str, node: int, progress: StepProgress) -> None:
        """Drop the edges whose removal costs the least accuracy, until `space.keep` are left."""
        space, fixed = self.state.space, self.state.architecture.fixed[kind]
        left = space.edges_of[node]
        while space.keep and len(left) > space.keep:
            figures = []
            for edge in left:
                weights = self._weights()
                weights[kind][edge] = 0
                figures.append(self.evaluate(weights, progress))
            dropped = max(
                reversed(range(len(left))), key=lambda index: self._score(figures[index])
            )  # the last if equal
            self._log(number, kind, [(edge, "edge") for edge in left], figures, dropped, "dropped")
            fixed[left.pop(dropped)] = 0

    def _score(self, figures: tuple[float, float]) -> tuple[float, ...]:
        """The score of the supernet after a removal: its accuracy or minus its loss, as `selection_criterion` says.

        The other measure breaks ties, except with --released.
        """
        accuracy, loss = figures
        ranked = (accuracy, -loss) if self.state.settings.selection_criterion == "accuracy" else (-loss, accuracy)
        return ranked[:1] if self.state.settings.released else ranked

    def batches(self) -> Batches:
        """The validation batches of the next measurement."""
        settings = self.state.settings
        number = self.measured if settings.selection_augment else 0
        return Batches(self.state.valid, settings.batch_size, self.augmentation, (settings.seed, number, 2))

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
            source, target = self.state.space.edges[edge]
            row = {"decision": number, "cell": kind, "source": source, "target": target, "removed": name}
            row |= {"valid_accuracy": valid_accuracy, "valid_loss": valid_loss}
            self.scores.append({**row, "outcome": outcome if index == chosen else ""})

    def _weights(self) -> dict[str, Tensor]:
        """A copy of the mixing weights."""
        return {kind: p.detach().clone() for kind, p in self.state.architecture.mixing_weights().items()}

    def evaluate(self, mixing: Mapping[str, Tensor], progress: StepProgress) -> tuple[float, float]:
        """Measure the accuracy and the loss of the supernet on the validation images.

        Args:
            mixing: The mixing weights of each kind of cell.
        """
        state, averages = self.state, Averages()
        objective, weights = Objective(state.supernet, state.autocast), state.layer_weights(mixing)
        with torch.no_grad():
            for batch in self.batches():
                loss, logits = objective(weights, state.cast(batch))
                averages.add("loss", loss, len(batch.labels))
                averages.add("accuracy", accuracy(logits, batch.labels), len(batch.labels))
                progress.advance()
        self.measured += 1
        means = averages.compute()
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(f"valid_loss is {means['loss']} in stage {self.done + 1} of the selection")
        return means["accuracy"], means["loss"]

    def cell(self) -> AnyCell:
        """Return the cell after all decisions."""
        space, chosen = self.state.space, dict[str, list[Edge]]()
        for kind, fixed in self.state.architecture.fixed.items():
            weights, chosen[kind] = fixed.nan_to_num(0).tolist(), []
            for node, edges in space.edges_of.items():
                # The first operation with the largest weight. `none` counts only if the space keeps all edges.
                # Otherwise an edge that keeps `none` ranks like a dropped edge (D5).
                best = {edge: max(self._operations(kind, edge), key=weights[edge].__getitem__) for edge in edges}
                ranked = sorted(edges, key=lambda edge: -weights[edge][best[edge]])[: space.keep]
                chosen[kind] += [
                    Edge(space.cells[kind][edge][best[edge]], node, space.edges[edge][0]) for edge in sorted(ranked)
                ]
        return self.state.assemble(chosen, pairs=True)

    def snapshot(self) -> dict[str, Any]:
        """The content of a checkpoint: tensors and plain values."""
        own = {name: getattr(self, name) for name in ("scores", "done", "measured", "settings")}
        return {**self.state.snapshot(), "perturbation": own}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Restore a `snapshot`.

        Raises:
            ValueError: The snapshot is from another selection.
        """
        own = snapshot["perturbation"]
        for name, value in self.settings.items():
            if own["settings"][name] != value:
                began = own["settings"][name]
                raise ValueError(f"the selection began with --{name} {began}, not {value}; name another folder")
        if snapshot["history"]["rows"] != self.state.history.rows:
            raise ValueError("the selection began on another search, or on fewer epochs; name another folder")
        self.state.restore(snapshot)
        self.scores, self.done, self.measured = own["scores"], own["done"], own["measured"]


def select_by_perturbation(state: SearchState, fine_tune: FineTune, folder: Path, resume_with: str) -> AnyCell:
    """Derive the cell of a search by DARTS-PT, or resume an interrupted selection in `folder`; write scores.csv there.

    Args:
        fine_tune: Runs an epoch of the search.
        resume_with: How to resume, for the message after an interruption.

    Raises:
        KeyboardInterrupt: The selection was interrupted; the message says how to resume.
        InputError: The folder has another selection.
    """
    selection = Perturbation(state, fine_tune)
    kept, keep = folder / "checkpoints", state.settings.keep_checkpoints
    with blaming(str(folder)):
        folder.mkdir(exist_ok=True)
        last = checkpoints.load_last(kept)
        if last:
            selection.restore(last[1])
    stages = selection.stages
    steps = [selection.steps(stage) for stage in stages]
    saved = selection.done
    decisions = selection.decisions
    print(
        f"perturbation-based selection: {decisions} decisions, "
        f"epochs of fine-tuning between two of them: {selection.finetune_epochs}",
        flush=True,
    )
    with StepProgress("selection", sum(steps), sum(steps[: selection.done])) as progress:
        try:
            for stage in stages[selection.done :]:
                selection.run(stage, progress)
                checkpoints.save(kept / f"stage_{selection.done:05d}.ckpt", selection.snapshot(), keep)
                saved = selection.done
                if stage[0] == "decide":
                    write_csv(folder / "scores.csv", selection.scores)
                    progress.line(_summary(selection.scores, stage[1] + 1, decisions))
        except KeyboardInterrupt:
            done = f"after {saved} of {len(stages)} stages of the selection"
            raise KeyboardInterrupt(f"{done}; {resume_with}") from None
    write_csv(folder / "scores.csv", selection.scores)
    return selection.cell()


def _summary(scores: list[dict[str, Any]], number: int, decisions: int) -> str:
    outcomes = [
        f"{row['cell']} {row['source']} -> {row['target']} "
        + (f"keeps {row['removed']}" if row["outcome"] == "kept" else "dropped")
        + f" ({100 * row['valid_accuracy']:.1f} % without it)"
        for row in scores
        if row["decision"] == number and row["outcome"]
    ]
    return f"decision {number}/{decisions}  " + ", ".join(outcomes)
