"""The bilevel search (DARTS, ICLR 2019, algorithm 1) with the regularizer of Λ-DARTS (ICLR 2023, section 4)."""

import json
import math
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import cli
import data
import selection
from analysis.curves import plot_search
from analysis.draw import draw_genotype
from architect import Architecture, first_order, unrolled
from cli import InputError, blaming
from genotypes import Genotype, make_genotype
from gradients import Objective, cosine, norm, regularized_gradient, weight_gradient
from model_search import Supernet, cell_kinds
from regularizers import REGULARIZERS, layer_alignment
from search.settings import SearchSettings
from spaces import SPACES
from utils import (
    Averages,
    Checkpoints,
    EpochProgress,
    accuracy,
    check_device,
    load_optimizer_tensors,
    optimizer_tensors,
    provenance,
    write_atomically,
    write_config,
    write_csv,
)

#: a plain training batch in so many has its layer gradients taken too, for the log
MEASURE_EVERY = 10


def cosine_learning_rate(settings: SearchSettings, epoch: int) -> float:
    """The weights' learning rate of an epoch: a cosine from learning_rate towards learning_rate_min."""
    low, high = settings.learning_rate_min, settings.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2


def ramped_lambda(settings: SearchSettings, epoch: int) -> float:
    """lambda_t: linear from 0 in the first epoch to lambda in the last; lambda where there is one epoch only."""
    if settings.reg == "none":
        return 0.0
    return settings.lambda_ * (epoch / (settings.epochs - 1) if settings.epochs > 1 else 1.0)


def make_fabric(device: str, precision: str) -> Fabric:
    """The device and precision of a search.

    Raises:
        InputError: there is no such device here.
    """
    accelerator, devices = check_device(device)
    return Fabric(accelerator=accelerator, devices=devices, precision=precision)


def check(settings: SearchSettings) -> None:
    """Refuse settings that no supernet allows.

    Raises:
        InputError: it names the flag.
    """
    kinds = cell_kinds(settings.layers)
    known = ("none", "noise", *REGULARIZERS)
    if settings.reg not in known:
        raise InputError(f"--reg: {settings.reg!r}, expected one of {', '.join(known)}")
    if "normal" not in kinds:
        raise InputError(f"--layers: {settings.layers} are all reduction cells; expected 3 or more")
    aligning = "--compare_derivatives" if settings.compare_derivatives else f"--reg {settings.reg}"
    if (settings.reg != "none" or settings.compare_derivatives) and kinds.count("normal") < 2:
        raise InputError(
            f"--layers: {settings.layers}, expected 4 or more with {aligning}, which aligns pairs of normal cells, "
            "or --reg none"
        )
    if settings.batch_size < 2:
        raise InputError(f"--batch_size: {settings.batch_size}, expected 2 or more: batch norm compares images")


