"""Compare second derivatives by finite differences with exact ones: norm and cosine similarity for each epsilon.

In a ReLU network, a step of length epsilon turns some units on or off. Each of these changes adds an error to the
difference of gradients. This script measures how close the papers' finite differences are to the exact derivatives. It
prints a table and draws a figure.

    python analysis/derivatives.py --run runs/search-...                                 # at the checkpoint of a run
    python analysis/derivatives.py --dataset digits --space s2 --layers 5 --steps 60     # after 60 weight steps
"""

import json
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lib import cli, options
from lib.cli import InputError
from lib.files import write_atomically
from lib.options import Channels, Fraction, Layers, NonNegativeInt, PositiveFloat, PositiveInt, Seed, option
from lib.settings import DEVICE_HELP, ImageSettings
from search.settings import SCRIPT, CommonSettings, SearchSettings, SpaceName

if TYPE_CHECKING:
    from lib.batches import Batch
    from lib.objective import Derivatives, Tensors
    from search.state import SearchState

PROG = "derivatives.py"
EPSILONS = (1e-11, 1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: flags that are allowed together with --run
WITH_RUN = {"run", "batch_size", "reg", "epsilons", "device", "out"}


@dataclass
class DerivativesSettings(ImageSettings):
    """The settings of a measurement. With --run, the settings of the data and the supernet come from the run."""

    run: str = option("", "Run folder of a search. Its settings and its last checkpoint are used.")
    steps: NonNegativeInt = option(60, "Number of weight steps before the measurement, if --run is not given.")
    batch_size: PositiveInt = option(48, "Number of images in each batch.")
    reg: Literal["corr", "signcorr"] = option("corr", "Layer alignment whose gradient is measured.")
    epsilons: list[PositiveFloat] | None = option(None, f"Step lengths. By default {' '.join(map(str, EPSILONS))}.")
    seed: Seed = option(0, "Seed of the weights and the batches, if --run is not given.")
    device: str = option("auto", DEVICE_HELP)
    out: str = option("derivatives", "New folder for derivatives.json and derivatives.png.")
    space: SpaceName = option("s5", "Search space of the supernet.")
    layers: Layers = option(8, "Number of cells in the supernet.")
    init_channels: Channels = option(16, "Channels C of the first cells.")
    noise: Literal["held", "fresh"] = option(
        "held", "Noise in space s4: the same in all passes over a batch (held), or drawn anew in each (fresh)."
    )
    train_portion: Fraction = option(0.5, "Fraction of the training images that updates the weights.")


class Step(NamedTuple):
    """The epoch, the batches and the momentum at which the derivatives are measured."""

    epoch: int
    train: "Batch"
    valid: "Batch"
    momentum: "Tensors"


def terms_of(search: "SearchState", step: Step, derivatives: "Derivatives", epsilon: float) -> dict[str, "Tensors"]:
    """term -> its value at a step of the search, in the precision of the search."""
    from architect import implicit, unrolled
    from lib.objective import Objective
    from regularizers import regularized_gradient
    from search.train_search import schedule

    settings, now = search.settings, schedule(search.settings, step.epoch)
    objective = Objective(
        search.supernet,
        drop_path_prob=now.drop_path_prob,
        skip_beta=now.skip_beta,
        fresh_noise=settings.noise == "fresh",  # with --run, the setting of the run
    )
    weights, batch, valid = search.layer_weights(), search.cast(step.train), search.cast(step.valid)
    both, how = (objective, weights, batch, valid, now.learning_rate), (derivatives, epsilon)
    momentum = [buffer.to(weights[0].dtype) for buffer in step.momentum]
    return {
        "regularizer": regularized_gradient(
            objective, weights, batch, settings.reg, derivatives, epsilon
        ).regularizer_gradient,
        "unrolled": unrolled(*both, momentum, settings.momentum, settings.weight_decay, *how).mixed,
        "implicit": implicit(*both, settings.neumann_terms, *how).mixed,
    }


def open_step(settings: DerivativesSettings, search: "SearchState") -> Step:
    """Restore the last checkpoint of --run, or take --steps weight steps. Then draw both batches."""
    from lib.batches import cycle
    from lib.checkpoints import load_last

    if settings.run:
        with cli.blaming("--run"):
            last = load_last(Path(settings.run) / "checkpoints")
            if last is None:
                raise ValueError(f"{settings.run} has no checkpoint; expected a run with a finished epoch")
        search.restore(last[1])
    else:
        from search.train_search import schedule, weight_step

        now = schedule(search.settings, 0)
        objective = search.objective(now.drop_path_prob, now.skip_beta)
        for batch in cycle(search.batches(0)[0], settings.steps):
            weight_step(search, objective, search.cast(batch), now._replace(lambda_t=0.0), layers=False)
    epoch = len(search.history.rows)
    train, valid = (next(iter(part)) for part in search.batches(epoch))
    return Step(epoch, train, valid, search.momentum_buffers())


def compare_derivatives(settings: DerivativesSettings, search_settings: CommonSettings) -> list[dict[str, Any]]:
    """Rows with the norm of the difference, the norm of the exact term, and the cosine similarity of both.

    There is a row for each term, precision and epsilon. The exact terms are computed in float64. The terms are
    "regularizer", grad_w R (Λ-DARTS, section 4); "unrolled", d2L_train / dp dw . v (DARTS, equation 7); "implicit",
    d2L_train / dp dw . s (iDARTS, equation 9), for which the usual epsilon is 0.01. The Hessian-vector products that
    give s are always exact; epsilon is the step length of the difference along s.
    """
    from lib.datasets import load_dataset
    from lib.devices import prepare_device
    from lib.objective import cosine_similarity, norm
    from search.state import SearchState

    device, dataset = prepare_device(settings.device), load_dataset(search_settings)
    single = SearchState(search_settings, dataset, device)
    step = open_step(settings, single)
    double = SearchState(replace(search_settings, precision="64-true"), dataset, device)
    double.supernet.load_state_dict(single.supernet.state_dict())
    double.architecture.load_state_dict(single.architecture.state_dict())

    exact = terms_of(double, step, "exact", 1.0)
    rows = []
    for precision, search in (("float64", double), ("float32", single)):
        for epsilon in settings.epsilons or EPSILONS:
            for term, found in terms_of(search, step, "difference", epsilon).items():
                gradient = [g.double() for g in found]
                row = {"term": term, "precision": precision, "epsilon": epsilon, "norm": norm(gradient).item()}
                row["exact_norm"] = norm(exact[term]).item()
                row["cosine"] = cosine_similarity(gradient, exact[term]).item()
                rows.append(row)
    return rows


def plot_derivatives(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot norm and cosine similarity against epsilon, with a column for each term."""
    from matplotlib.figure import Figure

    from analysis.curves import save

    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey="row")
    titles = {
        "regularizer": r"regularizer, $\nabla_w \Lambda$",
        "unrolled": r"unrolled step, $\partial^2 L\,v$",
        "implicit": r"implicit gradient, $\partial^2 L\,s$",
    }
    bottom = min(-0.05, *(row["cosine"] for row in rows)) - 0.1
    for column, (term, title) in enumerate(titles.items()):
        norms, cosines = axes[0, column], axes[1, column]
        for precision, color in (("float64", "#0072B2"), ("float32", "#D55E00")):
            chosen = [row for row in rows if row["term"] == term and row["precision"] == precision]
            epsilons = [row["epsilon"] for row in chosen]
            # a difference that rounds to 0 cannot be drawn on a log scale
            norms.plot(epsilons, [row["norm"] or None for row in chosen], "o-", color=color, label=precision)
            cosines.plot(epsilons, [row["cosine"] for row in chosen], "o-", color=color, label=precision)
        norms.axhline(chosen[0]["exact_norm"], color="#000000", linestyle="--", label="exact")
        norms.set(title=title, xscale="log", yscale="log")
        cosines.axhline(1, color="#000000", linestyle="--")
        cosines.set(xlabel=r"$\epsilon$ (length of the step)", ylim=(bottom, 1.1))
        for axis in (norms, cosines):
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("norm of the difference")
    axes[1, 0].set_ylabel("cosine with the exact term")
    axes[0, 2].legend(frameon=False)
    save(figure, path)


def main() -> None:
    parsed = options.parse_given(DerivativesSettings, PROG, __doc__.splitlines()[0])
    settings: DerivativesSettings = parsed.settings
    search_settings: CommonSettings
    if settings.run:
        if parsed.flags - WITH_RUN:
            flags = ", ".join(f"--{name}" for name in sorted(parsed.flags - WITH_RUN))
            raise InputError(f"--run: the settings come from the run; {flags} cannot be given with --run")
        search_settings = options.load_settings(SCRIPT.settings, SCRIPT.path, Path(settings.run), "--run")
    else:
        own = {field.name for field in fields(SearchSettings)}
        search_settings = SearchSettings(**{name: value for name, value in asdict(settings).items() if name in own})
    out = Path(settings.out)
    cli.check_new_folder(out, "--out")
    search_settings = replace(search_settings, batch_size=settings.batch_size, reg=settings.reg)
    rows = compare_derivatives(settings, search_settings)

    from rich.console import Console
    from rich.table import Table

    cli.new_folder(out, "--out")
    content = {"command": cli.command_line(), "settings": asdict(search_settings), "rows": rows}
    with cli.blaming("--out"):
        write_atomically(out / "derivatives.json", json.dumps(content, indent=1) + "\n")
        plot_derivatives(rows, out / "derivatives.png")
    table = Table("term", "precision", "epsilon", "norm", "exact norm", "cosine")
    for row in rows:
        numbers = (f"{row['epsilon']:.0e}", f"{row['norm']:.4g}", f"{row['exact_norm']:.4g}", f"{row['cosine']:.4f}")
        table.add_row(row["term"], row["precision"], *numbers)
    Console(file=sys.stdout).print(table)
    print(f"written to {out}")


if __name__ == "__main__":
    cli.run(main, PROG)
