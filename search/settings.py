"""The settings of a search and its command line. Nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from lib import options
from lib.options import (
    AtLeastTwo,
    Channels,
    Fraction,
    Gate,
    Layers,
    NameOf,
    Need,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
)
from lib.settings import ImageSettings, RunSettings
from search.methods import METHODS, preset
from spaces import spaces_of_darts_cells

MethodName = Annotated[str, NameOf(lambda: METHODS)]
SpaceName = Annotated[str, NameOf(spaces_of_darts_cells)]

DESCRIPTION = (
    "Search a cell with Λ-DARTS, DARTS, DARTS-, FairDARTS, iDARTS, DARTS-PT, beta-DARTS or SmoothDARTS, or with their "
    "ideas combined. "
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
SMOOTHED = Need("--smooth other than none", lambda s: s.smooth != "none")
ALPHA_REGULARIZED = Need("--alpha_reg other than none", lambda s: s.alpha_reg != "none")
PERTURBATION = Need("--selection perturbation", lambda s: s.selection == "perturbation")
REGULARIZED = Need("--reg other than none", lambda s: s.reg != "none")


@dataclass
class CommonSettings(RunSettings, ImageSettings):
    """The settings of a search in any space. The defaults are those of first-order DARTS."""

    method: MethodName = of_method(
        "lambda-darts",
        lambda: (
            "Method whose paper sets all other flags: "
            + "; ".join(f"{name} is {method.paper}" for name, method in METHODS.items())
            + "."
        ),
    )
    released: bool = of_method(
        False,
        "Follow the method's released code where it departs from the paper: its settings, and its bugs. "
        "docs/faithfulness.md lists the differences.",
    )
    split: Literal["random", "file_order"] = of_data(
        "random",
        "Images that train the weights: random ones by --seed, or the first ones in the order of the files.",
        need=Need("a search without --halves, which lists both parts", lambda s: not s.halves),
    )
    fresh_batches: Literal["none", "valid", "both"] = of_data(
        "none",
        "Batches that are drawn anew from all images of their part, so that an epoch can miss some of them: those of "
        "alpha (valid), or those of the weights too (both). Other batches come from one pass over the images after "
        "another.",
    )
    train_portion: Fraction = of_data(
        0.5,
        "Share of the training images that trains the weights. The rest trains alpha.",
        need=Need("a search without --halves, which lists both parts", lambda s: not s.halves),
    )
    halves: str = of_data(
        "",
        "NAS-Bench-201's cifar-split.txt, which lists CIFAR-10's halves for the weights and for alpha. Without it the "
        "images are split at random by --train_portion and --seed.",
    )

    space: str = of_space("", "Search space.")
    init_channels: Channels = of_space(16, "Channels C of the first cells.")
    drop_path_prob: Probability = of_space(
        0.0,
        "Probability of drop path on each operation but identities, increased linearly from 0. (RobustDARTS's and "
        "DARTS-'s codes apply it to whole edges.)",
    )

    noise: Literal["held", "fresh"] = of_space(
        "held",
        "Noise of drop path and of the operation noise: the same in all passes over a batch, so that they are passes "
        "through one function (held), or drawn anew in each (fresh).",
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

    smooth: str = of_mixing(
        "none",
        "Perturbation of p in the step of the weights (SmoothDARTS): random, adversarial, another entry of SMOOTHING, "
        "or none.",
    )
    smooth_start: NonNegativeFloat = of_mixing(
        0.03, "Largest perturbation of a mixing weight in the first epoch.", need=SMOOTHED
    )
    smooth_end: NonNegativeFloat = of_mixing(
        0.3, "Largest perturbation after the last epoch; it increases linearly.", need=SMOOTHED
    )

    epochs: PositiveInt = of_weights(50, "Epochs of the search.")
    batch_size: AtLeastTwo = of_weights(64, "Images per step.")
    learning_rate: PositiveFloat = of_weights(0.025, "Initial learning rate of the weights.")
    learning_rate_min: NonNegativeFloat = of_weights(0.001, "Learning rate of the weights at the end of the cosine.")
    momentum: NonNegativeFloat = of_weights(0.9, "Momentum of the weights' SGD.")
    nesterov: bool = of_weights(
        False, "Use Nesterov's momentum.", need=Need("--momentum above 0", lambda s: s.momentum > 0)
    )
    weight_decay: NonNegativeFloat = of_weights(3e-4, "Weight decay of the weights.")
    grad_clip: PositiveFloat = of_weights(5.0, "Largest norm of the weights' gradient.")

    hypergradient: Literal["first", "unrolled", "implicit"] = of_alpha(
        "first",
        "Gradient of alpha: at the current weights (DARTS, first order), after one weight step (DARTS, second order; "
        "--unrolled is short for it), or the implicit gradient (iDARTS).",
    )
    inner_steps: PositiveInt = of_alpha(1, "Weight steps T per step of alpha.")
    inner_batches: Literal["shared", "fresh"] = of_alpha(
        "shared",
        "Batches of these T steps. shared: an epoch's training batches, T for each step of alpha, one of which serves "
        "its second derivatives too. fresh: an epoch has a step of alpha for each of its training batches, and draws "
        "T + 1 batches at random for it, the last for the second derivatives (iDARTS).",
    )
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
    arch_learning_rate: NonNegativeFloat = of_alpha(
        3e-4,
        "Learning rate of alpha's Adam. With 0 alpha keeps its initial values (blank-PT), and its gradient is for the "
        "log only.",
    )
    arch_beta1: Probability = of_alpha(0.5, "Decay rate of the first moment in alpha's Adam.")
    arch_beta2: Probability = of_alpha(0.999, "Decay rate of the second moment in alpha's Adam.")
    arch_weight_decay: NonNegativeFloat = of_alpha(1e-3, "Weight decay of alpha.")
    alpha_reg: str = of_alpha(
        "none",
        "Regularizer of alpha: FairDARTS's zero-one loss on p (zero_one_l2 or zero_one_l1), beta-DARTS's logsumexp, "
        "another entry of ALPHA_REGULARIZERS, or none.",
    )
    alpha_reg_weight: NonNegativeFloat = of_alpha(10.0, "Weight of alpha's regularizer.", need=ALPHA_REGULARIZED)
    alpha_reg_schedule: Literal["constant", "linear"] = of_alpha(
        "constant",
        "Schedule of this weight: constant, or linear from 0 in the first epoch towards the weight.",
        need=ALPHA_REGULARIZED,
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
        need=PERTURBATION,
    )
    selection_criterion: Literal["accuracy", "loss"] = of_cell(
        "accuracy", "Validation measure by which the perturbation rule decides.", need=PERTURBATION
    )
    selection_augment: bool = of_cell(
        False, "Let the perturbation rule measure on augmented images, new ones each time.", need=PERTURBATION
    )

    precision: Literal["32-true", "bf16-mixed", "64-true"] = of_execution(
        "32-true", "Precision of the supernet's passes."
    )
    fast_edges: bool = of_execution(
        True,
        "Compute all edges of a cell together (fast_edges.py). --no_fast_edges runs each operation as its own module, "
        "from other initial weights.",
    )
    cuda_graphs: bool = of_execution(
        False,
        "Launch each pass as one CUDA graph. Second derivatives and smaller last batches run without graphs.",
    )
    keep_checkpoints: AtLeastTwo = of_execution(
        2, "Number of checkpoints to keep. If the last one is corrupt, the run resumes from the one before."
    )

    # Bugs of the released codes, which have no flags of their own.

    @property
    def keeps_weights(self) -> bool:
        """iDARTS: the inner steps run on a copy of the optimizer whose parameters have no gradients (D1)."""
        return self.released and self.hypergradient == "implicit"

    @property
    def clips_alpha(self) -> bool:
        """Λ-DARTS in NAS-Bench-201: the norm that is clipped includes alpha's accumulated gradient (D14)."""
        return self.released and self.space == "nasbench201" and self.weights_first