class Search:
    """The state of a search, and its two steps."""

    def __init__(self, settings: SearchSettings, dataset: data.DataSet, fabric: Fabric) -> None:
        self.settings, self.fabric, self.dataset = settings, fabric, dataset
        self.space = SPACES[settings.space]
        check(settings)
        with blaming("--cutout_length"):
            self.augmentation = data.Augmentation.training(dataset, settings.cutout_length if settings.cutout else 0)
        torch.manual_seed(settings.seed)
        with fabric.init_module():
            self.supernet = Supernet(
                self.space, settings.init_channels, settings.layers, len(dataset.classes), dataset.in_channels
            ).to(memory_format=torch.channels_last)
            self.architecture = Architecture(self.supernet.alpha_shapes)
        train, valid = data.split(dataset.train, settings.train_portion, settings.seed)
        for flag, part in (("--train_portion", train), ("1 - --train_portion", valid)):
            if settings.batch_size > len(part):
                raise InputError(
                    f"--batch_size: {settings.batch_size} is more than the {len(part)} images of its part of the data "
                    f"({flag} of {len(dataset.train)}); expected at most {len(part)}"
                )
        self.train, self.valid = train.to(fabric.device), valid.to(fabric.device)
        self.weight_optimizer = torch.optim.SGD(
            self.supernet.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.alpha_optimizer = torch.optim.Adam(
            self.architecture.parameters(),
            lr=settings.arch_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=settings.arch_weight_decay,
        )
        # What the run has been, epoch by epoch: the log files are written from this.
        self.rows: list[dict[str, Any]] = []
        self.genotypes: list[Genotype] = []
        self.alphas: dict[str, list[np.ndarray]] = {kind: [] for kind in self.architecture.alphas}
        self._record_alphas()

    def _record_alphas(self) -> None:
        for kind, alpha in self.architecture.alphas.items():
            self.alphas[kind].append(alpha.detach().cpu().numpy().copy())

    def layer_weights(self) -> list[Tensor]:
        """The mixing weights of each layer, as plain numbers."""
        mixing = {kind: weights.detach() for kind, weights in self.architecture.mixing_weights().items()}
        return [mixing[kind] for kind in self.supernet.kinds]

    def genotype(self) -> Genotype:
        """The cell that alpha stands for now."""
        mixing = self.architecture.mixing_weights()
        return selection.argmax(self.space, {kind: w.detach().cpu().numpy() for kind, w in mixing.items()})

    def batches(self, epoch: int) -> tuple[data.Batches, data.Batches]:
        """The training and the validation batches of an epoch."""
        settings = self.settings
        return tuple(
            data.Batches(part, settings.batch_size, self.augmentation, (settings.seed, epoch, role))
            for role, part in enumerate((self.train, self.valid))
        )

    def momentum_buffers(self) -> list[Tensor]:
        """The momentum of the weights' optimizer, zeros before its first step, in the order of the parameters."""
        state = self.weight_optimizer.state
        return [
            state[w]["momentum_buffer"] if "momentum_buffer" in state.get(w, {}) else torch.zeros_like(w)
            for w in self.supernet.parameters()
        ]

    def alpha_step(self, objective: Objective, train_batch: data.Batch, valid_batch: data.Batch, log: Averages) -> None:
        """alpha descends the validation loss (DARTS, algorithm 1, step 1)."""
        if self.settings.unrolled:
            result = unrolled(
                objective,
                self.layer_weights(),
                train_batch,
                valid_batch,
                xi=self.weight_optimizer.param_groups[0]["lr"],
                momentum_buffers=self.momentum_buffers(),
                momentum=self.settings.momentum,
                weight_decay=self.settings.weight_decay,
                derivatives=self.settings.derivatives,
            )
        else:
            result = first_order(objective, self.layer_weights(), valid_batch)
        gradients = self.architecture.gradients(self.supernet.kinds, result.layer_gradients)
        for alpha, gradient in zip(self.architecture.parameters(), gradients, strict=True):
            alpha.grad = gradient
        self.alpha_optimizer.step()

        count = len(valid_batch.labels)
        log.add("valid_loss", result.loss, count)
        log.add("valid_accuracy", accuracy(result.logits, valid_batch.labels), count)
        aligned = [result.validation_gradients[layer] for layer in objective.aligned_layers]
        if len(aligned) > 1:
            log.add("valid_alignment", layer_alignment(aligned))
        log.add("layer_gradient_norms", torch.stack([g.norm() for g in result.validation_gradients]))

    def weight_step(
        self, objective: Objective, batch: data.Batch, lambda_t: float, measure: bool, log: Averages
    ) -> None:
        """The weights descend L_train - lambda_t * R (DARTS, algorithm 1, step 2; Λ-DARTS, section 4).

        While lambda_t is 0 this is DARTS's step, and costs what that costs.
        """
        settings, weights = self.settings, self.layer_weights()
        if lambda_t > 0:
            result = regularized_gradient(
                objective, weights, batch, settings.reg, settings.derivatives, settings.epsilon_0
            )
            log.add("regularizer_gradient_norm", norm(result.regularizer_gradient))
            gradient = [g - lambda_t * r for g, r in zip(result.gradient, result.regularizer_gradient, strict=True)]
        else:
            result = weight_gradient(objective, weights, batch, layers=measure)
            gradient = result.gradient
        for weight, g in zip(objective.parameters, gradient, strict=True):
            weight.grad = g
        nn.utils.clip_grad_norm_(objective.parameters, settings.grad_clip)
        self.weight_optimizer.step()

        count = len(batch.labels)
        log.add("train_loss", result.loss, count)
        log.add("train_accuracy", accuracy(result.logits, batch.labels), count)
        log.add("loss_gradient_norm", norm(result.gradient))
        if len(result.layer_gradients) > 1:
            log.add("train_alignment", layer_alignment(result.layer_gradients))

    def derivative_cosine(self, objective: Objective, batch: data.Batch) -> Tensor:
        """The cosine between the regularizer's gradient by differences and the exact one, on one batch."""
        kind = "corr" if self.settings.reg in ("none", "noise") else self.settings.reg
        difference, exact = (
            regularized_gradient(
                objective, self.layer_weights(), batch, kind, derivatives, self.settings.epsilon_0
            ).regularizer_gradient
            for derivatives in ("difference", "exact")
        )
        return cosine(difference, exact)

    def run_epoch(self, epoch: int, progress: EpochProgress) -> None:
        """One epoch, and its row of the log."""
        start = time.perf_counter()
        settings, log = self.settings, Averages()
        learning_rate, lambda_t = cosine_learning_rate(settings, epoch), ramped_lambda(settings, epoch)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = learning_rate
        objective = Objective(
            self.supernet.train(), self.fabric.autocast, settings.drop_path_prob * epoch / settings.epochs
        )
        train_batches, valid_batches = self.batches(epoch)
        pairs = zip(train_batches, data.cycle(valid_batches, len(train_batches)), strict=True)
        for step, (train_batch, valid_batch) in enumerate(progress.track(pairs, epoch)):
            train_batch, valid_batch = self.cast(train_batch), self.cast(valid_batch)
            if step == 0 and settings.compare_derivatives:
                log.add("derivative_cosine", self.derivative_cosine(objective, train_batch))
            self.alpha_step(objective, train_batch, valid_batch, log)
            self.weight_step(objective, train_batch, lambda_t, step % MEASURE_EVERY == 0, log)
        self._record(epoch, learning_rate, lambda_t, log, start)

    def cast(self, batch: data.Batch) -> data.Batch:
        """The batch in the precision of the weights."""
        return batch._replace(images=batch.images.to(self.supernet.classifier.weight.dtype))

    def _record(self, epoch: int, learning_rate: float, lambda_t: float, log: Averages, start: float) -> None:
        means = log.compute()
        for name, value in means.items():
            if not np.isfinite(value).all():
                raise FloatingPointError(f"{name} is not finite in epoch {epoch + 1}")
        genotype = self.genotype()
        mixing = {kind: w.detach() for kind, w in self.architecture.mixing_weights().items()}
        norms = means.pop("layer_gradient_norms")
        row = {
            "epoch": epoch + 1,
            "learning_rate": learning_rate,
            "lambda": lambda_t,
            **{
                name: means.get(name)
                for name in (
                    "train_loss",
                    "train_accuracy",
                    "valid_loss",
                    "valid_accuracy",
                    "train_alignment",
                    "valid_alignment",
                    "loss_gradient_norm",
                    "regularizer_gradient_norm",
                    "derivative_cosine",
                )
            },
            **{f"gradient_norm_layer_{layer}": value for layer, value in enumerate(norms)},
            **{f"entropy_{kind}": entropy(weights) for kind, weights in mixing.items()},
            **{f"skip_connect_{kind}": skips(genotype, kind) for kind in mixing},
            "seconds": time.perf_counter() - start,
        }
        self.rows.append(row)
        self.genotypes.append(genotype)
        self._record_alphas()

    def save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint of everything that goes on from here."""
        tensors = {
            **{f"supernet.{name}": tensor for name, tensor in self.supernet.state_dict().items()},
            **{f"alpha_history.{kind}": torch.from_numpy(np.stack(rows)) for kind, rows in self.alphas.items()},
            **optimizer_tensors(self.weight_optimizer, "weight_optimizer"),
            **optimizer_tensors(self.alpha_optimizer, "alpha_optimizer"),
        }
        state = {"rows": self.rows, "genotypes": [genotype._asdict() for genotype in self.genotypes]}
        checkpoints.save(len(self.rows), tensors, state)

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go back to where `save` was called.

        Raises:
            ValueError: it was called by a search of other settings.
        """
        try:
            self._load(tensors, state)
        except (RuntimeError, KeyError) as error:
            raise ValueError("the checkpoint does not fit config.yaml; expected both of one run") from error

    def _load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        prefix = "supernet."
        self.supernet.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        )
        self.alphas = {kind: list(tensors[f"alpha_history.{kind}"].numpy()) for kind in self.alphas}
        with torch.no_grad():
            for kind, alpha in self.architecture.alphas.items():
                alpha.copy_(torch.from_numpy(self.alphas[kind][-1]))
        load_optimizer_tensors(self.weight_optimizer, tensors, "weight_optimizer")
        load_optimizer_tensors(self.alpha_optimizer, tensors, "alpha_optimizer")
        self.rows = list(state["rows"])
        self.genotypes = [make_genotype(parts) for parts in state["genotypes"]]

    def write_logs(self, run: Path) -> None:
        """metrics.csv, genotypes.jsonl and alphas.npz, whole, from the history."""
        write_csv(run / "metrics.csv", self.rows)
        write_atomically(
            run / "genotypes.jsonl",
            "".join(
                json.dumps({"epoch": epoch, **genotype._asdict()}) + "\n"
                for epoch, genotype in enumerate(self.genotypes, start=1)
            ),
        )
        temporary = run / ".alphas.tmp.npz"
        np.savez(temporary, **{kind: np.stack(rows) for kind, rows in self.alphas.items()})
        temporary.replace(run / "alphas.npz")


