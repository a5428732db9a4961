"""Second derivatives by differences against the exact ones: norm and cosine at each epsilon, as a table and a picture.

A ReLU network has units so near zero that a step of size epsilon switches some of them; each switch adds to a
difference of gradients an error that the derivative does not have. This measures how much of the papers' differences is
derivative.

    python analysis/derivatives.py --run runs/search-...                                 # at the checkpoint of a run
    python analysis/derivatives.py --dataset digits --space s2 --layers 5 --steps 60     # after 60 weight steps
"""

import json
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from lib import cli, options
from lib.cli import InputError
from lib.files import write_atomically
from lib.options import Channels, Fraction, Layers, NonNegativeInt, PositiveFloat, PositiveInt, Seed, option
from lib.settings import DEVICE_HELP, ImageSettings
from search.settings import SearchSettings, load_settings

PROG = "derivatives.py"


EPSILONS = (1e-11, 1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass
class Settings(ImageSettings):
    """The settings of a measurement. Those of the data and the supernet have no effect beside --run."""

    run: str = option("", "Run folder whose settings and last checkpoint are used.")
    steps: NonNegativeInt = option(60, "Weight steps to take first, if --run is not given.")
    batch_size: PositiveInt = option(48, "Images of the training and of the validation batch.")
    reg: Literal["corr", "signcorr"] = option("corr", "Layer alignment whose gradient is taken.")
    epsilons: list[PositiveFloat] | None = option(None, f"Radii to measure. By default {' '.join(map(str, EPSILONS))}.")
    seed: Seed = option(0, "Seed of the weights and the batches, if --run is not given.")
    device: str = option("auto", DEVICE_HELP)
    out: str = option("derivatives", "Folder for derivatives.json and derivatives.png.")
    space: Literal["s1", "s2", "s3", "s4", "s5"] = option("s5", "Search space.")
    layers: Layers = option(8, "Number of cells.")
    init_channels: Channels = option(16, "Channels C of the first cells.")
    train_portion: Fraction = option(0.5, "Share of the training images for the weights.")


def terms_of(
    state: Any,
    now: Any,
    batches: tuple,
    momentum: list,
    search_settings: SearchSettings,
    derivatives: str,
    epsilon: float,
) -> dict[str, list]:
    """The terms of a search's step at a training and a validation batch, in its own precision."""
    from architect import implicit, unrolled
    from lib.objective import Objective
    from regularizers import regularized_gradient

    objective = Objective(state.supernet, drop_path_prob=now.drop_path_prob, skip_beta=now.skip_beta)
    weights, (batch, valid) = state.layer_weights(), map(state.cast, batches)
    ahead = unrolled(
        objective,
        weights,
        batch,
        valid,
        now.learning_rate,
        [buffer.to(weights[0].dtype) for buffer in momentum],
        search_settings.momentum,
        search_settings.weight_decay,
        derivatives,
        epsilon,
    )
    series = implicit(
        objective,
        weights,
        batch,
        valid,
        now.learning_rate,
        search_settings.neumann_terms,
        derivatives,
        epsilon,
    )
    regularized = regularized_gradient(objective, weights, batch, search_settings.reg, derivatives, epsilon)
    return {
        "regularizer": regularized.regularizer_gradient,
        "unrolled": ahead.mixed,
        "implicit": series.mixed,
    }


def measure(settings: Settings, search_settings: SearchSettings) -> list[dict]:
    """One row for each term, precision and epsilon: the difference's norm, the exact norm, the cosine between them.

    The exact terms are computed in float64. Terms: "regularizer", grad_w R (Λ-DARTS, section 4); "unrolled",
    d2L_train / dp dw . v (DARTS, equation 7), and "implicit", d2L_train / dp dw . s (iDARTS, equation 9), whose usual
    epsilon is 0.01. The Hessian's products in s are always exact, and the radius of "implicit" is that of v_0.
    """
    from lib import datasets
    from lib.batches import cycle
    from lib.checkpoints import load_last
    from lib.devices import prepare_device
    from lib.objective import Objective, cosine_similarity, norm
    from search.bilevel import Search, schedule
    from utils import Averages

    device = prepare_device(settings.device)
    with cli.blaming(f"--data: {search_settings.dataset}"):
        dataset = datasets.load(
            search_settings.dataset,
            search_settings.data,
            search_settings.image_size,
            search_settings.download,
            search_settings.images,
        )
    search = Search(search_settings, dataset, device)
    if settings.run:
        with cli.blaming("--run"):
            last = load_last(Path(settings.run) / "checkpoints")
            if last is None:
                raise ValueError(f"{settings.run} has no checkpoint; expected a run of one epoch or more")
        search.restore(last[1])
    now = schedule(search_settings, len(search.rows))
    if not settings.run:
        objective = Objective(search.supernet, drop_path_prob=now.drop_path_prob, skip_beta=now.skip_beta)
        for batch in cycle(search.batches(0)[0], settings.steps):
            search.weight_step(objective, search.cast(batch), 0.0, False, Averages())
    batches = tuple(next(iter(part)) for part in search.batches(len(search.rows)))

    double = Search(replace(search_settings, precision="64-true"), dataset, device)
    double.supernet.load_state_dict(search.supernet.state_dict())
    double.architecture.load_state_dict(search.architecture.state_dict())

    def terms(state: Search, derivatives: str, epsilon: float) -> dict[str, list]:
        return terms_of(state, now, batches, search.momentum_buffers(), search_settings, derivatives, epsilon)

    exact = terms(double, "exact", 1.0)
    rows = []
    for precision, state in (("float64", double), ("float32", search)):
        for epsilon in settings.epsilons or EPSILONS:
            for term, found in terms(state, "difference", epsilon).items():
                gradient = [g.double() for g in found]
                rows.append(
                    {
                        "term": term,
                        "precision": precision,
                        "epsilon": epsilon,
                        "norm": norm(gradient).item(),
                        "exact_norm": norm(exact[term]).item(),
                        "cosine": cosine_similarity(gradient, exact[term]).item(),
                    }
                )
    return rows


def plot(rows: list[dict], path: Path) -> None:
    """Norm and cosine against epsilon, a column for each term."""
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
        for precision, colour in (("float64", "#0072B2"), ("float32", "#D55E00")):
            chosen = [row for row in rows if row["term"] == term and row["precision"] == precision]
            epsilons = [row["epsilon"] for row in chosen]
            # a difference too small for the precision is 0 and has no place on a log scale
            norms.plot(epsilons, [row["norm"] or None for row in chosen], "o-", color=colour, label=precision)
            cosines.plot(epsilons, [row["cosine"] for row in chosen], "o-", color=colour, label=precision)
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
    parsed = options.parse_given(Settings, PROG, __doc__.splitlines()[0])
    settings = parsed.settings
    stored = {
        field.name
        for field in fields(Settings)
        if field.name not in ("run", "batch_size", "reg", "epsilons", "device", "out")
    }
    if settings.run and parsed.flags & stored:
        flags = ", ".join(f"--{name}" for name in sorted(parsed.flags & stored))
        raise InputError(f"--run: the run keeps its own settings; {flags} cannot be given beside it")
    if settings.run:
        search_settings = load_settings(Path(settings.run), "--run")
    else:
        own = {field.name for field in fields(SearchSettings)}
        search_settings = SearchSettings(**{name: value for name, value in asdict(settings).items() if name in own})
    out = Path(settings.out)
    cli.check_new_folder(out, "--out")
    rows = measure(settings, replace(search_settings, batch_size=settings.batch_size, reg=settings.reg))

    from rich.console import Console
    from rich.table import Table

    cli.new_folder(out, "--out")
    content = {"command": cli.command_line(), "settings": asdict(search_settings), "rows": rows}
    with cli.blaming("--out"):
        write_atomically(out / "derivatives.json", json.dumps(content, indent=1) + "\n")
        plot(rows, out / "derivatives.png")
    table = Table("term", "precision", "epsilon", "norm", "exact norm", "cosine")
    for row in rows:
        table.add_row(
            row["term"],
            row["precision"],
            f"{row['epsilon']:.0e}",
            f"{row['norm']:.4g}",
            f"{row['exact_norm']:.4g}",
            f"{row['cosine']:.4f}",
        )
    Console(file=sys.stdout).print(table)
    print(f"written to {out}")


if __name__ == "__main__":
    cli.run(main, PROG)
