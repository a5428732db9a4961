"""Dominant eigenvalues of the validation loss's Hessian in alpha, at each checkpoint that a search has kept.

They are those of largest magnitude of d2 L_val / d alpha2 at fixed weights, over the alphas of all kinds of cells
together. RobustDARTS (Zela et al., ICLR 2020) finds that a search whose dominant eigenvalue grows gives cells that
generalize badly; DARTS- (Chu et al., ICLR 2021) measures it too. The Hessian's products with vectors are exact, by a
second backward pass, and Lanczos iterations find the eigenvalues with some tens of them.

It is the curvature between the kinks of a ReLU network. The surface also bends in these, where units switch as alpha
moves, so that its differences at any larger step (analysis/landscape.py) are others.

    python analysis/hessian.py runs/search-...                  # a search keeps two checkpoints, or --keep_checkpoints
    python analysis/hessian.py runs/search-... --count 5        # the five of largest magnitude

The same command goes on: what RUN/hessian.csv has is kept, also of checkpoints that are gone by now.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from analysis.colors import METHODS
from lib import cli
from lib.cli import InputError
from lib.files import read_json, write_atomically, write_csv
from lib.options import NonNegativeInt, PositiveInt, argument, option, parse, stored_settings
from lib.settings import DEVICE_HELP
from nasbench201.settings import SCRIPT as SCRIPT_201
from search.settings import SCRIPT, CommonSettings, load_settings
from spaces import SPACES

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PROG = "hessian.py"
Given = TypeVar("Given", bound="MeasureSettings")


@dataclass
class MeasureSettings:
    """The settings of a measurement of a search."""

    run: str = argument("Run folder of search/train_search.py or nasbench201/train_search.py.")
    batches: PositiveInt = option(1, "Batches of the validation images over which the loss is averaged.")
    batch_size: NonNegativeInt = option(0, "Images of a batch. 0 takes the number of the search.")
    precision: Literal["32-true", "64-true"] = option("32-true", "Precision of the supernet's passes.")
    data: str = option("", "Folder of the data set's files. By default the folder of the search.")
    device: str = option("auto", DEVICE_HELP)


@dataclass
class Settings(MeasureSettings):
    """The settings of a measurement of eigenvalues."""

    count: PositiveInt = option(1, "Number of eigenvalues, those of largest magnitude.")


def search_settings(run: Path, given: MeasureSettings) -> CommonSettings:
    """The settings of a search in either space, on the device, data and precision of the measurement.

    Raises:
        InputError: `run` is no run folder of a search.
    """
    of_201 = stored_settings(run, "run").get("space") == "nasbench201"
    stored = load_settings(run, "run", SCRIPT_201 if of_201 else SCRIPT)
    return replace(
        stored,
        data=given.data or stored.data,
        batch_size=given.batch_size or stored.batch_size,
        precision=given.precision,
        device=given.device,
        tf32=False,
        compile=False,
        cuda_graphs=False,
        **({"table": ""} if of_201 else {}),
    )


def read_command_line(kind: type[Given], prog: str, description: str) -> tuple[Given, Path, CommonSettings]:
    """The settings of a measurement, the run folder of a search, and that search's settings for it.

    Raises:
        InputError: it is no run folder of a search.
    """
    settings = parse(kind, prog, description)
    run = Path(settings.run)
    return settings, run, search_settings(run, settings)


def dominant_eigenvalues(loss: "Tensor", alpha: "Tensor", count: int) -> "np.ndarray":
    """The eigenvalues of d2 loss / d alpha2 of largest magnitude, the largest first, (count,).

    Args:
        loss: a scalar, whose graph leads to alpha; the products with vectors go through it again and again.
        alpha: (n,), n > count.

    Raises:
        FloatingPointError: the Hessian is not finite, or the iterations do not converge.
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
    start = np.random.default_rng(0).standard_normal(n)  # ARPACK's own differs from call to call
    # of the residual: an eigenvalue's error is quadratic in it
    tolerance = torch.finfo(alpha.dtype).eps ** 0.5
    try:
        values = eigsh(hessian, count, which="LM", v0=start, tol=tolerance, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        raise FloatingPointError(
            f"only {len(error.eigenvalues)} of {count} eigenvalues converged; fewer, or --precision 64-true, may do"
        ) from error
    return values[np.argsort(-np.abs(values))]


def measure(run: Path, settings: Settings, stored: CommonSettings) -> list[dict[str, Any]]:
    """A row for each checkpoint, in order of epoch, written to RUN/hessian.csv as they come.

    The columns are epoch, eigenvalue_1 to eigenvalue_<count>, and loss, the validation loss they are of. What the
    first of them was measured with is in RUN/hessian.json, so that no row of another measurement joins them.

    Raises:
        InputError: there is no checkpoint, or what is there was measured otherwise.
        FloatingPointError: a Hessian is not finite.
    """
    path = run / "hessian.csv"
    columns = ["epoch", *(f"eigenvalue_{number}" for number in range(1, settings.count + 1)), "loss"]
    made = {"batches": settings.batches, "batch_size": stored.batch_size, "precision": settings.precision}
    rows = kept_rows(path, columns, made)

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
            eigenvalues = dominant_eigenvalues(loss, alpha, settings.count)
            rows[epoch] = dict(zip(columns, [epoch, *eigenvalues.tolist(), loss.item()], strict=True))
            with cli.blaming("run"):
                if not path.exists():
                    origin = {"command": cli.command_line(), **made}
                    write_atomically(path.with_suffix(".json"), json.dumps(origin) + "\n")
                write_csv(path, [rows[done] for done in sorted(rows)])
            progress.line(_line(rows[epoch]))
            progress.advance()
    return [rows[epoch] for epoch in sorted(rows)]


def kept_rows(path: Path, columns: list[str], made: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The rows of an earlier measurement, by epoch.

    Args:
        path: hessian.csv; beside it, hessian.json says how it was made.
        columns: that it must have.
        made: the settings it must be made with.

    Raises:
        InputError: it was measured otherwise, or is damaged.
    """
    if not path.exists():
        return {}

    from analysis.curves import read_columns

    with cli.blaming("run"):
        table = read_columns(path)
        if list(table) != columns:
            raise ValueError(f"{path} has the columns {', '.join(table)}; expected {', '.join(columns)} (--count)")
        rows = table.astype({"epoch": int}).to_dict("records")
        earlier = read_json(path.with_suffix(".json"))
        if not isinstance(earlier, dict):
            raise ValueError(f"{path.with_suffix('.json')} does not say how {path.name} was made")
    for name, value in made.items():
        if earlier.get(name) != value:
            raise InputError(f"--{name}: {value}, but {path} was measured with {earlier.get(name)}; expected the same")
    return {row["epoch"]: row for row in rows}


def _line(row: dict[str, Any]) -> str:
    values = "  ".join(f"{value:.6g}" for name, value in row.items() if name.startswith("eigenvalue"))
    return f"epoch {row['epoch']}  eigenvalues {values}  loss {row['loss']:.4f}"


def plot(rows: list[dict[str, Any]], heading: str, shade: str, path: Path) -> None:
    """The eigenvalues over the epochs, from the largest (dark) to the smallest (light), and the loss.

    Raises:
        OSError: the picture cannot be written.
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    from analysis.curves import dress, save

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(heading, fontsize=min(13, 1000 / len(heading)), parse_math=False)
    eigenvalues, loss = figure.subplots(1, 2)
    dress(eigenvalues, "Dominant eigenvalues of the Hessian in α")
    dress(loss, "Validation loss")
    epochs, style = [row["epoch"] for row in rows], {"marker": "o", "markersize": 4, "linewidth": 1.8}
    names = [name for name in rows[0] if name.startswith("eigenvalue")]
    for name, shade in zip(names, matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(names))), strict=True):
        eigenvalues.plot(epochs, [row[name] for row in rows], color=shade, **style)
    eigenvalues.axhline(0, color="gray", linewidth=0.8)
    loss.plot(epochs, [row["loss"] for row in rows], color=shade, **style)
    save(figure, path)


def main() -> None:
    settings, run, stored = read_command_line(Settings, PROG, __doc__.splitlines()[0])
    alphas = sum(len(edges) * len(edges[0]) for edges in SPACES[stored.space].cells.values())
    if settings.count >= alphas:
        raise InputError(f"--count: {settings.count}, expected less than the {alphas} alphas of {stored.space}")
    rows = measure(run, settings, stored)

    from analysis.curves import title

    with cli.blaming("run"):
        plot(rows, title(asdict(stored)), METHODS[stored.method][0], run / "hessian.png")
    print(f"{run / 'hessian.csv'}\n{run / 'hessian.png'}")


if __name__ == "__main__":
    cli.run(main, PROG)
