"""The settings of a search, its command line, and those of an existing run. Light: nothing here imports torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, OpenUnitInterval, PositiveInt

import cli
from cli import (
    AtLeastTwo,
    Channels,
    ImageSizeOrOwn,
    InputError,
    Layers,
    NonNegativeFloat,
    PositiveFloat,
    Probability,
    Seed,
    option,
)

DESCRIPTION = (
    "Search a cell with Λ-DARTS, DARTS, DARTS-, FairDARTS, iDARTS or DARTS-PT, or with any of their ideas together. "
    "--method sets every flag that its paper sets; a flag given beside it wins. The defaults shown are Λ-DARTS's for "
    "the DARTS space on CIFAR-10."
)

Selection = Literal["argmax", "threshold_sparse", "threshold_edge", "perturbation"]


@dataclass
class DataSettings:
    """data"""

    data: str = option("data", "folder of the data set's files")
    dataset: Literal["cifar10", "cifar100", "svhn", "imagenet16-120", "digits", "folder"] = option(
        "cifar10",
        "data set; 'folder' takes DATA/train/<class>/* and DATA/test/<class>/*, 'imagenet16-120' NAS-Bench-201's "
        "files, 'digits' needs none",
    )
    download: bool = option(False, "fetch the files of cifar10, cifar100 or svhn where they are missing")
    image_size: ImageSizeOrOwn = option(0, "height and width of the images in pixels; 0 keeps their own")
    images: NonNegativeInt = option(
        0, "take the first so many training images only, of each class alike, and as many test images at most; 0: all"
    )
    cutout: bool = option(False, "augment with cutout")
    cutout_length: PositiveInt = option(16, "side of the cutout in pixels, rounded down to even")


@dataclass
class SplitSettings:
    """split"""

    train_portion: OpenUnitInterval = option(0.5, "share of the training images for the weights; the rest is for alpha")


@dataclass
class SpaceSettings:
    """search space"""

    space: Literal["s1", "s2", "s3", "s4", "s5"] = option(
        "s5", "search space: s1 to s4 of RobustDARTS, s5 is DARTS's without `none`, with FairDARTS's seven operations"
    )
    layers: Layers = option(8, "number of cells")


@dataclass
class SupernetSettings:
    """supernet"""

    init_channels: Channels = option(16, "channels C of the first cells")
    drop_path_prob: Probability = option(0.0, "drop path on the operations, ramped linearly from 0 (RobustDARTS)")


@dataclass
class MethodSettings:
    """method"""

    method: Literal[
        "darts", "darts-2nd", "lambda-darts", "lambda-darts-exact", "darts-minus", "fair-darts", "idarts", "darts-pt"
    ] = option(
        "lambda-darts",
        "whose settings to take: every axis and every optimizer setting of that paper; lambda-darts-exact is Λ-DARTS "
        "with exact derivatives and a lambda for them",
    )


@dataclass
class RelaxationSettings:
    """relaxation"""

    relaxation: Literal["softmax", "sigmoid"] = option(
        "softmax", "mixing weights p of alpha: operations of an edge compete (DARTS) or are gates (FairDARTS)"
    )
    auxiliary_skip: Literal["none", "skip", "conv1"] = option(
        "none", "add beta * skip to every edge (DARTS-): an identity, or a 1x1 convolution that begins as one"
    )
    skip_beta: PositiveFloat = option(1.0, "beta of the auxiliary skip in the first epoch")
    decay: Literal["linear", "cosine", "slow_cosine"] = option("linear", "how beta falls to 0")


@dataclass
class WeightSettings:
    """weights"""

    epochs: PositiveInt = option(50, "epochs of the search")
    batch_size: PositiveInt = option(64, "images of a step")
    learning_rate: PositiveFloat = option(0.025, "of the weights, at the start")
    learning_rate_min: NonNegativeFloat = option(0.001, "of the weights, at the end of the cosine")
    momentum: NonNegativeFloat = option(0.9, "of the weights' SGD")
    weight_decay: NonNegativeFloat = option(3e-4, "of the weights")
    grad_clip: PositiveFloat = option(5.0, "largest norm of the weights' gradient")


@dataclass
class ArchitectureSettings:
    """architecture"""

    hypergradient: Literal["first", "unrolled", "implicit"] = option(
        "first",
        "alpha's gradient: at the present weights (DARTS, first order), one weight step ahead (DARTS, second order; "
        "also --unrolled), or with the implicit gradient (iDARTS)",
    )
    inner_steps: PositiveInt = option(1, "weight steps T for each step of alpha")
    weights_first: bool = option(
        False,
        "the weights' step before alpha's, as in Λ-DARTS's released code for NAS-Bench-201; the implicit gradient is "
        "always taken behind the weights' steps",
    )
    neumann_terms: NonNegativeInt = option(2, "K of the implicit gradient's Neumann series, terms 0 to K")
    implicit_noise: bool = option(
        False, "leave the implicit gradient's differences partly in the weights, as iDARTS's released code does"
    )
    arch_learning_rate: PositiveFloat = option(3e-4, "of alpha's Adam")
    arch_beta1: Probability = option(0.5, "of alpha's Adam: decay of the mean of the gradient")
    arch_beta2: Probability = option(0.999, "of alpha's Adam: decay of the mean of its square")
    arch_weight_decay: NonNegativeFloat = option(1e-3, "of alpha")
    alpha_reg: str = option(
        "none",
        "FairDARTS's zero-one loss on p (zero_one_l2, zero_one_l1), another entry of ALPHA_REGULARIZERS, or none",
    )
    alpha_reg_weight: NonNegativeFloat = option(10.0, "strength w01 of alpha's regularizer")
    derivatives: Literal["difference", "exact"] = option(
        "difference", "second derivatives by central differences, as the papers ran them, or by a second backward pass"
    )


@dataclass
class RegularizerSettings:
    """regularizer"""

    reg: str = option(
        "none",
        "layer alignment by cosine (corr) or by sign (signcorr), another entry of REGULARIZERS in regularizers.py, "
        "none, or noise (the control: a random vector of the norm of corr's gradient)",
    )
    lambda_: NonNegativeFloat = option(0.125, "strength, reached linearly in the last epoch")
    epsilon_0: PositiveFloat = option(1e-4, "radius of the regularizer's differences")
    compare_derivatives: bool = option(
        False, "log the cosine between the regularizer's difference and exact gradient, once an epoch"
    )


@dataclass
class SelectionSettings:
    """selection"""

    selection: Selection = option(
        "argmax",
        "the cell: two strongest edges a node (DARTS); of these, or of all, the gates over --threshold (FairDARTS: "
        "threshold_sparse, threshold_edge); or what the accuracy misses most (DARTS-PT: perturbation)",
    )
    threshold: ClosedUnitInterval = option(0.85, "least gate of an operation that the threshold rules keep")
    finetune_epochs: NonNegativeInt = option(5, "epochs between two decisions of the perturbation rule")


@dataclass
class RunSettings:
    """run"""

    seed: Seed = option(0, "of everything random")
    save: str = option("", "run folder to make; by default one in runs/ named after the settings and the time")
    resume: str = option(
        "",
        "run folder to go on with, under its own settings; beside it only where its data lie and what it runs on",
    )
    device: str = option("auto", "auto, cpu, cuda, mps; cuda:1 for the second GPU")


@dataclass
class ExecutionSettings:
    """execution"""

    precision: Literal["32-true", "bf16-mixed", "64-true"] = option("32-true", "of the supernet's passes")
    tf32: bool = option(
        False, "let GPUs round the float32 factors of convolutions to TensorFloat-32: faster, three decimal digits"
    )
    compile: bool = option(
        False, "compile the cells (torch.compile), for GPUs: minutes at the start; second derivatives stay as they are"
    )
    cuda_graphs: bool = option(
        False, "launch a pass as one CUDA graph; second derivatives and smaller last batches stay as they are"
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = option(
        "auto", "order of images and weights in memory; auto is channels_last on a CPU and contiguous on a GPU"
    )
    deterministic: bool = option(False, "only algorithms that give the same bits each time, for GPUs")
    keep_checkpoints: AtLeastTwo = option(
        2, "how many checkpoints to keep; the last but one stands in for a damaged last"
    )


@dataclass
class DevicesSettings:
    """execution"""

    devices: NonNegativeInt = option(
        0, "devices of each node, with a process and a share of every batch each; 0: as torchrun or srun started, or 1"
    )
    num_nodes: NonNegativeInt = option(0, "number of nodes; 0: as torchrun or srun started, or 1")
    accumulate: PositiveInt = option(1, "passes that make a step, where its images do not fit on the devices at once")
    checkpoint_steps: NonNegativeInt = option(0, "steps between two checkpoints within an epoch; 0 for none")
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = option("32-true", "of the network's passes")
    tf32: bool = option(
        False, "let GPUs round the float32 factors of convolutions to TensorFloat-32: faster, three decimal digits"
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = option(
        "auto", "order of images and weights in memory; auto is channels_last on a CPU and contiguous on a GPU"
    )
    deterministic: bool = option(False, "only algorithms that give the same bits each time, for GPUs")
    compile: bool = option(False, "compile the network (torch.compile), for GPUs: minutes at the start")


@dataclass
class CommonSettings(
    ExecutionSettings,
    RunSettings,
    SelectionSettings,
    RegularizerSettings,
    ArchitectureSettings,
    WeightSettings,
    RelaxationSettings,
    SupernetSettings,
    MethodSettings,
    SplitSettings,
    DataSettings,
):
    """The settings of a search in any space. Defaults are first-order DARTS's, which every method starts from."""


