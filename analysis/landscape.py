"""Validation loss and accuracy around the alpha of a search, on a plane of two random orthonormal directions.

The weights are those of the checkpoint. DARTS- (Chu et al., ICLR 2021) has such pictures, after Li et al., "Visualizing
the Loss Landscape of Neural Nets" (NeurIPS 2018).

    python analysis/landscape.py runs/search-...                                # at the last checkpoint
    python analysis/landscape.py runs/search-... --epoch 25 --radius 3          # at another one, farther out
    python analysis/landscape.py runs/search-... --definition darts-minus       # as in DARTS-'s figures

DARTS-'s code takes the supernet in evaluation mode, all validation images, and directions that are as long as alpha on
each kind of cell. It augments the images anew at each point; here they are not augmented. The result is in
RUN/landscape-darts-minus.csv.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from analysis.colors import shade
from analysis.hessian import Definition, MeasurementSettings, read_command_line
from lib import cli
from lib.cli import InputError
from lib.files import write_atomically, write_csv
from lib.options import Limit, NonNegativeInt, PositiveFloat, PositiveInt, option

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.validation import ValidationLoss

PROG = "landscape.py"
Points = Annotated[int, Limit("2 to 1000", lambda n: 2 <= n <= 1000)]


@dataclass
class LandscapeSettings(MeasurementSettings):
    """The settings of a landscape."""

    epoch: NonNegativeInt = option(0, "Epoch whose checkpoint is the center. 0 takes the last one.")
    points: Points | None = option(
        None,
        "Points along each side of the grid. The center is one of them if the number is odd. By default 21, or 51 for "
        "darts-minus.",
    )
    radius: PositiveFloat = option(
        1.0,
        "Half a side of the grid, in units of alpha. A direction spreads over all n alphas: at its end they have moved "
        "by RADIUS / sqrt(n) in root mean square, 0.07 for the 196 of s5 and 0.18 for the 30 of NAS-Bench-201. For "
        "darts-minus the unit is the length of alpha.",
    )
    batches: PositiveInt | None = option(
        None,
        "Batches of the validation images over which the loss is averaged. By default 1, or all for darts-minus.",
    )


def directions(count: int, seed: int) -> "Tensor":
    """Two random orthonormal directions of a seed, (count, 2) float64."""
    import torch

    from lib.seeds import random_numbers

    generator = random_numbers("cpu", seed)
    return torch.linalg.qr(torch.randn(count, 2, generator=generator, dtype=torch.float64)).Q


def as_long_as(alphas: "Sequence[Tensor]", plane: "Tensor") -> "Tensor":
    """Orthogonal directions that are as long as alpha on each kind of cell, (n, 2) float64 (DARTS-'s code).

    In DARTS-'s code the directions are not orthogonal: it divides by a norm in place of the norm's square.

    Args:
        alphas: The alpha of each kind of cell, (n_kind,) each.
        plane: Two directions, (n, 2), whose parts on each kind of cell are made orthonormal.
    """
    import torch

    parts = zip(alphas, plane.split([len(alpha) for alpha in alphas]), strict=True)
    return torch.cat([alpha.double().cpu().norm() * torch.linalg.qr(part).Q for alpha, part in parts])


def measure_landscape(
    valid: "ValidationLoss", epoch: int, points: int, radius: float, definition: Definition
) -> list[dict[str, Any]]:
    """Loss and accuracy at alpha + x d_1 + y d_2 for x and y from -radius to radius, a row for each point.

    The columns are epoch, x, y, loss and accuracy (a share of 1). y varies fastest.

    Raises:
        InputError: The epoch's checkpoint is damaged or of other settings.
        FloatingPointError: A loss is not finite.
    """
    import torch

    from lib.progress import StepProgress

    centre = valid.restore(epoch)
    plane = directions(len(centre), valid.search.settings.seed)
    if definition == "darts-minus":
        plane = as_long_as(centre.split(valid.sizes), plane)
    first, second = plane.to(centre).t()
    ticks = torch.linspace(-radius, radius, points, dtype=torch.float64).tolist()
    rows = []
    with torch.no_grad(), StepProgress("landscape", points**2, 0) as progress:
        for x in ticks:
            for y in progress.track(f"x = {x:.3g}", ticks):
                loss, accuracy = (value.item() for value in valid(centre + x * first + y * second))
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss is not finite at x = {x:g}, y = {y:g}")
                rows.append({"epoch": epoch, "x": x, "y": y, "loss": loss, "accuracy": accuracy})
    return rows


def plot_landscape(rows: list[dict[str, Any]], heading: str, unit: str, shade: str, path: Path) -> None:
    """Draw the contours of loss and accuracy, and the checkpoint's alpha as a dot."""
    import numpy as np
    from matplotlib.figure import Figure

    from analysis.curves import save

    points = round(len(rows) ** 0.5)
    x, y, loss, accuracy = (
        np.array([row[name] for row in rows]).reshape(points, points) for name in ("x", "y", "loss", "accuracy")
    )
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(heading, fontsize=min(13, 1000 / len(heading)), parse_math=False)
    panels = (("Validation loss", loss, "viridis_r"), ("Validation accuracy [%]", 100 * accuracy, "viridis"))
    for axes, (name, values, colors) in zip(figure.subplots(1, 2), panels, strict=True):
        contours = axes.contourf(x, y, values, levels=20, cmap=colors)
        figure.colorbar(contours, ax=axes)
        axes.plot(0, 0, "o", color=shade, markersize=8, markeredgecolor="white", markeredgewidth=1.5)
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
        axes.set(xlabel=f"along $d_1$ [{unit}]", ylabel=f"along $d_2$ [{unit}]", aspect="equal")
    save(figure, path)


def main() -> None:
    settings, run, stored, config = read_command_line(LandscapeSettings, PROG, __doc__.splitlines()[0])

    # Imported here: --help and a wrong flag are answered before torch is loaded.
    from analysis.curves import title
    from analysis.validation import ValidationLoss

    of_darts_minus = settings.definition == "darts-minus"
    points, batches, unit = (51, None, "lengths of α") if of_darts_minus else (21, 1, "units of α")
    valid = ValidationLoss(run, stored, settings.batches or batches, evaluation=of_darts_minus)
    epoch = settings.epoch or valid.epochs[-1]
    if epoch not in valid.epochs:
        kept = ", ".join(map(str, valid.epochs))
        raise InputError(f"--epoch: {epoch}, but {run} keeps the checkpoints of {kept}; expected one of these")
    rows = measure_landscape(valid, epoch, settings.points or points, settings.radius, settings.definition)
    table, about, picture = (settings.file("landscape", suffix) for suffix in (".csv", ".json", ".png"))
    with cli.blaming("run"):
        write_csv(table, rows)
        write_atomically(about, json.dumps({"command": cli.command_line()}) + "\n")
        heading = settings.heading(f"{title(config)}, epoch {epoch}")
        plot_landscape(rows, heading, unit, shade(stored.method), picture)
    print(f"{table}\n{picture}")


if __name__ == "__main__":
    cli.run(main, PROG)
