"""Search a cell by differentiable architecture search, on CIFAR-10, CIFAR-100, SVHN, digits or a folder of images.

    python search/train_search.py --download                        # the Λ-DARTS paper's search on CIFAR-10
    python search/train_search.py --method darts-minus --reg corr   # ideas of two papers together
    python search/train_search.py --dataset digits --space s2 --layers 5 --init_channels 8 --epochs 10
    python search/train_search.py --resume runs/search-...          # resume an interrupted run

The search is bilevel (DARTS, ICLR 2019, algorithm 1): `run_epoch` alternates `alpha_step` and `weight_step`, in which
settings turn on the ideas of each method. settings.py has the settings, methods.py the settings of each method,
turns.py the batches of an epoch, state.py the state of a search, and metrics.py the log.
"""

import sys

from lib import cli
from search.command_line import Resolved, resolve
from search.settings import SCRIPT, CommonSettings

if __name__ == "__main__":
    resolved = cli.answer(lambda: resolve(sys.argv[1:]), SCRIPT.prog)  # before torch is loaded

import math
import shlex
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from architect import ArchitectureGradient, first_order, implicit, unrolled
from genotypes import AnyCell
from lib import checkpoints, plugins
from lib.batches import Batch
from lib.cli import InputError, blaming
from lib.devices import peak_memory
from lib.files import is_finished, write_atomically
from lib.objective import Objective, Tensors, cosine_similarity
from lib.progress import StepProgress
from lib.provenance import provenance, write_config
from lib.schedules import cosine_decay
from lib.seeds import mix
from regularizers import ALPHA_REGULARIZERS, WeightGradient, check_scalar, regularized_gradient, weight_gradient
from search.metrics import AlphaStep, Meters, epoch_columns, new_warnings, summary
from search.perturbation import select_by_perturbation
from search.state import SearchState, open_search
from search.turns import turns
from selection import missing_cell
from smoothing import SMOOTHING
from utils import TensorBoardLog

#: without a regularizer, layer gradients are computed on every tenth training batch, for the log
ALIGNMENT_EVERY = 10


class Schedule(NamedTuple):
    """The scheduled quantities of an epoch."""

    learning_rate: float
    lambda_t: float = 0.0
    skip_beta: float = 0.0
    drop_path_prob: float = 0.0
    alpha_reg_weight: float = 0.0
    smooth_radius: float = 0.0


def schedule(settings: CommonSettings, epoch: int) -> Schedule:
    """Compute the scheduled quantities of an epoch, counted from 0.

    The learning rate follows a cosine (DARTS). lambda_t rises linearly from 0 in the first epoch to lambda in the last
    (Λ-DARTS). beta_t falls to 0 (DARTS-, section 3.3). The radius of the smoothing rises linearly (SmoothDARTS).
    """
    done, low = epoch / settings.epochs, settings.learning_rate_min
    ramp = epoch / (settings.epochs - 1) if settings.epochs > 1 else 1.0
    decays = {
        "linear": 1 - done,
        "cosine": cosine_decay(done),
        "slow_cosine": math.cos(math.pi * done / 2),
    }
    return Schedule(
        learning_rate=low + (settings.learning_rate - low) * cosine_decay(done),
        lambda_t=0.0 if settings.reg == "none" else settings.lambda_ * ramp,
        skip_beta=0.0 if settings.auxiliary_skip == "none" else settings.skip_beta * decays[settings.decay],
        drop_path_prob=settings.drop_path_prob * done,
        alpha_reg_weight=settings.alpha_reg_weight * (done if settings.alpha_reg_schedule == "linear" else 1),
        smooth_radius=settings.smooth_start + (settings.smooth_end - settings.smooth_start) * done,
    )


