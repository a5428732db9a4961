"""Measure the error of the regularizer's gradient in float32, TF32 and bfloat16.

    python benchmarks/low_precision.py --space s2 --epsilon_0 1e-3

The script prints the cosine similarity with the gradient in float64, for difference and exact derivatives of an
untrained supernet on random images. CPUs have no TF32. There, the inputs of convolutions are rounded as on a GPU.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.results import check_out, write_results
from lib import cli, options
from lib.options import Channels, ImageSize, Layers, PositiveFloat, PositiveInt, option

if TYPE_CHECKING:
    import torch

    from model_search import AnySupernet

PROG = "low_precision.py"


@dataclass
class LowPrecisionSettings:
    """The settings of this benchmark."""

    space: Literal["s1", "s2", "s3", "s4", "s5", "nasbench201"] = option("s5", "Search space of the supernet.")
    init_channels: Channels = option(8, "Channels C of the first cells.")
    layers: Layers = option(8, "Number of cells in s1 to s5.")
    cells_per_stage: Layers = option(2, "Cells N of each stage in nasbench201.")
    batch_size: PositiveInt = option(48, "Number of random images.")
    image_size: ImageSize = option(32, "Height and width of the random images in pixels.")
    epsilon_0: PositiveFloat = option(1e-4, "Step length epsilon_0 of the differences.")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Device to run on: auto, cpu or cuda.")
    out: str = option("", "JSON file for the results. By default none is written.")


def emulated_tf32() -> AbstractContextManager[Any]:
    """A context that rounds the inputs of convolutions to the ten fraction bits of TF32."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    # number of leading arguments that are rounded: (gradient,) image, kernel
    factors = {aten.convolution.default: 2, aten.convolution_backward.default: 3}

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    class TensorFloat32(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            count = factors.get(function, 0)
            return function(*(rounded(x) for x in args[:count]), *args[count:], **(kwargs or {}))

    return TensorFloat32()


@contextmanager
def tf32_of_the_gpu() -> Iterator[None]:
    """A context in which convolutions on the GPU use TF32."""
    from lib.devices import set_up_libraries

    set_up_libraries(tf32=True)
    try:
        yield
    finally:
        set_up_libraries(tf32=False)


def make_supernet(settings: LowPrecisionSettings) -> "AnySupernet":
    """Make an untrained supernet."""
    from model_search import Supernet
    from nasbench201.networks import Supernet201
    from spaces import SPACES

    if settings.space == "nasbench201":
        return Supernet201(settings.init_channels, settings.cells_per_stage)
    return Supernet(SPACES[settings.space], settings.init_channels, settings.layers)


def gradient_cosines(settings: LowPrecisionSettings, device: "torch.device") -> list[dict[str, Any]]:
    """The cosine similarity of each precision's gradient with the float64 gradient; a row per kind of derivatives."""
    import torch

    from lib.batches import Batch
    from lib.devices import memory_format, set_up_libraries
    from lib.objective import Objective, cosine_similarity
    from regularizers import regularized_gradient

    set_up_libraries(tf32=False)
    torch.manual_seed(0)
    layout = memory_format("auto", device)
    supernet = make_supernet(settings).to(device).to(memory_format=layout)
    images = torch.randn(settings.batch_size, 3, settings.image_size, settings.image_size).to(memory_format=layout)
    batch = Batch(images.to(device), (torch.arange(len(images)) % 10).to(device), 0)
    weights = [torch.randn(supernet.alpha_shapes[kind]).softmax(dim=-1).to(device) for kind in supernet.kinds]
    autocast = partial(torch.autocast, device.type, torch.bfloat16)

    def gradient(
        derivatives: Any, dtype: torch.dtype, mode: AbstractContextManager[Any], autocast: Any = nullcontext
    ) -> list[torch.Tensor]:
        supernet.to(dtype)
        inputs = ([weight.to(dtype) for weight in weights], batch._replace(images=batch.images.to(dtype)))
        objective = Objective(supernet, autocast)
        with mode:
            found = regularized_gradient(objective, *inputs, "corr", derivatives, settings.epsilon_0)
        return [g.double() for g in found.regularizer_gradient]

    rows = []
    for derivatives in ("difference", "exact"):
        expected = gradient(derivatives, torch.float64, nullcontext())
        tf32 = tf32_of_the_gpu() if device.type == "cuda" else emulated_tf32()
        found = {
            "float32": gradient(derivatives, torch.float32, nullcontext()),
            "tf32": gradient(derivatives, torch.float32, tf32),
            "bfloat16": gradient(derivatives, torch.float32, nullcontext(), autocast),
        }
        cosines = {name: cosine_similarity(value, expected).item() for name, value in found.items()}
        rows.append({"space": settings.space, "derivatives": derivatives, **cosines})
    return rows


def main() -> None:
    settings = options.parse(LowPrecisionSettings, PROG, __doc__.splitlines()[0])
    check_out(settings.out)
    import torch

    from lib.devices import check_device

    device = torch.device(check_device(settings.device)[0])
    rows = gradient_cosines(settings, device)
    print(f"{settings.space} on {device}\n| derivatives | float32 | TF32 | bfloat16 |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['derivatives']} | {row['float32']:.4f} | {row['tf32']:.4f} | {row['bfloat16']:.4f} |")
    write_results(settings, settings.out, command=cli.command_line(), rows=rows)


if __name__ == "__main__":
    cli.run(main, PROG)
