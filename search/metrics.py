"""The log of a search: meters of its steps, a row for each epoch, warnings, and the log files.

metrics.csv has the quantities that the Λ-DARTS paper studies: layer alignment, the gradient norm of each layer, the
entropy of the mixing weights, and the skip connections of the derived cell.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from architect import Architecture, ArchitectureGradient
from genotypes import AnyCell
from lib.files import write_atomically, write_csv
from lib.finite import FiniteCheck
from lib.objective import Tensors, norm
from regularizers import WeightGradient, aligned_layers, layer_alignment
from search.settings import CommonSettings
from spaces import Candidates, Space
from utils import Averages, accuracy

#: values of --reg that need no column `regularizer`: corr is the alignment itself, none and noise have no value
ALIGNMENTS = ("none", "noise", "corr")
#: gradients below this fraction of the largest layer's count as vanished
VANISHED = 1e-6
#: warn if lambda times the regularizer's gradient is more than this many times as long as the loss's gradient
LARGEST_RATIO = 10


class AlphaStep(NamedTuple):
    """The gradients of an alpha step."""

    result: ArchitectureGradient
    labels: Tensor  # of the validation batch
    gradient: list[Tensor]  # of alpha, including the gradient of its regularizer
    regularizer: Tensor | None = None  # value of the regularizer
    regularizer_gradient: Tensors = ()


class Meters(Averages):
    """The means of an epoch's steps, and a check that they are finite.

    Args:
        kinds: The kind of cell of each layer.
        epoch: The number of the epoch, counted from 0.
        reg: The regularizer of the weights, whose value is logged if it is not the alignment.
    """

    def __init__(self, architecture: Architecture, kinds: Sequence[str], epoch: int, reg: str = "none") -> None:
        super().__init__()
        self.architecture, self.kinds, self.epoch, self.reg = architecture, kinds, epoch, reg
        self.finite = FiniteCheck(next(architecture.parameters()).device)
        self._values: dict[str, Tensor] = {}

    def add_alpha_step(self, step: AlphaStep) -> None:
        """Add the quantities of an alpha step."""
        result, count = step.result, len(step.labels)
        self.add("valid_loss", result.loss, count)
        self.add("valid_accuracy", accuracy(result.logits, step.labels), count)
        aligned = [result.direct[layer] for layer in aligned_layers(self.kinds)]
        if len(aligned) > 1:
            self.add("valid_alignment", layer_alignment(aligned))
        self.add("layer_gradient_norms", torch.stack([g.norm() for g in result.direct]))
        if result.indirect:
            for part, gradients in (("direct", result.direct), ("indirect", result.indirect)):
                self.add(f"{part}_gradient_norm", norm(self.architecture.gradients(self.kinds, gradients)))
        if result.residual is not None:
            self.add("neumann_residual", result.residual)
        if step.regularizer is not None:
            self.add("alpha_regularizer", step.regularizer)
            self.add("alpha_regularizer_gradient_norm", norm(step.regularizer_gradient))
        self._values |= {
            "valid_loss": result.loss,
            "gradient of alpha": norm(step.gradient),
            "alpha": norm([alpha.detach() for alpha in self.architecture.parameters()]),
        }

    def add_weight_step(self, result: WeightGradient, clipped_norm: Tensor, labels: Tensor) -> None:
        """Add the quantities of a weight step."""
        self.add("train_loss", result.loss, len(labels))
        self.add("train_accuracy", accuracy(result.logits, labels), len(labels))
        self.add("loss_gradient_norm", norm(result.gradient))
        if result.regularizer_gradient:
            self.add("regularizer_gradient_norm", norm(result.regularizer_gradient))
        if len(result.layer_gradients) > 1:
            self.add("train_alignment", layer_alignment(result.layer_gradients))
            if self.reg not in ALIGNMENTS:
                self.add("regularizer", layer_alignment(result.layer_gradients, self.reg))
        self._values |= {"train_loss": result.loss, "gradient of the weights": clipped_norm}

    def check(self, step: int) -> None:
        """Check the quantities of a step, counted from 0.

        Raises:
            FloatingPointError: A quantity of this or an earlier step is not finite.
        """
        self.finite.add(self.epoch, step, self._values)
        self._values = {}


@dataclass
class History:
    """The record of a search's epochs so far, which is written to the log files.

    Attributes:
        operations: The candidates of each edge, for each kind of cell.
        rows: The rows of metrics.csv.
        genotypes: The cell of each epoch.
        alphas: alpha of each kind of cell, at the start and after each epoch.
    """

    operations: Mapping[str, Candidates]
    rows: list[dict[str, Any]] = field(default_factory=list)
    genotypes: list[dict[str, Any]] = field(default_factory=list)
    alphas: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add_alphas(self, architecture: Architecture) -> None:
        """Record alpha, with -inf in the places without an operation."""
        for kind, alpha in architecture.logits().items():
            self.alphas.setdefault(kind, []).append(alpha.detach().cpu().numpy().copy())

    def snapshot(self) -> dict[str, Any]:
        """The history as tensors and plain values."""
        alphas = {kind: torch.from_numpy(np.stack(values)) for kind, values in self.alphas.items()}
        return {"rows": self.rows, "genotypes": self.genotypes, "alphas": alphas}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a `snapshot`."""
        self.rows, self.genotypes = state["rows"], state["genotypes"]
        self.alphas = {kind: list(values.numpy()) for kind, values in state["alphas"].items()}

    def write(self, run: Path) -> None:
        """Write metrics.csv, genotypes.jsonl and alphas.npz."""
        write_csv(run / "metrics.csv", self.rows)
        lines = (json.dumps({"epoch": epoch, **cell}) + "\n" for epoch, cell in enumerate(self.genotypes, start=1))
        write_atomically(run / "genotypes.jsonl", "".join(lines))
        content = io.BytesIO()
        arrays: dict[str, Any] = {kind: np.stack(values) for kind, values in self.alphas.items()}
        for kind, edges in self.operations.items():  # "" in the places without an operation
            width = max(map(len, edges))
            arrays[f"{kind}_operations"] = np.array([[*names, *[""] * (width - len(names))] for names in edges])
        np.savez(content, **arrays)
        write_atomically(run / "alphas.npz", content.getvalue())