def architecture_gradient(
    state: SearchState, objective: Objective, train_batch: Batch, valid_batch: Batch, residual: bool
) -> ArchitectureGradient:
    """Compute dL_val/dp of each layer: first order, unrolled (DARTS) or implicit (iDARTS)."""
    settings, weights = state.settings, state.layer_weights()
    learning_rate = state.weight_optimizer.param_groups[0]["lr"]
    if settings.hypergradient == "unrolled":
        return unrolled(
            objective,
            weights,
            train_batch,
            valid_batch,
            xi=learning_rate,
            momentum_buffers=state.momentum_buffers(),
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
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
    state: SearchState,
    objective: Objective,
    train_batch: Batch,
    valid_batch: Batch,
    now: Schedule,
    residual: bool = False,
) -> AlphaStep:
    """Take a step of alpha that descends L_val + w_t * R(alpha, p) (DARTS, algorithm 1, step 1; FairDARTS, equation 5).

    Args:
        residual: Measure the residual of the Neumann series.
    """
    settings, architecture = state.settings, state.architecture
    result = architecture_gradient(state, objective, train_batch, valid_batch, residual)
    gradient = architecture.gradients(state.supernet.kinds, result.total)
    value: Tensor | None = None
    pull: Tensors = ()
    if settings.alpha_reg != "none":
        function, alphas = ALPHA_REGULARIZERS[settings.alpha_reg], list(architecture.parameters())
        value = function(architecture.logits(), architecture.mixing_weights())
        value = check_scalar(value, f"--alpha_reg {settings.alpha_reg}")
        if not value.requires_grad:
            raise InputError(f"--alpha_reg {settings.alpha_reg}: its value does not depend on alpha")
        pull = torch.autograd.grad(now.alpha_reg_weight * value, alphas, materialize_grads=True)
        gradient = [g + p for g, p in zip(gradient, pull, strict=True)]
    for alpha, g in zip(architecture.parameters(), gradient, strict=True):
        alpha.grad = g
    state.alpha_optimizer.step()
    if settings.implicit_noise:  # iDARTS's released code
        with torch.no_grad():
            torch._foreach_add_(objective.parameters, list(result.noise))
    return AlphaStep(result, valid_batch.labels, gradient, value, pull)


def smoothed(state: SearchState, objective: Objective, batch: Batch, radius: float) -> list[Tensor]:
    """Compute the mixing weights of each layer for the weight step: p, or the perturbed p of SmoothDARTS."""
    if state.settings.smooth == "none":
        return state.layer_weights()
    architecture, kinds = state.architecture, state.supernet.kinds

    def gradient(mixing: Mapping[str, Tensor]) -> dict[str, Tensor]:
        result = objective.gradients(state.layer_weights(mixing), batch, range(len(kinds)), parameters=False)
        return architecture.layer_sums(kinds, result.layers)

    p = {kind: weights.detach() for kind, weights in architecture.mixing_weights().items()}
    torch.manual_seed(mix(batch.seed, 1))
    q = SMOOTHING[state.settings.smooth](p, radius, gradient, architecture.project)
    if not isinstance(q, Mapping) or [*map(np.shape, q.values())] != [*map(np.shape, p.values())]:
        shapes = ", ".join(f"{kind} {tuple(weights.shape)}" for kind, weights in p.items())
        raise InputError(
            f"--smooth {state.settings.smooth}: its function returns no mixing weights, expected the shapes {shapes}"
        )
    return state.layer_weights(q)


def weight_step(
    state: SearchState, objective: Objective, batch: Batch, now: Schedule, layers: bool
) -> tuple[WeightGradient, Tensor]:
    """Take a step of the weights that descends L_train - lambda_t * Lambda (DARTS, algorithm 1; Λ-DARTS, section 4).

    While lambda_t is 0, this is the weight step of DARTS and costs the same (algorithm 1, step 2).

    Args:
        layers: Compute the layer gradients even if lambda_t is 0.

    Returns:
        The gradients, and the norm of the gradient before clipping.
    """
    settings, weights = state.settings, smoothed(state, objective, batch, now.smooth_radius)
    if now.lambda_t > 0:
        result = regularized_gradient(objective, weights, batch, settings.reg, settings.derivatives, settings.epsilon_0)
        pull = torch._foreach_mul(result.regularizer_gradient, now.lambda_t)
        gradient = list(torch._foreach_sub(result.gradient, pull))
    else:
        result = weight_gradient(objective, weights, batch, layers or settings.clips_with_alpha)
        gradient = result.gradient
    for weight, g in zip(objective.parameters, gradient, strict=True):
        weight.grad = g
    clipped = objective.parameters
    if settings.clips_with_alpha:
        accumulate_alpha_gradient(state, result)
        clipped = [*clipped, *state.architecture.parameters()]
    gradient_norm = nn.utils.clip_grad_norm_(clipped, settings.grad_clip)
    if not settings.fixes_weights:
        state.weight_optimizer.step()
    return result, gradient_norm


