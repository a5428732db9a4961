"""Measure time, operator calls and memory of a search step, compared with a plain implementation.

    python benchmarks/search_step.py --methods lambda-darts --space s5

A step is a weight step and its share of an alpha step, with the full weight of the regularizer, on random images.

`auto`, `channels_last` and `contiguous` are this project's search with this --memory_format; -graphs adds CUDA graphs.
`plain` is benchmarks/plain.py, as in the released codes: a module for each operation of each edge, contiguous images,
eager mode, and gradients of weights and mixing weights in every pass. The ways take turns, each in a separate process.
The script prints medians.

Operator calls are the calls that reach a GPU, in float32 with contiguous images; other steps are not counted. Views
are not counted. The memory traffic is what these operators read and write if they access each tensor once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from benchmarks.results import check_out, write_results
from benchmarks.turns import take_turns
from lib import cli, options
from lib.options import Channels, ImageSize, Layers, PositiveInt, Seed, option
from search.settings import SCRIPT, MethodName

if TYPE_CHECKING:
    from lib.batches import Batch
    from search.state import SearchState

PROG = "search_step.py"
Way = Literal[
    "auto", "channels_last", "contiguous", "auto-graphs", "channels_last-graphs", "contiguous-graphs", "plain"
]

#: title of a column -> key and format of its values
COLUMNS = {
    "s/step": ("seconds_per_step", ".4f"),
    "images/s": ("images_per_second", ".1f"),
    "calls": ("operator_calls", ",d"),
    "convolutions": ("convolutions", ",d"),
    "traffic [GiB]": ("traffic_gib", ".2f"),
    "peak memory [MiB]": ("peak_memory_mib", ".0f"),
    "times as fast as plain": ("times_as_fast", ".2f"),
}


@dataclass
class SearchStepSettings:
    """The settings of this benchmark."""

    methods: list[MethodName] | None = option(None, "Values of --method in train_search.py. By default lambda-darts.")
    space: Literal["s1", "s2", "s3", "s4", "s5", "nasbench201"] = option("s5", "Search space of the supernet.")
    init_channels: Channels = option(16, "Channels C of the first cells.")
    layers: Layers = option(8, "Number of cells in s1 to s5.")
    cells_per_stage: Layers = option(5, "Cells N of each stage in nasbench201.")
    image_size: ImageSize = option(32, "Height and width of the random images in pixels.")
    batch_size: PositiveInt = option(64, "Number of images per step.")
    rounds: PositiveInt = option(5, "Number of timings of each way. Their median is printed.")
    ways: list[Way] | None = option(None, "Ways to compute the step. By default auto and plain.")
    count: Literal["auto", "yes", "no", "only"] = option(
        "auto",
        "Count operator calls and memory traffic. auto counts on a CPU only; only counts without timing.",
    )
    precision: Literal["32-true", "bf16-mixed", "64-true"] = option("32-true", "Precision of all ways except plain.")
    tf32: bool = option(False, "Use TensorFloat-32 for float32 convolutions in all ways except plain.")
    compile: bool = option(False, "Compile the cells in all ways except plain.")
    seed: Seed = option(0, "Seed of the weights and the images.")
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1 (the second GPU) or mps.")
    out: str = option("", "JSON file for the results. By default none is written.")


def make_search(settings: SearchStepSettings, method: str, device_name: str, **changes: Any) -> "SearchState":
    """Make a search with a method on random images.

    Raises:
        InputError: train_search.py would reject these settings.
    """
    import torch

    from lib.datasets import DataSet, ImageSet
    from lib.devices import prepare_device
    from nasbench201.search201 import SearchState201
    from nasbench201.settings import SCRIPT as SCRIPT_201
    from search.command_line import check
    from search.state import SearchState

    generator = torch.Generator().manual_seed(settings.seed)
    shape = (4 * settings.batch_size, 3, settings.image_size, settings.image_size)
    images = ImageSet(
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        torch.randint(0, 10, (shape[0],), generator=generator),
    )
    dataset = DataSet(images, images, tuple(map(str, range(10))), (0.5,) * 3, (0.25,) * 3, flip=True)
    own = {name: getattr(settings, name) for name in ("init_channels", "batch_size", "seed")}
    device = prepare_device(device_name, changes.get("tf32", False))
    script = SCRIPT
    state: type[SearchState] = SearchState
    if settings.space == "nasbench201":
        own["cells_per_stage"] = settings.cells_per_stage
        script, state = SCRIPT_201, SearchState201
    else:
        own |= {"space": settings.space, "layers": settings.layers}
    of_search = script.settings_of(method, **own, **changes)
    check(of_search)
    return state(of_search, dataset, device)


def step_of(search: "SearchState") -> Callable[["list[Batch]", "Batch"], None]:
    """Return a step halfway through a search: a weight step for each batch, then an alpha step."""
    from search.train_search import alpha_step, schedule, weight_step

    settings = search.settings
    now = schedule(settings, settings.epochs // 2)
    now = now._replace(lambda_t=0.0 if settings.reg == "none" else settings.lambda_)

    def step(train_batches: "list[Batch]", valid_batch: "Batch") -> None:
        objective = search.objective(now.drop_path_prob, now.skip_beta)
        for batch in train_batches:
            weight_step(search, objective, batch, now, layers=False)
        alpha_step(search, objective, train_batches[-1], valid_batch, now)

    return step


def make_plain(search: "SearchState") -> None:
    """Make a search compute its steps as the released codes do."""
    import torch

    from benchmarks.plain import plain_supernet
    from lib.objective import Gradients, Objective
    from model_search import AnySupernet

    class PlainObjective(Objective):
        """Computes the gradients of all weights and mixing weights in every pass."""

        def gradients(self, weights: Any, batch: "Batch", layers: Any, parameters: bool = True) -> Gradients:
            result = self.pass_over(weights, batch, range(len(weights)), True)
            return result._replace(layers=[result.layers[layer] for layer in layers])

    search.supernet = cast(AnySupernet, plain_supernet(search.supernet))
    search.make_optimizers()
    search.objective = lambda drop_path_prob, skip_beta: PlainObjective(  # type: ignore[method-assign]  # this search only
        search.supernet, search.autocast, drop_path_prob, skip_beta
    )
    search.memory_format = torch.contiguous_format
    torch.backends.cudnn.benchmark = True


def make_step(settings: SearchStepSettings, method: str, way: str) -> tuple[Callable[[int], None], Any]:
    """Return a function that takes a step on new batches, and its device."""
    from lib.batches import cycle

    changes: dict[str, Any] = {}
    if way != "plain":
        layout, _, graphs = way.partition("-")
        changes = {name: getattr(settings, name) for name in ("precision", "tf32", "compile")}
        changes |= {"memory_format": layout, "cuda_graphs": bool(graphs)}
    search = make_search(settings, method, settings.device, **changes)
    if way == "plain":
        make_plain(search)
    step, inner = step_of(search), search.settings.inner_steps

    def turn(number: int) -> None:
        train, valid = search.batches(number)
        batches = [search.cast(batch) for batch in (*cycle(train, inner), *cycle(valid, 1))]
        step(batches[:-1], batches[-1])

    return turn, search.device


class Work(NamedTuple):
    """The operators of a step on a GPU. Views are not counted."""

    operator_calls: int
    convolutions: int
    traffic_gib: float  # if each operator reads its tensors once and writes its results once


def traffic(name: str, args: tuple[Any, ...], result: Any) -> int:
    """Return the bytes of the tensors that an operator reads and writes."""
    import torch
    from torch.utils._pytree import tree_leaves

    if "empty" in name:
        return 0
    if name.startswith("convolution_backward"):  # an input gradient does not read x, a weight gradient not the weight
        gradient, x, weight, *_, mask = args
        args = (gradient, x if mask[1] else None, weight if mask[0] else None)
    elif "pool2d" in name and "backward" in name:  # of x, only the shape is needed
        args = (args[0], *args[2:])
    tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
    return sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors)


def count_work(settings: SearchStepSettings, method: str, way: str) -> Work:
    """Count the operator calls and the memory traffic of a step on a GPU, per weight step.

    The step runs on the meta device, which computes nothing. It would fail if it read a value back to the host.
    There, batch norm returns contiguous tensors, so channels last cannot be counted, and clipping the gradients takes
    two calls for each parameter, which a GPU joins.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from lib.batches import Batch

    class Counter(TorchDispatchMode):
        calls = convolutions = bytes = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if not (function.is_view or function is torch.ops.aten._unsafe_view.default):
                self.calls += 1
                self.convolutions += "convolution" in function.__name__
                self.bytes += traffic(function.__name__, args, result)
            return result

    search = make_search(settings, method, "cpu")
    if way == "plain":
        make_plain(search)
    search.supernet.to("meta").to(memory_format=torch.contiguous_format)
    search.architecture.to("meta")
    search.make_optimizers()
    for optimizer in (search.weight_optimizer, search.alpha_optimizer):
        for group in optimizer.param_groups:
            group["foreach"] = True  # the default on a GPU
    shape = (settings.batch_size, 3, settings.image_size, settings.image_size)
    batch = Batch(torch.empty(shape, device="meta"), torch.empty(shape[0], dtype=torch.long, device="meta"), 0)
    step, inner = step_of(search), search.settings.inner_steps
    step([batch] * inner, batch)  # creates the buffers of the optimizers
    with Counter() as counter:
        step([batch] * inner, batch)
    return Work(counter.calls // inner, counter.convolutions // inner, counter.bytes / inner / 2**30)


def time_method(settings: SearchStepSettings, method: str, ways: list[Way]) -> list[dict[str, Any]]:
    """Measure time, calls and memory of a step of a method. Return a row for each way."""
    from lib.devices import check_device

    count = settings.count
    if count == "auto":
        count = "yes" if check_device(settings.device)[0] == "cpu" else "no"
    rows: list[dict[str, Any]] = [{"method": method, "way": way} for way in ways]
    for row in rows:
        other = row["way"].startswith("channels_last") or settings.precision != "32-true"  # plain is always float32
        if count != "no" and (row["way"] == "plain" or not other):
            row |= count_work(settings, method, row["way"])._asdict()
    if count == "only":
        return rows

    timings = take_turns({way: (make_step, (settings, method, way)) for way in ways}, settings.rounds)
    inner = SCRIPT.settings_of(method, space=settings.space if settings.space != "nasbench201" else "s5").inner_steps
    for row, timing in zip(rows, timings.values(), strict=True):
        seconds = timing.median / inner
        row |= {"seconds_per_step": seconds, "images_per_second": settings.batch_size / seconds}
        row |= {"peak_memory_mib": timing.peak_memory_mib, "seconds": timing.seconds}
        row["kernels"] = [kernel._asdict() for kernel in timing.kernels]
        if "plain" in timings:
            row["times_as_fast"] = timings["plain"].median / timing.median
    return rows


def main() -> None:
    settings = options.parse(SearchStepSettings, PROG, __doc__.splitlines()[0])
    check_out(settings.out)
    settings.ways = ways = settings.ways or ["auto", "plain"]
    settings.methods = settings.methods or ["lambda-darts"]

    import torch

    from lib.devices import check_device
    from lib.provenance import provenance

    accelerator, _ = check_device(settings.device)
    name = torch.cuda.get_device_name() if accelerator == "cuda" else f"{torch.get_num_threads()} CPU threads"
    timed = f"on {name}: medians of {settings.rounds} rounds"
    print(f"{settings.space} {'counted, not timed' if settings.count == 'only' else timed}", flush=True)
    print(" | ".join(["| method | way", *COLUMNS]) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|", flush=True)
    rows: list[dict[str, Any]] = []
    origin = provenance(cli.command_line(), name)
    for method in settings.methods:
        found = time_method(settings, method, ways)
        rows += found
        for row in found:
            values = [format(row[name], form) if name in row else "" for name, form in COLUMNS.values()]
            print(" | ".join([f"| {method} | {row['way']}", *values]) + " |", flush=True)
        write_results(settings, settings.out, provenance=origin, rows=rows)  # each time, in case of a time limit


if __name__ == "__main__":
    cli.run(main, PROG)
