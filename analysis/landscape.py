"""Measure the validation loss and accuracy around the alpha of a search, along two random orthonormal directions.

The weights come from the checkpoint and stay fixed. DARTS- (Chu et al., ICLR 2021) shows such figures, following Li et
al., "Visualizing the Loss Landscape of Neural Nets" (NeurIPS 2018).

    python analysis/landscape.py runs/search-...                                # around the last checkpoint
    python analysis/landscape.py runs/search-... --epoch 25 --radius 3          # a larger area around epoch 25
    python analysis/landscape.py runs/search-... --definition darts-minus       # as in the figures of DARTS-

The code of DARTS- uses the supernet in evaluation mode, all validation images, and directions that are as long as alpha
on each kind of cell. It augments the images anew at each point; this script does not augment them. The result is in
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
    """The settings of landscape.py."""

    epoch: NonNegativeInt = option(0, "Epoch of the checkpoint at the center. 0 takes the last checkpoint.")
    points: Points | None = option(
        None,
        "Number of grid points along each side. An odd number includes the center. By default 21, or 51 for "
        "darts-minus.",
    )
    radius: PositiveFloat = option(
        1.0,
        "Half the side length of the grid, in units of alpha. A step of length RADIUS changes the n alphas by "
        "RADIUS / sqrt(n) in root mean square: with radius 1, by 0.07 in s5 (n = 196) and by 0.18 in NAS-Bench-201 "
        "(n = 30). For darts-minus the unit is the norm of alpha.",
    )
    batches: PositiveInt | None = option(
        None,
        "Number of validation batches over which the loss is averaged. By default 1, or all for darts-minus.",
    )


def directions(count: int, seed: int) -> "Tensor":
    """Two random orthonormal directions, (count, 2) float64."""
    import torch

    from lib.seeds import random_numbers

    generator = random_numbers("cpu", seed)
    return torch.linalg.qr(torch.randn(count, 2, generator=generator, dtype=torch.float64)).Q


def scale_to_alpha(alphas: "Sequence[Tensor]", plane: "Tensor") -> "Tensor":
    """Orthogonal directions that are as long as alpha on each kind of cell, (n, 2) float64 (code of DARTS-).

    In the code of DARTS- the directions are not orthogonal, because it divides by a norm instead of its square.

    Args:
        alphas: The alpha of each kind of cell, (n_kind,) each.
        plane: Two directions, (n, 2). The parts for each kind of cell are orthonormalized first.
    """
    import torch

    parts = zip(alphas, plane.split([len(alpha) for alpha in alphas]), strict=True)
    return torch.cat([alpha.double().cpu().norm() * torch.linalg.qr(part).Q for alpha, part in parts])


def measure_landscape(
    valid: "ValidationLoss", epoch: int, points: int, radius: float, definition: Definition
) -> list[dict[str, Any]]:
    """Measure loss and accuracy at alpha + x d_1 + y d_2 for x and y from -radius to radius. Return a row per point.

    The columns are epoch, x, y, loss and accuracy (0 to 1). y varies fastest.

    Raises:
        InputError: The checkpoint is corrupt or has other settings.
        FloatingPointError: A loss is not finite.
    """
    import torch

    from lib.progress import StepProgress

    centre = valid.restore(epoch)
    plane = directions(len(centre), valid.search.settings.seed)
    if definition == "darts-minus":
        plane = scale_to_alpha(centre.split(valid.sizes), plane)
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
    """Plot contours of loss and accuracy, with a dot at the alpha of the checkpoint."""
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

    # imported here, so that --help and errors in flags need not load torch
    from analysis.curves import title
    from analysis.validation import ValidationLoss

    of_darts_minus = settings.definition == "darts-minus"
    points, batches, unit = (51, None, "lengths of α") if of_darts_minus else (21, 1, "units of α")
    valid = ValidationLoss(run, stored, settings.batches or batches, evaluation=of_darts_minus)
    epoch = settings.epoch or valid.epochs[-1]
    if epoch not in valid.epochs:
        kept = ", ".join(map(str, valid.epochs))
        raise InputError(f"--epoch: {epoch}, expected one of {kept}, the epochs of the checkpoints in {run}")
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