def accumulate_alpha_gradient(state: SearchState, result: WeightGradient) -> None:
    """Add dL_train/dalpha to the gradient of alpha's last step, as a backward pass of Λ-DARTS's code does (D14)."""
    gradients = state.architecture.gradients(state.supernet.kinds, result.layer_gradients)
    for alpha, gradient in zip(state.architecture.parameters(), gradients, strict=True):
        alpha.grad = gradient if alpha.grad is None else alpha.grad + gradient


def derivative_cosine(state: SearchState, objective: Objective, batch: Batch) -> Tensor:
    """Compute the cosine between the regularizer's gradient by differences and its exact gradient, on one batch."""
    settings, weights = state.settings, state.layer_weights()
    regularizer = "corr" if settings.reg in ("none", "noise") else settings.reg
    difference = regularized_gradient(objective, weights, batch, regularizer, "difference", settings.epsilon_0)
    exact = regularized_gradient(objective, weights, batch, regularizer, "exact")
    return cosine_similarity(difference.regularizer_gradient, exact.regularizer_gradient)


def run_epoch(state: SearchState, epoch: int, now: Schedule, progress: StepProgress, name: str) -> Meters:
    """Run the steps of an epoch, counted from 0; `name` labels the progress bar.

    Raises:
        FloatingPointError: A loss, a gradient or alpha is not finite.
    """
    settings, objective = state.settings, state.objective(now.drop_path_prob, now.skip_beta)
    state.weight_optimizer.param_groups[0]["lr"] = now.learning_rate
    meters, step = Meters(state.architecture, state.supernet.kinds, epoch, settings.reg), 0
    for turn in turns(state, epoch, progress, name):
        if step == 0 and settings.compare_derivatives:
            meters.add("derivative_cosine", derivative_cosine(state, objective, turn.weights[0]))
        if not state.weights_first:
            meters.add_alpha_step(alpha_step(state, objective, turn.train, turn.valid, now))
        for number, batch in enumerate(turn.weights, start=1):
            result, gradient_norm = weight_step(state, objective, batch, now, step % ALIGNMENT_EVERY == 0)
            meters.add_weight_step(result, gradient_norm, batch.labels)
            step += 1
            if state.weights_first and number == len(turn.weights):
                first = step == number  # the residual is measured once per epoch
                meters.add_alpha_step(alpha_step(state, objective, turn.train, turn.valid, now, residual=first))
            meters.check(step - 1)
    meters.finite.check()
    return meters


def log_epoch(state: SearchState, now: Schedule, meters: Meters, start: float) -> None:
    """Add an epoch that began at `start` to the history.

    Raises:
        FloatingPointError: A mean is not finite.
    """
    settings, history = state.settings, state.history
    epoch, means = len(history.rows) + 1, meters.compute()
    for name, value in means.items():
        if not np.isfinite(value).all():
            raise FloatingPointError(f"{name} is {value} in epoch {epoch}")
    mixing = {kind: p.detach() for kind, p in state.architecture.mixing_weights().items()}
    cell = state.cell()
    schedules = {"epoch": epoch, "learning_rate": now.learning_rate, "lambda": now.lambda_t}
    if settings.auxiliary_skip != "none":
        schedules["skip_beta"] = now.skip_beta
    history.rows.append(
        {
            **schedules,
            **epoch_columns(settings, means, mixing, cell, state.space),
            **state.look_up(cell),
            "seconds": time.perf_counter() - start,
            "peak_memory_mib": peak_memory(state.device),
        }
    )
    history.genotypes.append(cell._asdict())
    history.add_alphas(state.architecture)


def run_epochs(state: SearchState, run: Path) -> None:
    """Run the remaining epochs of a search. Each ends with a checkpoint, a row in the logs and a printed line."""
    settings, history, first = state.settings, state.history, len(state.history.rows)
    steps = len(state.batches(0)[0])
    tensorboard = TensorBoardLog(run, history.rows)
    with closing(tensorboard), StepProgress("run", settings.epochs * steps, first * steps) as progress:
        for epoch in range(first, settings.epochs):
            start, now = time.perf_counter(), schedule(settings, epoch)
            meters = run_epoch(state, epoch, now, progress, f"epoch {epoch + 1}")
            log_epoch(state, now, meters, start)
            path = run / "checkpoints" / f"epoch_{epoch + 1:05d}.ckpt"
            checkpoints.save(path, state.snapshot(), settings.keep_checkpoints)
            history.write(run)
            tensorboard.add(history.rows[-1])
            progress.line(summary(history.rows[-1], settings.epochs, state.describe(history.rows[-1])))
            for warning in new_warnings(history.rows, settings.derivatives == "exact"):
                progress.line(f"warning: {warning}")