@dataclass
class SearchSettings(CommonSettings, SpaceSettings):
    """All settings of a search among cells of DARTS. The defaults are first-order DARTS's (ICLR 2019)."""


def preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a method's paper sets otherwise than first-order DARTS.

    Args:
        given: the settings that the user gave; of these, `method` and `space` choose.
    """
    method, space = given.get("method", SearchSettings.method), given.get("space", SearchSettings.space)
    if space == "nasbench201":
        aligning = {"reg": "corr", "arch_learning_rate": 1e-4, "epochs": 100, "weights_first": True}
        lambda_darts: dict[str, Any] = {**aligning, "lambda_": 0.25, "epsilon_0": 1e-4}
        exact: dict[str, Any] = {**aligning, "lambda_": 0.25, "derivatives": "exact"}  # measured: docs/nasbench201.md
    elif space == "s5":
        lambda_darts = {"reg": "corr", "lambda_": 0.125, "epsilon_0": 1e-4}
        exact = {"reg": "corr", "lambda_": 1.0, "derivatives": "exact"}
    else:
        lambda_darts = {"reg": "corr", "lambda_": 0.25, "epsilon_0": 1e-3, "batch_size": 96}
        exact = {"reg": "corr", "lambda_": 1.0, "derivatives": "exact", "batch_size": 96}
    methods: dict[str, dict[str, Any]] = {
        "darts": {},
        "darts-2nd": {"hypergradient": "unrolled"},
        "lambda-darts": lambda_darts,
        "lambda-darts-exact": exact,
        "darts-minus": {"auxiliary_skip": "skip", "skip_beta": 1.0, "decay": "linear"},
        "fair-darts": {
            "relaxation": "sigmoid",
            "alpha_reg": "zero_one_l2",
            "alpha_reg_weight": 10.0,
            # NAS-Bench-201's table asks for one operation on every edge.
            "selection": "argmax" if space == "nasbench201" else "threshold_sparse",
            "threshold": 0.85,
            "arch_learning_rate": 3e-3,
            "arch_beta1": 0.9,
            "learning_rate": 0.005,
            "batch_size": 128,
        },
        "idarts": {"hypergradient": "implicit", "inner_steps": 4, "neumann_terms": 2},
        "darts-pt": {
            "selection": "perturbation",
            "finetune_epochs": 5,
            **({"epochs": 100} if space == "nasbench201" else {}),  # of its released code
        },
    }
    return methods[method]


class Script(NamedTuple):
    """A search's script: its place, the settings that are its flags, and what --help and a method say."""

    path: str
    settings: type
    description: str
    preset: Callable[[Mapping[str, Any]], dict[str, Any]]
    #: settings that may be given beside --resume, for they say where something lies
    movable: tuple[str, ...] = ("data",)

    @property
    def prog(self) -> str:
        return Path(self.path).name