def epoch_columns(
    settings: CommonSettings, means: Mapping[str, Any], mixing: Mapping[str, Tensor], cell: AnyCell, space: Space
) -> dict[str, Any]:
    """The columns of metrics.csv that come from an epoch's means, its mixing weights and its derived cell."""
    sigmoid = settings.relaxation == "sigmoid"
    names = [
        *("train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "train_alignment", "valid_alignment"),
        *("loss_gradient_norm", "regularizer_gradient_norm", "derivative_cosine"),
    ]
    if settings.hypergradient != "first":
        names += ["direct_gradient_norm", "indirect_gradient_norm"]
    if settings.hypergradient == "implicit":
        names += ["neumann_residual"]
    if settings.alpha_reg != "none":
        names += ["alpha_regularizer", "alpha_regularizer_gradient_norm"]
    if settings.reg not in ALIGNMENTS:
        names += ["regularizer"]
    columns = {name: means.get(name) for name in names}
    columns |= {f"gradient_norm_layer_{layer}": value for layer, value in enumerate(means["layer_gradient_norms"])}
    columns |= {f"entropy_{kind}": entropy(weights, sigmoid) for kind, weights in mixing.items()}
    # Edges with one operation are left out: they have no choice.
    choices = {kind: weights[torch.tensor(space.counts[kind]) > 1] for kind, weights in mixing.items()}
    columns |= {f"saturated_{kind}": saturated(weights, sigmoid) for kind, weights in choices.items()}
    if sigmoid:
        gates = {kind: sum(counts) for kind, counts in space.counts.items()}
        over = {kind: (w >= settings.threshold).sum().item() / gates[kind] for kind, w in mixing.items()}
        columns |= {f"gates_over_threshold_{kind}": share for kind, share in over.items()}
    return columns | {f"skip_connect_{kind}": skip_connects(cell, kind) for kind in mixing}


def entropy(weights: Tensor, sigmoid: bool) -> float:
    """The mean over edges of the entropy of the mixing weights, in nats.

    Softmax weights are one distribution over the operations of an edge. Sigmoid gates are independent, so the entropies
    of an edge's gates are summed.
    """
    shares = torch.stack([weights, 1 - weights]) if sigmoid else weights[None]
    return -(shares * shares.clamp(min=1e-30).log()).sum(dim=(0, -1)).mean().item()


def saturated(weights: Tensor, sigmoid: bool) -> float:
    """The share of edges whose mixing weights all lie within 0.01 of 0 or 1, where the gradient hardly moves alpha."""
    if not len(weights):
        return 0.0
    distance = torch.minimum(weights, 1 - weights) if sigmoid else 1 - weights.amax(dim=-1, keepdim=True)
    return (distance < 0.01).all(dim=-1).double().mean().item()


def skip_connects(cell: AnyCell, kind: str) -> int:
    """The number of skip connections of a cell."""
    return sum(edge.operation == "skip_connect" for edge in cell.edges(kind))


def summary(row: Mapping[str, Any], epochs: int, known: str) -> str:
    """The line that is printed after an epoch; `known` has the figures of its cell from an accuracy table."""
    alignment = row["valid_alignment"]
    return (
        f"epoch {row['epoch']}/{epochs}"
        f"  train loss {row['train_loss']:.3f} accuracy {100 * row['train_accuracy']:.1f} %"
        f"  valid accuracy {100 * row['valid_accuracy']:.1f} %"
        + ("" if alignment is None else f"  alignment {alignment:.3f}")
        + f"  skips {' + '.join(str(row[name]) for name in row if name.startswith('skip_connect'))}"
        + (known and f"  {known}")
        + f"  {row['seconds']:.1f} s"
    )


def new_warnings(rows: Sequence[Mapping[str, Any]], exact: bool = False) -> list[str]:
    """The warnings that the last row causes, except those that an earlier row has already caused.

    Args:
        exact: True if second derivatives are exact.
    """
    *before, last = rows
    warnings = []
    for name in last:
        if name.startswith("saturated_") and last[name] >= 0.5 and all(row[name] < 0.5 for row in before):
            warnings.append(
                f"alpha is saturated: {100 * last[name]:.0f} % of the edges of the {name.removeprefix('saturated_')} "
                "cell have mixing weights within 0.01 of 0 or 1, which hardly change any more"
            )
    remedy = "a smaller --lambda_" if exact else "--derivatives exact, or a smaller --lambda_"
    if _regularizer_ratio(last) > LARGEST_RATIO and all(_regularizer_ratio(row) <= LARGEST_RATIO for row in before):
        warnings.append(
            f"lambda times the regularizer's gradient is {_regularizer_ratio(last):.0f} times as long as the loss's "
            f"gradient, so clipping almost removes the loss's gradient; try {remedy}"
        )
    warned = {layer for row in before for layer in _vanished(row)}
    new = [layer for layer in _vanished(last) if layer not in warned]
    if new:
        warnings.append(
            f"the architecture gradient vanishes in layer {', '.join(new)}: its norm is less than {VANISHED:g} of the "
            "largest layer's"
        )
    return warnings


def _regularizer_ratio(row: Mapping[str, Any]) -> float:
    """The norm of lambda times the regularizer's gradient, divided by the norm of the loss's gradient."""
    return (
        row.get("lambda", 0.0)
        * (row.get("regularizer_gradient_norm") or 0.0)
        / (row.get("loss_gradient_norm") or math.inf)
    )


def _vanished(row: Mapping[str, Any]) -> list[str]:
    """The layers, counted from 0, with a vanishing architecture gradient."""
    norms = {name: row[name] for name in row if name.startswith("gradient_norm_layer_")}
    least = VANISHED * max(norms.values())
    return [name.removeprefix("gradient_norm_layer_") for name, value in norms.items() if value <= least]