def derive_cell(state: SearchState, run: Path, folder: Path, resume_with: str) -> AnyCell:
    """Derive the cell of a finished search by the rule of its settings.

    Args:
        folder: The folder for the files of the perturbation rule.
        resume_with: How to resume that rule, for the message after an interruption.

    Raises:
        InputError: The rule leaves a cell without a path from its inputs.
    """

    def fine_tune(epoch: int, learning_rate: float, progress: StepProgress, name: str) -> None:
        settings = state.settings
        run_epoch(
            state,
            epoch,
            Schedule(learning_rate, alpha_reg_weight=settings.alpha_reg_weight, smooth_radius=settings.smooth_end),
            progress,
            name,
        )

    if state.settings.selection == "perturbation":
        return select_by_perturbation(state, fine_tune, folder, resume_with)
    cell = state.cell()
    kind = missing_cell(state.space, cell)
    if kind:
        largest = state.architecture.mixing_weights()[kind].max().item()
        raise InputError(
            f"--threshold: {state.settings.threshold:g} leaves no path through the {kind} cell, whose largest gate is "
            f"{largest:.3f}; choose a smaller one: python search/derive.py {shlex.quote(str(run))} --threshold ..."
        )
    return cell


def write_cell(state: SearchState, cell: AnyCell, folder: Path) -> None:
    """Draw a cell, write genotype.json, and print the cell with its figures in an accuracy table, if any."""
    with cli.warning("no drawing of the cell"):
        from analysis.draw import draw_genotype  # matplotlib takes a second

        draw_genotype(cell, folder / "cells")
    write_atomically(folder / "genotype.json", cell.to_json())  # last: it marks a finished search
    lines = [f"found {cell}", state.describe(state.look_up(cell)), f"run folder {folder}"]
    print("\n".join(filter(None, lines)), flush=True)


def search(resolved: Resolved, state_class: type[SearchState] = SearchState, whole: Path | None = None) -> None:
    """Search a cell and write a run folder, or resume a run.

    Args:
        state_class: The state of a search in the space of the settings.
        whole: If this run is part of a series, the run folder of the series, which --resume must name.
    """
    settings, run = resolved.settings, resolved.run
    if resolved.resumed and is_finished(run, "search"):
        print(f"run {run} is finished")
        return
    state = open_search(settings, state_class)
    flag = "--resume" if resolved.resumed else "--save"
    folder = shlex.quote(str(whole or run))
    resume_with = f"resume with: python {resolved.script.path} --resume {folder}{plugins.flags()}"
    with cli.open_folder(run, flag, new=not resolved.resumed):
        with blaming(flag):
            if not resolved.resumed:
                origin = {**provenance(cli.command_line(), str(state.device)), "settings_from": resolved.sources}
                write_config(run, asdict(settings), resolved.origin or origin)
            elif last := checkpoints.load_last(run / "checkpoints"):
                state.restore(last[1])
                state.history.write(run)
        print(f"settings of {settings.method}{resolved.changes()}")
        left = cli.epochs_left(settings.epochs, len(state.history.rows))
        print(f"run {run}: {left} on {state.device}", flush=True)
        try:
            with cli.saving(run, resume_with):
                run_epochs(state, run)
                with cli.warning(f"no figures; draw the curves with python analysis/curves.py {run}"):
                    from analysis.curves import plot_search  # matplotlib takes a second

                    plot_search(run)
                write_cell(state, derive_cell(state, run, run / "perturbation", resume_with), run)
        except KeyboardInterrupt as stop:
            done = f"after {len(state.history.rows)} of {settings.epochs} epochs; {resume_with}"
            raise KeyboardInterrupt(str(stop) or done) from None


if __name__ == "__main__":
    cli.run(lambda: search(resolved), SCRIPT.prog)