SCRIPT = Script("search/train_search.py", SearchSettings, DESCRIPTION, preset)


def method_settings(method: str, **changes: Any) -> SearchSettings:
    """The settings of a method's paper, but for `changes`."""
    return SearchSettings(**{**preset({"method": method, **changes}), "method": method, **changes})


class Reader(NamedTuple):
    """Who reads a flag: without it the flag would be given in vain."""

    reads: Callable[[CommonSettings], bool]
    expected: str


READERS = {
    **dict.fromkeys(
        ("skip_beta", "decay"), Reader(lambda s: s.auxiliary_skip != "none", "--auxiliary_skip skip or conv1")
    ),
    **dict.fromkeys(
        ("neumann_terms", "implicit_noise"),
        Reader(lambda s: s.hypergradient == "implicit", "--hypergradient implicit"),
    ),
    "alpha_reg_weight": Reader(lambda s: s.alpha_reg != "none", "--alpha_reg zero_one_l2 or zero_one_l1"),
    "lambda_": Reader(lambda s: s.reg != "none", "--reg corr or signcorr"),
    "threshold": Reader(lambda s: s.relaxation == "sigmoid", "--relaxation sigmoid"),
    "finetune_epochs": Reader(lambda s: s.selection == "perturbation", "--selection perturbation"),
}


