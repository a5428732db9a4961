"""The bilevel search (DARTS, ICLR 2019, algorithm 1), in which the ideas of all methods are switches of two steps."""

import io
import json
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import selection
from architect import Architecture, ArchitectureGradient, first_order, implicit, unrolled
from fast_edges import FastEdges
from genotypes import AnyCell, Genotype
from lib import datasets
from lib.batches import Augmentation, Batch, Batches, cycle
from lib.cli import InputError, blaming
from lib.cuda_graphs import CapturedObjective, Graphs
from lib.datasets import DataSet, ImageSet
from lib.devices import autocast, compile_parts, default_dtype, memory_format, peak_memory
from lib.files import write_atomically, write_csv
from lib.finite import FiniteCheck
from lib.objective import Objective, cosine_similarity, norm
from lib.progress import StepProgress
from model_search import AnySupernet, Supernet, cell_kinds
from regularizers import ALPHA_REGULARIZERS, REGULARIZERS, layer_alignment, regularized_gradient, weight_gradient
from search.settings import CommonSettings, SearchSettings
from spaces import SPACES
from utils import Averages, accuracy

#: a plain training batch in so many has its layer gradients taken too, for the log
MEASURE_EVERY = 10


class Schedule(NamedTuple):
    """What changes from epoch to epoch."""

    learning_rate: float
    lambda_t: float = 0.0
    skip_beta: float = 0.0
    drop_path_prob: float = 0.0


def schedule(settings: CommonSettings, epoch: int) -> Schedule:
    """The schedules of an epoch, counted from 0.

    The learning rate is a cosine from learning_rate towards learning_rate_min (DARTS); lambda_t is linear from 0 in the
    first epoch to lambda in the last, and lambda where there is one epoch only (Λ-DARTS).
    """
    epochs = settings.epochs
    ramp = epoch / (epochs - 1) if epochs > 1 else 1.0
    return Schedule(
        learning_rate=cosine_learning_rate(settings.learning_rate, settings.learning_rate_min, epoch / epochs),
        lambda_t=0.0 if settings.reg == "none" else settings.lambda_ * ramp,
        skip_beta=0.0 if settings.auxiliary_skip == "none" else skip_beta(settings, epoch / epochs),
        drop_path_prob=settings.drop_path_prob * epoch / epochs,
    )


def cosine_learning_rate(high: float, low: float, done: float) -> float:
    """A cosine from `high` to `low`, when a share `done` of the epochs is over."""
    return low + (high - low) * (1 + math.cos(math.pi * done)) / 2


def skip_beta(settings: CommonSettings, done: float) -> float:
    """beta_t of the auxiliary skip connection, when a share `done` of the epochs is over (DARTS-, section 3.3)."""
    return (
        settings.skip_beta
        * {
            "linear": 1 - done,
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "slow_cosine": math.cos(math.pi * done / 2),
        }[settings.decay]
    )


def check(settings: CommonSettings) -> None:
    """Refuse settings that no supernet allows.

    Raises:
        InputError: it names the flag.
    """
    known = ("none", "noise", *REGULARIZERS)
    if settings.reg not in known:
        raise InputError(f"--reg: {settings.reg!r}, expected one of {', '.join(known)}")
    if settings.alpha_reg not in ("none", *ALPHA_REGULARIZERS):
        known = ("none", *ALPHA_REGULARIZERS)
        raise InputError(f"--alpha_reg: {settings.alpha_reg!r}, expected one of {', '.join(known)}")
    check_precision(settings)


def check_precision(settings: CommonSettings) -> None:
    """Refuse second derivatives by differences in low precision, whose rounding is larger than their steps.

    The regularizer's difference is then noise: its cosine with that in double precision is below 0.15, where float32
    has 0.99 (benchmarks/low_precision.py).

    Raises:
        InputError: it names the flag.
    """
    rounded = settings.tf32 or settings.precision == "bf16-mixed"
    second = settings.reg != "none" or settings.hypergradient != "first"
    differences = (second and settings.derivatives == "difference") or settings.compare_derivatives
    if rounded and differences:
        flag = "--tf32" if settings.tf32 else f"--precision {settings.precision}"
        comparing = settings.compare_derivatives
        remedy = "leave out --compare_derivatives" if comparing else "use --derivatives exact"
        raise InputError(
            f"{flag} cannot be combined with {'--compare_derivatives' if comparing else '--derivatives difference'}: "
            "its rounding is larger than the steps of the finite differences, so the second derivative would be noise; "
            f"{remedy}, or float32"
        )


