"""Perturbation-based selection (DARTS-PT, ICLR 2021): the supernet says which operations it misses most.

First every edge is decided, in random order: each of its operations is masked in turn, and the one whose removal costs
the most validation accuracy is kept alone. Then every node drops edges, one after another, the one it misses least,
until two are left; a cell of NAS-Bench-201 keeps all its edges, so that there `none` is a choice and no node decides.
Between two decisions the supernet is fine-tuned for a few epochs. As in the released code, a decision is one of the
normal and one of the reduction cell together, accuracy is measured with the batches' own statistics, alpha goes on
learning, and the learning rate is a cosine from a tenth of the search's (constant in NAS-Bench-201).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genotypes import AnyCell
from lib import checkpoints
from lib.batches import Augmentation, Batches
from lib.cli import blaming
from lib.files import write_csv
from lib.objective import Objective
from lib.progress import StepProgress
from search.bilevel import Schedule, Search, cosine_learning_rate
from utils import Averages, accuracy


class Perturbation:
    """A selection under way.

    Args:
        search: the finished search; its supernet is fine-tuned, and its weights are fixed, decision by decision.
        finetune_epochs: between two decisions.

    Attributes:
        scores: a row for each accuracy that was measured.
        done: decisions and fine-tuning epochs behind it.
    """

    def __init__(self, search: Search, finetune_epochs: int) -> None:
        self.search, self.finetune_epochs = search, finetune_epochs
        self.scores: list[dict[str, Any]] = []
        self.done = 0
        #: the search that is decided on: its settings, but for those of the machine and the rule, and its epochs so far
        elsewhere = {"save", "resume", "device", "data", "download", "keep_checkpoints", "compile", "cuda_graphs"}
        elsewhere |= {"memory_format", "halves", "table", "table_dataset", "seeds"}
        rule = {"selection", "threshold", "finetune_epochs"}
        self.origin = {name: value for name, value in asdict(search.settings).items() if name not in elsewhere | rule}
        self.origin["epochs_done"] = len(search.rows)
        search.weight_optimizer.state.clear()  # fine-tuning starts with a momentum of its own
        generator = np.random.default_rng((search.settings.seed, search.settings.epochs))
        space = search.space
        deciding = [node for node, edges in space.edges_of.items() if space.keep and len(edges) > space.keep]
        #: a decision for every edge, then one for every node with edges to spare
        self.edges, self.decisions = len(space.edges), len(space.edges) + len(deciding)
        #: kind of cell -> the order in which its edges, then its nodes, are decided
        self.order = {
            kind: [*generator.permutation(self.edges).tolist(), *generator.permutation(deciding).tolist()]
            for kind in search.architecture.alphas
        }
        self.batches = Batches(
            search.valid,
            search.settings.batch_size,
            Augmentation.none(search.dataset),
            (search.settings.seed, 0, 2),
        )

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
        """Batches that a stage takes."""
        what, number = stage
        if what == "finetune":
            return len(self.search.batches(0)[0])
        return len(self.batches) * sum(self._measurements(kind, number) for kind in self.order)

    def _measurements(self, kind: str, number: int) -> int:
        if number < self.edges:
            return len(self._candidates(kind, self.order[kind][number]))
        keep, edges = self.search.space.keep, len(self.search.space.edges_of[self.order[kind][number]])
        assert keep is not None  # or there are no decisions about nodes
        return sum(range(keep + 1, edges + 1))

    def _candidates(self, kind: str, edge: int) -> list[int]:
        """The operations of an edge that a cell may have: all but `none`, where a cell keeps all its edges that too."""
        space = self.search.space
        return [index for index, name in enumerate(space.cells[kind][edge]) if space.keep is None or name != "none"]

    def run(self, stage: tuple[str, int], progress: StepProgress) -> None:
        """A decision, or an epoch of fine-tuning."""
        what, number = stage
        if what == "finetune":
            settings = self.search.settings
            total = (self.decisions - 1) * self.finetune_epochs
            high = settings.learning_rate / 10
            # The released code for NAS-Bench-201, whose cells keep every edge, leaves it at a tenth.
            low = settings.learning_rate_min if self.search.space.keep else high
            now = Schedule(cosine_learning_rate(high, min(low, high), number / total))
            self.search.run_epoch(settings.epochs + number, now, progress, f"fine-tuning {number + 1}/{total}")
        else:
            progress.start(f"decision {number + 1}/{self.decisions}", self.steps(stage))
            for kind, order in self.order.items():
                decide = self._decide_edge if number < self.edges else self._decide_node
                decide(number + 1, kind, order[number], progress)
        self.done += 1

    def _decide_edge(self, number: int, kind: str, edge: int, progress: StepProgress) -> None:
        candidates = self._candidates(kind, edge)
        figures = []
        for operation in candidates:
            weights = self._weights()
            weights[kind][edge, operation] = 0
            figures.append(self.evaluate(weights, progress))
        # the greatest loss of accuracy; among equals the greatest loss
        kept = min(range(len(candidates)), key=lambda index: (figures[index][0], -figures[index][1]))
        names = self.search.space.cells[kind][edge]
        self._log(number, kind, [(edge, names[operation]) for operation in candidates], figures, kept, True)
        fixed = self.search.architecture.fixed[kind]
        fixed[edge] = 0
        fixed[edge, candidates[kept]] = 1

    def _decide_node(self, number: int, kind: str, node: int, progress: StepProgress) -> None:
        space, fixed = self.search.space, self.search.architecture.fixed[kind]
        left = space.edges_of[node]
        assert space.keep is not None
        while len(left) > space.keep:
            figures = []
            for edge in left:
                weights = self._weights()
                weights[kind][edge] = 0
                figures.append(self.evaluate(weights, progress))
            dropped = max(range(len(left)), key=lambda index: (figures[index][0], -figures[index][1]))
            self._log(number, kind, [(edge, self._operation(kind, edge)) for edge in left], figures, dropped, False)
            fixed[left.pop(dropped)] = 0

    def _log(
        self,
        number: int,
        kind: str,
        removed: list[tuple[int, str]],
        figures: list[tuple[float, float]],
        chosen: int,
        kept: bool,
    ) -> None:
        """A row for each removal: what was removed, what the supernet did without it, and what became of it."""
        for index, ((edge, operation), (valid_accuracy, valid_loss)) in enumerate(zip(removed, figures, strict=True)):
            source, target = self.search.space.edges[edge]
            self.scores.append(
                {
                    "decision": number,
                    "cell": kind,
                    "source": source,
                    "target": target,
                    "removed": operation if kept else "edge",
                    "valid_accuracy": valid_accuracy,
                    "valid_loss": valid_loss,
                    "outcome": ("kept" if kept else "dropped") if index == chosen else "",
                }
            )

    def _weights(self) -> dict[str, Tensor]:
        """The mixing weights now, to be changed."""
        return {kind: w.detach().clone() for kind, w in self.search.architecture.mixing_weights().items()}

    def evaluate(self, mixing: Mapping[str, Tensor], progress: StepProgress) -> tuple[float, float]:
        """Accuracy and loss of the supernet on the validation images under mixing weights of each kind of cell."""
        search, log = self.search, Averages()
        objective = Objective(search.supernet, search.autocast)
        weights = search.spread(mixing)
        with torch.no_grad():
            for batch in self.batches:
                loss, logits = objective(weights, search.cast(batch))
                log.add("loss", loss, len(batch.labels))
                log.add("accuracy", accuracy(logits, batch.labels), len(batch.labels))
                progress.advance()
        means = log.compute()
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(f"valid_loss is {means['loss']} in stage {self.done + 1} of the selection")
        return means["accuracy"], means["loss"]

    def _operation(self, kind: str, edge: int) -> str:
        """The operation that an edge was fixed to."""
        return self.search.space.cells[kind][edge][int(self.search.architecture.fixed[kind][edge].argmax())]

    def genotype(self) -> AnyCell:
        """The cell, when all is decided."""
        kept = {
            kind: {edge: self._operation(kind, edge) for edge in range(self.edges) if bool(fixed[edge].any())}
            for kind, fixed in self.search.architecture.fixed.items()
        }
        return self.search.assemble(kept)

    def snapshot(self) -> dict[str, Any]:
        """Everything that a checkpoint needs to resume the selection: tensors and plain values."""
        own = {"scores": self.scores, "done": self.done, "finetune_epochs": self.finetune_epochs}
        own |= {"search": self.origin, "fixed": dict(self.search.architecture.fixed)}
        return {**self.search.snapshot(), "perturbation": own}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `snapshot`.

        Raises:
            ValueError: it is one of another selection.
        """
        own = state.get("perturbation")
        if own is None:
            raise ValueError("its checkpoint is not one of a selection; expected another folder")
        if own["finetune_epochs"] != self.finetune_epochs:
            raise ValueError(
                f"begun with --finetune_epochs {own['finetune_epochs']}, expected {self.finetune_epochs}; "
                "name another folder for another selection"
            )
        differing = [name for name, value in self.origin.items() if own["search"].get(name) != value]
        if differing:
            raise ValueError(f"begun on another search, of other {', '.join(differing)}; expected another folder")
        self.search.restore(state)
        for kind, fixed in self.search.architecture.fixed.items():
            fixed.copy_(own["fixed"][kind])
        self.scores, self.done = own["scores"], own["done"]


