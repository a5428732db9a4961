"""Measure the float32 rounding error of the weight gradient, for this project's supernet and for the plain one.

    python benchmarks/exactness.py --space s5

The script prints relative errors of the gradient in the weights, for random images and random mixing weights.
"""

import copy
from dataclasses import dataclass
from typing import Literal

from lib import cli, options
from lib.options import Channels, ImageSize, Layers, PositiveInt, Seed, option

PROG = "exactness.py"


@dataclass
class ExactnessSettings:
    """The settings of this benchmark."""

    space: Literal["s1", "s2", "s3", "s5"] = option("s5", "Search space. s4 is left out, because it is random.")
    init_channels: Channels = option(16, "Channels C of the first cells.")
    layers: Layers = option(8, "Number of cells in the supernet.")
    image_size: ImageSize = option(32, "Height and width of the random images in pixels.")
    batch_size: PositiveInt = option(64, "Number of random images.")
    seed: Seed = option(0, "Seed of the weights and the images.")


def main() -> None:
    settings = options.parse(ExactnessSettings, PROG, __doc__.splitlines()[0])

    import torch

    from benchmarks.plain import as_plain, plain_supernet
    from lib.batches import Batch
    from lib.objective import Objective, norm
    from model_search import Supernet
    from regularizers import weight_gradient
    from spaces import SPACES

    torch.manual_seed(settings.seed)
    ours = Supernet(SPACES[settings.space], settings.init_channels, settings.layers)
    ours.to(memory_format=torch.channels_last)
    plain = plain_supernet(ours)
    exact = copy.deepcopy(plain).double()
    images = torch.randn(settings.batch_size, 3, settings.image_size, settings.image_size)
    labels = torch.randint(0, 10, (settings.batch_size,))
    weights = [torch.rand(ours.alpha_shapes[kind]).softmax(dim=-1) for kind in ours.kinds]

    def gradient(network: torch.nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
        mixing = [weight.to(images.dtype) for weight in weights]
        taken = weight_gradient(Objective(network), mixing, Batch(images, labels, 0)).gradient
        return {name: g.double() for (name, _), g in zip(network.named_parameters(), taken, strict=True)}

    of_ours = as_plain(ours, gradient(ours, images.to(memory_format=torch.channels_last)))
    of_plain, of_exact = gradient(plain, images), gradient(exact, images.double())

    def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return (norm([a[name] - b[name] for name in b]) / norm(list(b.values()))).item()

    print("| gradients | relative difference |")
    print("|---|---|")
    print(f"| ours, from double precision | {apart(of_ours, of_exact):.1e} |")
    print(f"| plain, from double precision | {apart(of_plain, of_exact):.1e} |")
    print(f"| ours, from plain | {apart(of_ours, of_plain):.1e} |")


if __name__ == "__main__":
    cli.run(main, PROG)