def check_combination(settings: CommonSettings, flags: set[str]) -> None:
    """Refuse what makes no sense together.

    Args:
        flags: names of the settings given on the command line, which something must read.

    Raises:
        InputError: it names the flag, and the reason.
    """
    if settings.selection.startswith("threshold") and settings.relaxation == "softmax":
        raise InputError(
            f"--selection: {settings.selection} with --relaxation softmax, whose weights are shares of an edge and not "
            "gates that a threshold can judge one by one; expected --relaxation sigmoid"
        )
    if settings.implicit_noise and settings.derivatives == "exact":
        raise InputError(
            "--implicit_noise: it is what the differences leave behind, and --derivatives exact takes none; "
            "expected --derivatives difference"
        )
    for name in sorted(flags & READERS.keys()):
        reader = READERS[name]
        if not reader.reads(settings):
            raise InputError(f"--{name}: nothing reads it in this search; expected {reader.expected} beside it")


@dataclass
class Resolved:
    """What a command line means."""

    settings: CommonSettings
    run: Path
    resumed: bool
    script: Script = SCRIPT
    #: where the settings come from: the source, and the names it set
    sources: dict[str, list[str]] = field(default_factory=dict)
    #: how the series that this run is a part of was begun, for config.yaml
    origin: dict[str, Any] = field(default_factory=dict)


def load_settings(run: Path, flag: str = "--resume", script: Script = SCRIPT) -> CommonSettings:
    """The settings of an existing search of `script`, which `flag` names.

    Raises:
        InputError: it is no run of a search, or its config.yaml is not as this project writes it.
    """
    return cli.load_settings(script.settings, script.path, run, flag)


def resolve(arguments: list[str], script: Script = SCRIPT) -> Resolved:
    """Read a command line of a search's script.

    Raises:
        InputError: its settings make no sense together, or the run folder is not free.
    """
    arguments = [
        part for given in arguments for part in (("--hypergradient=unrolled",) if given == "--unrolled" else (given,))
    ]
    settings: Any  # of the script
    settings, given = cli.parse_with_preset(script.settings, script.prog, script.description, arguments, script.preset)
    if settings.resume:
        stored = cli.resume(settings, script.path, arguments, script.movable)
        return Resolved(stored, Path(settings.resume), True, script)
    if "method" in given.flags and given.config.get("method", settings.method) != settings.method:
        raise InputError(
            f"--method: {settings.method}, but --config has all settings of {given.config['method']}, which would win; "
            "expected one of the two"
        )
    check_combination(settings, given.flags)
    name = f"search-{settings.dataset}-{settings.space}-{settings.method}-{datetime.now():%Y%m%d-%H%M%S}"
    run = Path(settings.save or f"runs/{name}")
    cli.check_new_folder(run, "--save")
    every = {setting.name for setting in fields(settings)} - {"save", "resume"}
    flags, config = given.flags & every, given.config.keys() & every - given.flags
    implied = preset({"method": settings.method, "space": settings.space}).keys() - flags - config
    sources = {
        "command line": flags,
        "config file": config,
        f"method {settings.method}": implied,
        "default": every - flags - config - implied,
    }
    named = {source: sorted(names) for source, names in sources.items() if names}
    return Resolved(settings, run, False, script, named)