def select_by_perturbation(search: Search, finetune_epochs: int, folder: Path, goes_on: str) -> AnyCell:
    """DARTS-PT's cell of a search, with its scores.csv in `folder`; goes on with what is there.

    Args:
        goes_on: what an interruption says, to be added to how far it got.

    Raises:
        KeyboardInterrupt: with that message.
        InputError: what is there is of another selection.
    """
    state = Perturbation(search, finetune_epochs)
    with blaming(str(folder)):
        folder.mkdir(exist_ok=True)
        kept, keep = folder / "checkpoints", search.settings.keep_checkpoints
        checkpoints.prune(kept, keep)
        last = checkpoints.load_last(kept)
        if last:
            state.restore(last[1])
    stages = state.stages
    steps = [state.steps(stage) for stage in stages]
    decisions = state.decisions
    print(f"perturbation-based selection: {decisions} decisions, {finetune_epochs} epochs between two", flush=True)
    with StepProgress("selection", sum(steps), sum(steps[: state.done])) as progress:
        try:
            for stage in stages[state.done :]:
                state.run(stage, progress)
                checkpoints.save(kept / f"stage_{state.done:05d}.ckpt", state.snapshot(), keep)
                if stage[0] == "decide":
                    write_csv(folder / "scores.csv", state.scores)
                    progress.line(_summary(state.scores, stage[1] + 1, decisions))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"after {state.done} of {len(stages)} stages of the selection; {goes_on}") from None
    write_csv(folder / "scores.csv", state.scores)
    return state.genotype()


def _summary(scores: list[dict[str, Any]], number: int, decisions: int) -> str:
    outcomes = [
        f"{row['cell']} {row['source']} -> {row['target']} "
        + (f"keeps {row['removed']}" if row["outcome"] == "kept" else "dropped")
        + f" ({100 * row['valid_accuracy']:.1f} % without it)"
        for row in scores
        if row["decision"] == number and row["outcome"]
    ]
    return f"decision {number}/{decisions}  " + ", ".join(outcomes)