@dataclass
class SearchSettings(CommonSettings):
    """The settings of a search among cells of DARTS. The defaults are those of first-order DARTS (ICLR 2019)."""

    space: SpaceName = of_space(
        "s5",
        "Search space: s1 to s4 are RobustDARTS's; darts is DARTS's; s5 is darts without none, which are FairDARTS's "
        "seven operations. Each method has that of its paper; the others' is s5.",
    )
    layers: Layers = of_space(8, "Number of cells, at least 3, or 4 with a regularizer of the weights.")


class Script(NamedTuple):
    """The script of a search: its path, the settings that are its flags, and its description in --help."""

    path: str
    settings: type[CommonSettings]
    description: str
    #: settings that can be given beside --resume, because they say where something lies
    movable: tuple[str, ...] = ("data", "halves")

    @property
    def prog(self) -> str:
        """The name of the script."""
        return Path(self.path).name

    def preset(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that `method`, `space` and `released` among the given settings imply."""
        method = given.get("method", CommonSettings.method)
        own = {"space": METHODS[method].space} if self.settings is SearchSettings else {}
        space = given.get("space", own.get("space", self.settings.space))
        return own | preset(method, space, given.get("released", False))

    def settings_of(self, method: str, **changes: Any) -> Any:
        """The settings of a method, with changes."""
        return self.settings(**{**self.preset({"method": method, **changes}), "method": method, **changes})


SCRIPT = Script("search/train_search.py", SearchSettings, DESCRIPTION)
