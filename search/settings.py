"""The settings of a search and its command line. Nothing here imports torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lib import cli, options
from lib.cli import InputError
from lib.options import (
    AtLeastTwo,
    Channels,
    Fraction,
    Gate,
    Layers,
    Need,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
)
from lib.settings import ImageSettings, RunSettings

DESCRIPTION = (
    "Search a cell with Λ-DARTS, DARTS, DARTS-, FairDARTS, iDARTS or DARTS-PT, or with their ideas combined. "
    "--method sets all flags as in that paper; other flags override it. The defaults shown are those of Λ-DARTS for "
    "the DARTS space on CIFAR-10."
)

Selection = Literal["argmax", "threshold_sparse", "threshold_edge", "perturbation"]

of_method, of_data, of_space, of_mixing, of_weights, of_alpha, of_regularizer, of_cell, of_execution, of_table = (
    partial(options.option, group=name)
    for name in (
        "method",
        "data",
        "search space",
        "mixing weights",
        "network weights",
        "architecture",
        "regularizer",
        "selection of the cell",
        "execution",
        "benchmark",
    )
)

AUXILIARY = Need("--auxiliary_skip skip or conv1", lambda s: s.auxiliary_skip != "none")
IMPLICIT = Need("--hypergradient implicit", lambda s: s.hypergradient == "implicit")
REGULARIZED = Need("--reg other than none", lambda s: s.reg != "none")


@dataclass
class CommonSettings(RunSettings, ImageSettings):
    """The settings of a search in any space. The defaults are those of first-order DARTS."""

    method: Literal[
        "darts", "darts-2nd", "lambda-darts", "lambda-darts-exact", "darts-minus", "fair-darts", "idarts", "darts-pt"
    ] = of_method(
        "lambda-darts",
        "Method whose paper sets all other flags. lambda-darts-exact is Λ-DARTS with exact derivatives and a lambda "
        "for them.",
    )
    train_portion: Fraction = of_data(
        0.5,
        "Share of the training images that trains the weights. The rest trains alpha.",
        need=Need("a search without --halves, which lists both parts", lambda s: not getattr(s, "halves", "")),
    )

    init_channels: Channels = of_space(16, "Channels C of the first cells.")
    drop_path_prob: Probability = of_space(
        0.0, "Probability of drop path on the operations, increased linearly from 0 (RobustDARTS)."
    )

    relaxation: Literal["softmax", "sigmoid"] = of_mixing(
        "softmax", "Mixing weights p of alpha. The operations of an edge compete (DARTS) or are gates (FairDARTS)."
    )
    auxiliary_skip: Literal["none", "skip", "conv1"] = of_mixing(
        "none", "Add beta * skip to every edge (DARTS-): an identity, or a 1x1 convolution that starts as one."
    )
    skip_beta: PositiveFloat = of_mixing(1.0, "Beta of the auxiliary skip in the first epoch.", need=AUXILIARY)
    decay: Literal["linear", "cosine", "slow_cosine"] = of_mixing(
        "linear", "Schedule by which beta decreases to 0.", need=AUXILIARY
    )

    epochs: PositiveInt = of_weights(50, "Epochs of the search.")
    batch_size: AtLeastTwo = of_weights(64, "Images per step.")
    learning_rate: PositiveFloat = of_weights(0.025, "Initial learning rate of the weights.")
    learning_rate_min: NonNegativeFloat = of_weights(0.001, "Learning rate of the weights at the end of the cosine.")
    momentum: NonNegativeFloat = of_weights(0.9, "Momentum of the weights' SGD.")
    weight_decay: NonNegativeFloat = of_weights(3e-4, "Weight decay of the weights.")
    grad_clip: PositiveFloat = of_weights(5.0, "Largest norm of the weights' gradient.")

    hypergradient: Literal["first", "unrolled", "implicit"] = of_alpha(
        "first",
        "Gradient of alpha: at the current weights (DARTS, first order), after one weight step (DARTS, second order; "
        "--unrolled is short for it), or the implicit gradient (iDARTS).",
    )
    inner_steps: PositiveInt = of_alpha(1, "Weight steps T per step of alpha.")
    weights_first: bool = of_alpha(
        False,
        "Take the weights' step before alpha's, as Λ-DARTS's released code does in NAS-Bench-201. The implicit "
        "gradient always follows the weights' steps.",
        need=Need("--hypergradient first or unrolled", lambda s: s.hypergradient != "implicit"),
    )
    neumann_terms: NonNegativeInt = of_alpha(
        2, "K of the implicit gradient's Neumann series, which has the terms 0 to K.", need=IMPLICIT
    )
    implicit_noise: bool = of_alpha(
        False,
        "Leave the residue of the implicit gradient's differences in the weights, as iDARTS's released code does.",
        need=Need(
            "--hypergradient implicit with --derivatives difference",
            lambda s: s.hypergradient == "implicit" and s.derivatives == "difference",
        ),
    )
    arch_learning_rate: PositiveFloat = of_alpha(3e-4, "Learning rate of alpha's Adam.")
    arch_beta1: Probability = of_alpha(0.5, "Decay rate of the first moment in alpha's Adam.")
    arch_beta2: Probability = of_alpha(0.999, "Decay rate of the second moment in alpha's Adam.")
    arch_weight_decay: NonNegativeFloat = of_alpha(1e-3, "Weight decay of alpha.")
    alpha_reg: str = of_alpha(
        "none",
        "Regularizer of alpha: FairDARTS's zero-one loss on p (zero_one_l2 or zero_one_l1), another entry of "
        "ALPHA_REGULARIZERS, or none.",
    )
    alpha_reg_weight: NonNegativeFloat = of_alpha(
        10.0,
        "Weight w01 of alpha's regularizer.",
        need=Need("--alpha_reg other than none", lambda s: s.alpha_reg != "none"),
    )
    derivatives: Literal["difference", "exact"] = of_alpha(
        "difference",
        "Compute second derivatives by central differences, as the papers did, or exactly by a second backward pass.",
        need=Need(
            "--reg other than none, or --hypergradient unrolled or implicit",
            lambda s: s.reg != "none" or s.hypergradient != "first",
        ),
    )

    reg: str = of_regularizer(
        "none",
        "Layer alignment by cosine (corr) or by sign (signcorr), another entry of REGULARIZERS in regularizers.py, "
        "none, or noise (the control: a random vector with the norm of corr's gradient).",
    )
    lambda_: NonNegativeFloat = of_regularizer(
        0.125, "Strength of the regularizer, increased linearly from 0 to this in the last epoch.", need=REGULARIZED
    )
    epsilon_0: PositiveFloat = of_regularizer(
        1e-4,
        "Radius of the regularizer's differences.",
        need=Need(
            "--reg other than none with --derivatives difference, or --compare_derivatives",
            lambda s: (s.reg != "none" and s.derivatives == "difference") or s.compare_derivatives,
        ),
    )
    compare_derivatives: bool = of_regularizer(
        False, "Log the cosine between the regularizer's difference and its exact gradient once per epoch."
    )

    selection: Selection = of_cell(
        "argmax",
        "Rule that derives the cell: the two strongest edges of each node (DARTS); of these, or of all edges, the "
        "gates over --threshold (FairDARTS: threshold_sparse, threshold_edge); or the operations whose removal costs "
        "most accuracy (DARTS-PT: perturbation).",
    )
    threshold: Gate = of_cell(
        0.85,
        "Smallest gate of an operation that the threshold rules keep and the log counts.",
        need=Need("--relaxation sigmoid", lambda s: s.relaxation == "sigmoid"),
    )
    finetune_epochs: NonNegativeInt = of_cell(
        5,
        "Epochs between two decisions of the perturbation rule.",
        need=Need("--selection perturbation", lambda s: s.selection == "perturbation"),
    )

    precision: Literal["32-true", "bf16-mixed", "64-true"] = of_execution(
        "32-true", "Precision of the supernet's passes."
    )
    cuda_graphs: bool = of_execution(
        False,
        "Launch each pass as one CUDA graph. Second derivatives and smaller last batches run without graphs.",
    )
    keep_checkpoints: AtLeastTwo = of_execution(
        2, "Number of checkpoints to keep. If the last one is corrupt, the run resumes from the one before."
    )


@dataclass
class SearchSettings(CommonSettings):
    """The settings of a search among cells of DARTS. The defaults are those of first-order DARTS (ICLR 2019)."""

    space: Literal["s1", "s2", "s3", "s4", "s5"] = of_space(
        "s5",
        "Search space: s1 to s4 are RobustDARTS's; s5 is DARTS's without none, which are FairDARTS's seven operations.",
    )
    layers: Layers = of_space(8, "Number of cells, at least 3, or 4 with a regularizer of the weights.")


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


def check_combination(settings: CommonSettings) -> None:
    """Reject a rule of selection that the mixing weights do not allow.

    Raises:
        InputError: A threshold rule is combined with softmax.
    """
    if settings.selection.startswith("threshold") and settings.relaxation == "softmax":
        raise InputError(
            f"--selection: {settings.selection} cannot be combined with --relaxation softmax, whose weights are shares "
            "of an edge; expected --relaxation sigmoid, whose gates have a threshold each"
        )


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
        InputError: The folder is not a run of a search, or its config.yaml is not as this project writes it.
    """
    return options.load_settings(script.settings, script.path, run, flag)