def entropy(weights: Tensor) -> float:
    """Mean over the edges of the entropy of the mixing weights, in nats; the weights of an edge sum to 1."""
    return -(weights * weights.clamp(min=1e-30).log()).sum(dim=-1).mean().item()


def skips(genotype: Genotype, kind: str) -> int:
    """Number of skip connections in a cell."""
    return sum(edge.operation == "skip_connect" for edge in genotype.edges(kind))


def _summary(row: Mapping[str, Any], epochs: int) -> str:
    alignment = row["valid_alignment"]
    return (
        f"epoch {row['epoch']}/{epochs}"
        f"  train loss {row['train_loss']:.3f} accuracy {100 * row['train_accuracy']:.1f} %"
        f"  valid accuracy {100 * row['valid_accuracy']:.1f} %"
        + ("" if alignment is None else f"  alignment {alignment:.3f}")
        + f"  skips {row['skip_connect_normal']}  {row['seconds']:.1f} s"
    )


def search(settings: SearchSettings, run: Path, resumed: bool) -> None:
    """Search a cell and leave a run folder; `resumed` goes on with the one that is there."""
    fabric = make_fabric(settings.device, settings.precision)
    with blaming(f"--data: {settings.dataset}"):
        dataset = data.load(settings.dataset, settings.data, settings.image_size, settings.download)
    state = Search(settings, dataset, fabric)
    if resumed:
        with blaming("--resume"):
            checkpoints = Checkpoints(run / "checkpoints", settings.keep_checkpoints)
            checkpoint = checkpoints.load()
        if checkpoint:
            with blaming("--resume"):
                state.load(*checkpoint)
            state.write_logs(run)
    else:
        cli.new_folder(run, "--save")
        write_config(run, {**asdict(settings), "save": str(run)}, provenance(cli.command_line(), str(fabric.device)))
        checkpoints = Checkpoints(run / "checkpoints", settings.keep_checkpoints)

    first = done = len(state.rows)
    print(f"run {run}: {settings.epochs - first} epochs on {fabric.device}", flush=True)
    steps = len(state.batches(0)[0])
    with (
        SummaryWriter(run / "tensorboard", purge_step=first + 1) as board,
        EpochProgress(settings.epochs, first, steps) as progress,
    ):
        try:
            for epoch in range(first, settings.epochs):
                state.run_epoch(epoch, progress)
                state.save(checkpoints)
                done = epoch + 1
                state.write_logs(run)
                for name, value in state.rows[-1].items():
                    if value is not None and name != "epoch":
                        board.add_scalar(name, value, epoch + 1)
                progress.line(_summary(state.rows[-1], settings.epochs))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"after {done} of {settings.epochs} epochs; go on with: "
                f"python search/train_search.py --resume {shlex.quote(str(run))}"
            ) from None

    genotype = state.genotypes[-1]
    draw_genotype(genotype, run / "cells")
    plot_search(run)
    write_atomically(run / "genotype.json", genotype.to_json())
    print(f"found {genotype}\nrun folder {run}", flush=True)
