"""Compute the dominant eigenvalues of the Hessian of the validation loss in alpha, at each checkpoint of a search.

The Hessian is d2 L_val / d alpha2 at fixed weights, with the alphas of all kinds of cells in one vector. The dominant
eigenvalues have the largest magnitude. RobustDARTS (Zela et al., ICLR 2020) finds that the derived cells generalize
badly if the dominant eigenvalue grows during the search. DARTS- (Chu et al., ICLR 2021) measures it too. A second
backward pass computes exact Hessian-vector products. The Lanczos algorithm needs some tens of them.

A ReLU network has kinks where units turn on or off. The Hessian measures the curvature between kinks only. Over larger
distances the loss also bends at kinks, so second differences of analysis/landscape.py differ from the Hessian.

    python analysis/hessian.py runs/search-...                  # all checkpoints that --keep_checkpoints kept
    python analysis/hessian.py runs/search-... --count 5        # the five eigenvalues of largest magnitude
    python analysis/hessian.py runs/search-... --definition darts-minus        # as in the figures of DARTS-

The figures of DARTS- use RobustDARTS's code. It adds alpha's weight decay to the diagonal and takes the algebraically
largest eigenvalue. As here, it uses one validation batch in training mode. Unlike here, the batch is augmented and
differs between checkpoints.

If RUN/hessian.csv exists, the command adds the new checkpoints to it. With --definition darts-minus the file is
RUN/hessian-darts-minus.csv.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from analysis.colors import shade
from lib import cli
from lib.cli import InputError
from lib.files import read_json, write_atomically, write_csv
from lib.options import NonNegativeInt, PositiveInt, argument, load_settings, option, parse, stored_settings
from lib.settings import DEVICE_HELP
from nasbench201.settings import SCRIPT as SCRIPT_201
from search.settings import SCRIPT, CommonSettings
from spaces import SPACES

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PROG = "hessian.py"
Measurement = TypeVar("Measurement", bound="MeasurementSettings")
Definition = Literal["ours", "darts-minus"]


@dataclass
class MeasurementSettings:
    """The settings that hessian.py and landscape.py share."""

    run: str = argument("Run folder of search/train_search.py or nasbench201/train_search.py.")
    definition: Definition = option(
        "ours",
        "Definition of the measurement. darts-minus is the definition of the figures in DARTS-: hessian.py adds "
        "alpha's weight decay to the diagonal and takes the algebraically largest eigenvalues. landscape.py uses the "
        "supernet in evaluation mode, all validation images, and directions that are as long as alpha.",
    )
    batch_size: NonNegativeInt = option(0, "Number of images per batch. 0 takes the batch size of the search.")
    precision: Literal["32-true", "64-true"] = option("32-true", "Precision of the supernet's passes.")
    data: str = option("", "Folder of the data set's files. By default the folder of the search.")
    device: str = option("auto", DEVICE_HELP)

    def file(self, measure: str, suffix: str = ".csv") -> Path:
        """The path of a result of this definition in the run folder."""
        return Path(self.run) / f"{measure}{'' if self.definition == 'ours' else f'-{self.definition}'}{suffix}"

    def heading(self, title: str) -> str:
        """The heading of the figure for a search with this title."""
        return title if self.definition == "ours" else f"{title}, DARTS-'s definition"


@dataclass
class HessianSettings(MeasurementSettings):
    """The settings of hessian.py."""

    count: PositiveInt = option(1, "Number of eigenvalues to compute.")
    batches: PositiveInt = option(1, "Number of validation batches over which the loss is averaged.")


def search_settings(run: Path, given: MeasurementSettings) -> CommonSettings:
    """Load the settings of a search, with the device, data and precision of the measurement.

    Raises:
        InputError: `run` is not the run folder of a search.
    """
    of_201 = stored_settings(run, "run").get("space") == "nasbench201"
    script = SCRIPT_201 if of_201 else SCRIPT
    stored = load_settings(script.settings, script.path, run, "run")
    changes: dict[str, Any] = {"precision": given.precision, "device": given.device, "data": given.data or stored.data}
    changes |= {"batch_size": given.batch_size or stored.batch_size, **({"table": ""} if of_201 else {})}
    return replace(stored, **changes, tf32=False, compile=False, cuda_graphs=False)


def read_command_line(
    kind: type[Measurement], prog: str, description: str
) -> tuple[Measurement, Path, CommonSettings, dict[str, Any]]:
    """Return the settings of the measurement, the run folder, the settings of the search, and its config.yaml.

    Raises:
        InputError: The folder is not the run folder of a search.
    """
    settings = parse(kind, prog, description)
    run = Path(settings.run)
    return settings, run, search_settings(run, settings), stored_settings(run, "run")


def dominant_eigenvalues(loss: "Tensor", alpha: "Tensor", count: int, algebraic: bool = False) -> "np.ndarray":
    """The eigenvalues of d2 loss / d alpha2 with the largest magnitude, in descending order of magnitude, (count,).

    Args:
        loss: A scalar that depends on alpha.
        alpha: (n,), n > count.
        algebraic: Return the algebraically largest eigenvalues, in descending order.

    Raises:
        FloatingPointError: The Hessian is not finite, or the iterations do not converge.
    """
    import numpy as np
    import torch
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    (gradient,) = torch.autograd.grad(loss, alpha, create_graph=True)

    def product(vector: np.ndarray) -> np.ndarray:
        v = torch.from_numpy(vector).to(alpha.dtype).to(alpha.device)
        (result,) = torch.autograd.grad(gradient, alpha, v, retain_graph=True)
        if not result.isfinite().all():
            raise FloatingPointError("the Hessian is not finite")
        return result.double().cpu().numpy()

    n = len(alpha)
    hessian = LinearOperator((n, n), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)  # ARPACK's default start is random
    # tolerance of the residual; the error of an eigenvalue is quadratic in it
    tolerance = torch.finfo(alpha.dtype).eps ** 0.5
    try:
        which = "LA" if algebraic else "LM"
        values = eigsh(hessian, count, which=which, v0=start, tol=tolerance, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        raise FloatingPointError(
            f"only {len(error.eigenvalues)} of {count} eigenvalues converged; try fewer, or --precision 64-true"
        ) from error
    return values[np.argsort(-values if algebraic else -np.abs(values))]


def measure_eigenvalues(run: Path, settings: HessianSettings, stored: CommonSettings) -> list[dict[str, Any]]:
    """Measure each checkpoint and return the rows in order of epoch. Write RUN/hessian.csv after each checkpoint.

    The columns are epoch, eigenvalue_1 to eigenvalue_<count>, and loss, the validation loss without weight decay.
    RUN/hessian.json stores the settings of the measurement.

    Raises:
        InputError: There is no checkpoint, or hessian.csv was measured with other settings.
        FloatingPointError: A Hessian is not finite.
    """
    path, about = settings.file("hessian"), settings.file("hessian", ".json")
    of_darts_minus = settings.definition == "darts-minus"
    decay = stored.arch_weight_decay if of_darts_minus else 0.0
    made: dict[str, Any] = {"count": settings.count, "batches": settings.batches}
    made |= {"batch_size": stored.batch_size, "precision": settings.precision}
    rows = kept_rows(path, made)

    from analysis.validation import ValidationLoss
    from lib.progress import StepProgress

    valid = ValidationLoss(run, stored, settings.batches)
    epochs = [epoch for epoch in valid.epochs if epoch not in rows]
    with StepProgress("checkpoints", len(rows) + len(epochs), len(rows)) as progress:
        for row in rows.values():
            progress.line(_line(row))
        for epoch in epochs:
            progress.start(f"epoch {epoch}", 1)
            alpha = valid.restore(epoch).requires_grad_()
            loss, _ = valid(alpha)
            decayed = loss + decay / 2 * alpha.square().sum()
            values = dominant_eigenvalues(decayed, alpha, settings.count, algebraic=of_darts_minus).tolist()
            eigenvalues = {f"eigenvalue_{number}": value for number, value in enumerate(values, start=1)}
            rows[epoch] = {"epoch": epoch, **eigenvalues, "loss": loss.item()}
            with cli.blaming("run"):
                if not path.exists():
                    write_atomically(about, json.dumps({"command": cli.command_line(), **made}) + "\n")
                write_csv(path, [rows[done] for done in sorted(rows)])
            progress.line(_line(rows[epoch]))
            progress.advance()
    return [rows[epoch] for epoch in sorted(rows)]


def kept_rows(path: Path, made: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """epoch -> its row in hessian.csv; empty if there is no such file.

    Raises:
        InputError: They were not measured with the settings `made`.
    """
    if not path.exists():
        return {}

    from analysis.curves import read_columns

    with cli.blaming("run"):
        rows = read_columns(path).astype({"epoch": int}).to_dict("records")
        earlier = read_json(path.with_suffix(".json"))
    for name, value in made.items():
        if earlier[name] != value:
            raise InputError(f"--{name}: {value}, expected {earlier[name]}, with which {path} was measured")
    return {row["epoch"]: row for row in rows}


def _line(row: dict[str, Any]) -> str:
    values = "  ".join(f"{value:.6g}" for name, value in row.items() if name.startswith("eigenvalue"))
    return f"epoch {row['epoch']}  eigenvalues {values}  loss {row['loss']:.4f}"


def plot_eigenvalues(rows: list[dict[str, Any]], heading: str, shade: str, path: Path) -> None:
    """Plot the loss and the eigenvalues, from the largest (dark) to the smallest (light), over the epochs."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    from analysis.curves import save, set_up_panel

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(heading, fontsize=min(13, 1000 / len(heading)), parse_math=False)
    eigenvalues, loss = figure.subplots(1, 2)
    set_up_panel(eigenvalues, "Dominant eigenvalues of the Hessian in α")
    set_up_panel(loss, "Validation loss")
    epochs, style = [row["epoch"] for row in rows], {"marker": "o", "markersize": 4, "linewidth": 1.8}
    names = [name for name in rows[0] if name.startswith("eigenvalue")]
    for name, color in zip(names, matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(names))), strict=True):
        eigenvalues.plot(epochs, [row[name] for row in rows], color=color, **style)
    eigenvalues.axhline(0, color="gray", linewidth=0.8)
    loss.plot(epochs, [row["loss"] for row in rows], color=shade, **style)
    save(figure, path)


def main() -> None:
    settings, run, stored, config = read_command_line(HessianSettings, PROG, __doc__.splitlines()[0])
    alphas = sum(map(sum, SPACES[config["space"]].counts.values()))
    if settings.count >= alphas:
        raise InputError(f"--count: {settings.count}, expected less than the {alphas} alphas of {config['space']}")
    rows = measure_eigenvalues(run, settings, stored)

    from analysis.curves import title

    with cli.blaming("run"):
        picture = settings.file("hessian", ".png")
        plot_eigenvalues(rows, settings.heading(title(config)), shade(stored.method), picture)
    print(f"{settings.file('hessian')}\n{picture}")


if __name__ == "__main__":
    cli.run(main, PROG)