def resolve(arguments: list[str], script: Script = SCRIPT) -> Resolved:
    """Read a command line of a search's script.

    Raises:
        InputError: Its settings cannot be combined, or the run folder is not free.
    """
    words = ["--hypergradient=unrolled" if word == "--unrolled" else word for word in arguments]
    given = options.parse_given(script.settings, script.prog, script.description, words, script.preset)
    settings = given.settings
    if settings.resume:
        return Resolved(options.resume(given, script.path, script.movable), Path(settings.resume), True, script)
    stored_method = given.config.get("method", settings.method)
    if "method" in given.flags and stored_method != settings.method:
        raise InputError(
            f"--method: {settings.method} cannot be combined with --config, which sets every flag of {stored_method}"
        )
    check_combination(settings)
    name = f"search-{settings.dataset}-{settings.space}-{settings.method}-{datetime.now():%Y%m%d-%H%M%S}"
    run = Path(settings.save or f"runs/{name}")
    cli.check_new_folder(run, "--save")
    every = {setting.name for setting in fields(settings)} - {"save", "resume"}
    flags, config = given.flags & every, given.config.keys() & every - given.flags
    implied = script.preset({"method": settings.method, "space": settings.space}).keys() - flags - config
    sources = {
        "command line": flags,
        "config file": config,
        f"method {settings.method}": implied,
        "default": every - flags - config - implied,
    }
    named = {source: sorted(names) for source, names in sources.items() if names}
    return Resolved(settings, run, False, script, named)