def check_layers(settings: SearchSettings) -> None:
    """Refuse a number of cells without a normal one, or without a pair of them to align.

    Raises:
        InputError: it names the flag.
    """
    kinds = cell_kinds(settings.layers)
    if "normal" not in kinds:
        raise InputError(f"--layers: {settings.layers} are all reduction cells; expected 3 or more")
    aligning = "--compare_derivatives" if settings.compare_derivatives else f"--reg {settings.reg}"
    if (settings.reg != "none" or settings.compare_derivatives) and kinds.count("normal") < 2:
        raise InputError(
            f"--layers: {settings.layers}, expected 4 or more with {aligning}, which aligns pairs of normal cells, "
            "or --reg none"
        )


class Search:
    """The state of a search among cells of DARTS, and its two steps.

    What depends on the space is in the methods up to `measure`; a search in another space overrides them.
    """

    supernet: AnySupernet
    settings: CommonSettings

    def __init__(self, settings: CommonSettings, dataset: DataSet, device: torch.device) -> None:
        self.settings, self.dataset, self.device = settings, dataset, device
        self.autocast = partial(autocast, settings.precision, device)
        own: Any = settings  # each script has a --space of its own
        self.space = SPACES[own.space]
        check(settings)
        if settings.cuda_graphs and device.type != "cuda":
            raise InputError(f"--cuda_graphs: the device is {device.type}; expected it with a cuda device only")
        with blaming("--cutout_length"):
            self.augmentation = Augmentation.training(dataset, settings.cutout_length if settings.cutout else 0)
        self.memory_format = memory_format(settings.memory_format, device)
        torch.manual_seed(settings.seed)
        with default_dtype(torch.float64 if settings.precision == "64-true" else torch.float32), device:
            self.supernet = self.make_supernet().to(memory_format=self.memory_format)
            self.architecture = Architecture(self.supernet.alpha_shapes, settings.relaxation)
        train, valid = self.split()
        for flag, part in (("--train_portion", train), ("1 - --train_portion", valid)):
            if settings.batch_size > len(part):
                raise InputError(
                    f"--batch_size: {settings.batch_size} is more than the {len(part)} images of its part of the data "
                    f"({flag} of {len(dataset.train)}); expected at most {len(part)}"
                )
        self.images_sha256 = datasets.sha256(train, valid)
        self.train, self.valid = train.to(device), valid.to(device)
        self.make_optimizers()
        self.graphs = Graphs(settings.batch_size)
        self.compiled = settings.compile and self._compile()
        #: of the step under way, what must be finite
        self.watched: dict[str, Tensor] = {}
        # What the run has been, epoch by epoch: the log files are written from this.
        self.rows: list[dict[str, Any]] = []
        self.genotypes: list[dict[str, Any]] = []
        self.alphas: dict[str, list[np.ndarray]] = {kind: [] for kind in self.architecture.alphas}
        self._record_alphas()

    def make_optimizers(self) -> None:
        """SGD of the weights, and Adam of alpha, at their beginning."""
        settings = self.settings
        self.weight_optimizer = torch.optim.SGD(
            self.supernet.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.alpha_optimizer = torch.optim.Adam(
            self.architecture.parameters(),
            lr=settings.arch_learning_rate,
            betas=(settings.arch_beta1, settings.arch_beta2),
            weight_decay=settings.arch_weight_decay,
        )

    def _compile(self) -> bool:
        """Compile the cells, and try them; where that fails all goes on without, with one warning."""
        cells = [module for module in self.supernet.modules() if isinstance(module, FastEdges)]
        count = self.settings.batch_size
        images = self.train.images[:1].expand(count, -1, -1, -1)
        batch = self.cast(Batch(images, self.train.labels[:1].expand(count), 0))
        objective = Objective(self.supernet, self.autocast, accelerated=True)

        def passes() -> None:
            """Each kind of gradient is compiled on its own."""
            first_order(objective, self.layer_weights(), batch)
            weight_gradient(objective, self.layer_weights(), batch, layers=True)
            weight_gradient(objective, self.layer_weights(), batch)

        return compile_parts(self.supernet, cells, passes)

    def objective(self, now: Schedule) -> Objective:
        """The loss of the supernet, in training, under an epoch's schedule."""
        parts = (self.supernet, self.autocast, now.drop_path_prob, now.skip_beta, self.compiled)
        return CapturedObjective(*parts, self.graphs) if self.settings.cuda_graphs else Objective(*parts)

    def make_supernet(self) -> AnySupernet:
        """The supernet of the settings, for the data.

        Raises:
            InputError: the settings allow none.
        """
        settings, dataset = self.settings, self.dataset
        assert isinstance(settings, SearchSettings)
        check_layers(settings)
        return Supernet(
            self.space,
            settings.init_channels,
            settings.layers,
            len(dataset.classes),
            dataset.in_channels,
            settings.auxiliary_skip,
        )

    def split(self) -> tuple[ImageSet, ImageSet]:
        """The training images for the weights, and those for alpha."""
        return datasets.split(self.dataset.train, self.settings.train_portion, self.settings.seed)

    def derive(self, weights: Mapping[str, np.ndarray], rule: str) -> AnyCell:
        """The cell that a rule reads off the mixing weights of each kind of cell."""
        return selection.select(self.space, weights, rule, self.settings.threshold)

    def assemble(self, kept: Mapping[str, Mapping[int, str]]) -> AnyCell:
        """The cell of the edges that each kind of cell keeps, by their numbers, and the operation on each."""
        parts: dict[str, Any] = {}
        for kind, edges in kept.items():
            parts[kind] = tuple((operation, self.space.edges[edge][0]) for edge, operation in sorted(edges.items()))
            parts[f"{kind}_concat"] = tuple(self.space.edges_of)
        return Genotype(**parts)

    def missing_cell(self, genotype: AnyCell) -> str | None:
        """The kind of a cell that no network can be built of; None where there is none."""
        assert isinstance(genotype, Genotype)
        return selection.missing_cell(genotype)

    def measure(self, genotype: AnyCell) -> dict[str, float | None]:
        """What else is known of a cell: columns of metrics.csv; None is not known."""
        return {}

    def _record_alphas(self) -> None:
        for kind, alpha in self.architecture.alphas.items():
            self.alphas[kind].append(alpha.detach().cpu().numpy().copy())

    def layer_weights(self) -> list[Tensor]:
        """The mixing weights of each layer, as plain numbers."""
        return self.spread(self.architecture.mixing_weights())

    def spread(self, mixing: Mapping[str, Tensor]) -> list[Tensor]:
        """The mixing weights of the kinds of cells as those of each layer, as plain numbers."""
        return [mixing[kind].detach() for kind in self.supernet.kinds]

    def genotype(self) -> AnyCell:
        """The cell that alpha stands for now; by argmax where the rule is one that asks the supernet."""
        rule = "argmax" if self.settings.selection == "perturbation" else self.settings.selection
        mixing = self.architecture.mixing_weights()
        weights = {kind: w.detach().cpu().numpy() for kind, w in mixing.items()}
        return self.derive(weights, rule)

    def batches(self, epoch: int) -> tuple[Batches, Batches]:
        """The training and the validation batches of an epoch."""
        settings = self.settings
        train, valid = (
            Batches(part, settings.batch_size, self.augmentation, (settings.seed, epoch, role))
            for role, part in enumerate((self.train, self.valid))
        )
        return train, valid

    def momentum_buffers(self) -> list[Tensor]:
        """The momentum of the weights' optimizer, zeros before its first step, in the order of the parameters."""
        state = self.weight_optimizer.state
        return [
            state[w]["momentum_buffer"] if "momentum_buffer" in state.get(w, {}) else torch.zeros_like(w)
            for w in self.supernet.parameters()
        ]

    def architecture_gradient(
        self, objective: Objective, train_batch: Batch, valid_batch: Batch, residual: bool
    ) -> ArchitectureGradient:
        """The validation loss's gradient in the mixing weights, in the way of the settings."""
        settings, weights = self.settings, self.layer_weights()
        learning_rate = self.weight_optimizer.param_groups[0]["lr"]
        if settings.hypergradient == "unrolled":
            return unrolled(
                objective,
                weights,
                train_batch,
                valid_batch,
                xi=learning_rate,
                momentum_buffers=self.momentum_buffers(),
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                derivatives=settings.derivatives,
            )
        if settings.hypergradient == "implicit":
            return implicit(
                objective,
                weights,
                train_batch,
                valid_batch,
                gamma=learning_rate,
                terms=settings.neumann_terms,
                derivatives=settings.derivatives,
                residual=residual,
            )
        return first_order(objective, weights, valid_batch)

    def alpha_step(
        self, objective: Objective, train_batch: Batch, valid_batch: Batch, residual: bool, log: Averages
    ) -> None:
        """alpha descends the validation loss (DARTS, algorithm 1, step 1), and w01 * R(p) (FairDARTS, equation 5).

        Args:
            residual: measure the Neumann series's, where there is one.
        """
        settings, kinds = self.settings, self.supernet.kinds
        result = self.architecture_gradient(objective, train_batch, valid_batch, residual)
        gradients = self.architecture.gradients(kinds, result.total)
        if settings.alpha_reg != "none":
            value = ALPHA_REGULARIZERS[settings.alpha_reg](list(self.architecture.mixing_weights().values()))
            pull = torch.autograd.grad(settings.alpha_reg_weight * value, list(self.architecture.parameters()))
            gradients = [g + p for g, p in zip(gradients, pull, strict=True)]
            log.add("alpha_regularizer", value)
            log.add("alpha_regularizer_gradient_norm", norm(pull))
        for alpha, gradient in zip(self.architecture.parameters(), gradients, strict=True):
            alpha.grad = gradient
        self.alpha_optimizer.step()
        self.watched |= {
            "valid_loss": result.loss.clone(),  # a CUDA graph writes it again
            "gradient of alpha": norm(gradients),
            "alpha": norm([alpha.detach() for alpha in self.architecture.parameters()]),
        }
        if settings.implicit_noise:
            with torch.no_grad():
                torch._foreach_add_(objective.parameters, list(result.noise))

        count = len(valid_batch.labels)
        log.add("valid_loss", result.loss, count)
        log.add("valid_accuracy", accuracy(result.logits, valid_batch.labels), count)
        aligned = [result.direct[layer] for layer in objective.aligned_layers]
        if len(aligned) > 1:
            log.add("valid_alignment", layer_alignment(aligned))
        log.add("layer_gradient_norms", torch.stack([g.norm() for g in result.direct]))
        if result.indirect:
            log.add("direct_gradient_norm", norm(self.architecture.gradients(kinds, result.direct)))
            log.add("indirect_gradient_norm", norm(self.architecture.gradients(kinds, result.indirect)))
        if result.residual is not None:
            log.add("neumann_residual", result.residual)

    def weight_step(self, objective: Objective, batch: Batch, lambda_t: float, measure: bool, log: Averages) -> None:
        """The weights descend L_train - lambda_t * R (DARTS, algorithm 1, step 2; Λ-DARTS, section 4).

        While lambda_t is 0 this is DARTS's step, and costs what that costs.
        """
        settings, weights = self.settings, self.layer_weights()
        if lambda_t > 0:
            result = regularized_gradient(
                objective, weights, batch, settings.reg, settings.derivatives, settings.epsilon_0
            )
            log.add("regularizer_gradient_norm", norm(result.regularizer_gradient))
            pull = torch._foreach_mul(result.regularizer_gradient, lambda_t)
            gradient = list(torch._foreach_sub(result.gradient, pull))
        else:
            result = weight_gradient(objective, weights, batch, layers=measure)
            gradient = result.gradient
        for weight, g in zip(objective.parameters, gradient, strict=True):
            weight.grad = g
        clipped_norm = nn.utils.clip_grad_norm_(objective.parameters, settings.grad_clip)
        self.weight_optimizer.step()
        self.watched |= {"train_loss": result.loss, "gradient of the weights": clipped_norm}

        count = len(batch.labels)
        log.add("train_loss", result.loss, count)
        log.add("train_accuracy", accuracy(result.logits, batch.labels), count)
        log.add("loss_gradient_norm", norm(result.gradient))
        if len(result.layer_gradients) > 1:
            log.add("train_alignment", layer_alignment(result.layer_gradients))

    def derivative_cosine(self, objective: Objective, batch: Batch) -> Tensor:
        """The cosine between the regularizer's gradient by differences and the exact one, on one batch."""
        kind = "corr" if self.settings.reg in ("none", "noise") else self.settings.reg
        difference, exact = (
            regularized_gradient(
                objective, self.layer_weights(), batch, kind, derivatives, self.settings.epsilon_0
            ).regularizer_gradient
            for derivatives in ("difference", "exact")
        )
        return cosine_similarity(difference, exact)

    def run_epoch(self, epoch: int, now: Schedule, progress: StepProgress, name: str) -> Averages:
        """The steps of an epoch, under its schedule; `name` is what the progress bar calls it.

        Raises:
            FloatingPointError: a loss, a gradient or alpha is not finite.
        """
        settings, log = self.settings, Averages()
        for group in self.weight_optimizer.param_groups:
            group["lr"] = now.learning_rate
        objective = self.objective(now)
        train_batches, valid_batches = self.batches(epoch)
        last = len(train_batches) - 1
        valid = cycle(valid_batches, len(train_batches))
        # T weight steps for a step of alpha; the implicit gradient is taken behind them (iDARTS, algorithm 1).
        inner, weights_first = settings.inner_steps, settings.weights_first or settings.hypergradient == "implicit"
        watch, measured = FiniteCheck(self.device), False
        for step, train_batch in enumerate(progress.track(name, train_batches)):
            train_batch = self.cast(train_batch)
            if step == 0 and settings.compare_derivatives:
                log.add("derivative_cosine", self.derivative_cosine(objective, train_batch))
            if not weights_first and step % inner == 0:
                self.alpha_step(objective, train_batch, self.cast(next(valid)), False, log)
            self.weight_step(objective, train_batch, now.lambda_t, step % MEASURE_EVERY == 0, log)
            if weights_first and (step % inner == inner - 1 or (step == last and not measured)):
                self.alpha_step(objective, train_batch, self.cast(next(valid)), not measured, log)
                measured = True
            watch.add(epoch, step, self.watched)
            self.watched = {}
        watch.check()
        return log

    def cast(self, batch: Batch) -> Batch:
        """The batch in the precision and memory format of the weights."""
        dtype = self.supernet.classifier.weight.dtype
        return batch._replace(images=batch.images.to(dtype, memory_format=self.memory_format))

    def record(self, now: Schedule, log: Averages, start: float) -> None:
        """Add an epoch's row to the log, begun at `start`, and the cell that alpha stands for.

        Raises:
            FloatingPointError: a mean is not finite.
        """
        epoch = len(self.rows) + 1
        means = log.compute()
        for name, value in means.items():
            if not np.isfinite(value).all():
                raise FloatingPointError(f"{name} is {value} in epoch {epoch}")
        settings, genotype = self.settings, self.genotype()
        mixing = {kind: w.detach() for kind, w in self.architecture.mixing_weights().items()}
        sigmoid = settings.relaxation == "sigmoid"
        measured = [
            *("train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "train_alignment", "valid_alignment"),
            *("loss_gradient_norm", "regularizer_gradient_norm", "derivative_cosine"),
        ]
        if settings.hypergradient != "first":
            measured += ["direct_gradient_norm", "indirect_gradient_norm"]
        if settings.hypergradient == "implicit":
            measured += ["neumann_residual"]
        if settings.alpha_reg != "none":
            measured += ["alpha_regularizer", "alpha_regularizer_gradient_norm"]
        row: dict[str, Any] = {"epoch": epoch, "learning_rate": now.learning_rate, "lambda": now.lambda_t}
        if settings.auxiliary_skip != "none":
            row["skip_beta"] = now.skip_beta
        row |= {name: means.get(name) for name in measured}
        row |= {f"gradient_norm_layer_{layer}": value for layer, value in enumerate(means["layer_gradient_norms"])}
        row |= {f"entropy_{kind}": entropy(weights, sigmoid) for kind, weights in mixing.items()}
        row |= {f"saturated_{kind}": saturated(weights, sigmoid) for kind, weights in mixing.items()}
        if sigmoid:
            over = {kind: (weights >= settings.threshold).double().mean().item() for kind, weights in mixing.items()}
            row |= {f"gates_over_threshold_{kind}": share for kind, share in over.items()}
        row |= {f"skip_connect_{kind}": skips(genotype, kind) for kind in mixing}
        row |= self.measure(genotype)
        row |= {"seconds": time.perf_counter() - start, "peak_memory_mib": peak_memory(self.device)}
        self.rows.append(row)
        self.genotypes.append(genotype._asdict())
        self._record_alphas()

    def snapshot(self) -> dict[str, Any]:
        """Everything that a checkpoint needs to resume the search: tensors and plain values."""
        return {
            "supernet": self.supernet.state_dict(),
            "alphas": self.architecture.alphas.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "alpha_history": {kind: torch.from_numpy(np.stack(rows)) for kind, rows in self.alphas.items()},
            "rows": self.rows,
            "genotypes": self.genotypes,
            "images_sha256": self.images_sha256,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `snapshot`.

        Raises:
            ValueError: the snapshot is of a search on other images, or of another supernet.
        """
        if state["images_sha256"] != self.images_sha256:
            raise ValueError("the run began with other images than --data has, or with another split of them")
        try:
            self.supernet.load_state_dict(state["supernet"])
        except RuntimeError as error:
            raise ValueError("the checkpoint does not fit config.yaml; expected both of one run") from error
        self.architecture.alphas.load_state_dict(state["alphas"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.rows, self.genotypes = state["rows"], state["genotypes"]
        self.alphas = {kind: list(state["alpha_history"][kind].numpy()) for kind in self.alphas}

    def write_logs(self, run: Path) -> None:
        """metrics.csv, genotypes.jsonl and alphas.npz, whole, from the history."""
        write_csv(run / "metrics.csv", self.rows)
        write_atomically(
            run / "genotypes.jsonl",
            "".join(
                json.dumps({"epoch": epoch, **genotype}) + "\n"
                for epoch, genotype in enumerate(self.genotypes, start=1)
            ),
        )
        alphas = io.BytesIO()
        arrays: dict[str, Any] = {kind: np.stack(rows) for kind, rows in self.alphas.items()}
        np.savez(alphas, **arrays)
        write_atomically(run / "alphas.npz", alphas.getvalue())


def entropy(weights: Tensor, sigmoid: bool) -> float:
    """Mean over the edges of the entropy of the mixing weights, in nats.

    Of softmax weights that of a choice of one operation; of sigmoid gates that of as many independent choices.
    """
    shares = torch.stack([weights, 1 - weights]) if sigmoid else weights[None]
    return -(shares * shares.clamp(min=1e-30).log()).sum(dim=(0, -1)).mean().item()


def saturated(weights: Tensor, sigmoid: bool) -> float:
    """Share of the edges whose mixing weights all lie within 0.01 of 0 or 1: alpha's gradient hardly moves them.

    Softmax weights do where one of them is over 0.99.
    """
    distance = torch.minimum(weights, 1 - weights) if sigmoid else 1 - weights.amax(dim=-1, keepdim=True)
    return (distance < 0.01).all(dim=-1).double().mean().item()


def skips(genotype: AnyCell, kind: str) -> int:
    """Number of skip connections in a cell."""
    return sum(edge.operation == "skip_connect" for edge in genotype.edges(kind))
