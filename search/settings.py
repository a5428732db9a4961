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
            "Method whose paper sets the other flags: "
            + "; ".join(f"{name} is {method.paper}" for name, method in METHODS.items())
            + "."
        ),
    )
    released: bool = of_method(
        False,
        "Follow the method's released code where it differs from the paper, including its bugs. docs/faithfulness.md "
        "lists the differences.",
    )
    split: Literal["random", "file_order"] = of_data(
        "random",
        "Images that train the weights: random ones, chosen by --seed (random), or the first ones in the data set's "
        "files (file_order).",
        need=Need("a search without --halves, which lists the images of both parts", lambda s: not s.halves),
    )
    fresh_batches: Literal["none", "valid", "both"] = of_data(
        "none",
        "Batches that are drawn at random from all images of their part, so that an epoch can miss some images: those "
        "of alpha (valid), those of alpha and of the weights (both), or none. Other batches come from passes over all "
        "images.",
    )
    train_portion: Fraction = of_data(
        0.5,
        "Share of the training images that trains the weights. The rest trains alpha.",
        need=Need("a search without --halves, which lists the images of both parts", lambda s: not s.halves),
    )
    halves: str = of_data(
        "",
        "NAS-Bench-201's file cifar-split.txt, which lists the halves of CIFAR-10 for the weights and for alpha. "
        "Without it, --split, --train_portion and --seed split the images.",
    )

    space: str = of_space("", "Name of the search space.")
    init_channels: Channels = of_space(16, "Number of channels C of the first cells.")
    drop_path_prob: Probability = of_space(
        0.0,
        "Probability of drop path on each operation except identities, increased linearly from 0. (The codes of "
        "RobustDARTS and DARTS- apply it to whole edges.)",
    )

    noise: Literal["held", "fresh"] = of_space(
        "held",
        "Noise of drop path and of the operation noise: the same in all passes over a batch, so that they evaluate one "
        "function (held), or new in each pass (fresh).",
    )

    relaxation: Literal["softmax", "sigmoid"] = of_mixing(
        "softmax",
        "Function from alpha to the mixing weights p: softmax, so that the operations of an edge compete (DARTS), or "
        "sigmoid, so that each operation has its own gate (FairDARTS).",
    )
    auxiliary_skip: Literal["none", "skip", "conv1"] = of_mixing(
        "none",
        "Auxiliary skip connection, added to every edge with weight beta (DARTS-): an identity (skip), a 1x1 "
        "convolution that is initialized as an identity (conv1), or none.",
    )
    skip_beta: PositiveFloat = of_mixing(
        1.0, "Weight beta of the auxiliary skip connection in the first epoch.", need=AUXILIARY
    )
    decay: Literal["linear", "cosine", "slow_cosine"] = of_mixing(
        "linear", "Schedule by which beta decreases to 0.", need=AUXILIARY
    )

    smooth: str = of_mixing(
        "none",
        "Perturbation of p in weight steps (SmoothDARTS): random, adversarial, another entry of SMOOTHING, or none.",
    )
    smooth_start: NonNegativeFloat = of_mixing(
        0.03, "Largest perturbation of a mixing weight in the first epoch.", need=SMOOTHED
    )
    smooth_end: NonNegativeFloat = of_mixing(
        0.3, "Largest perturbation of a mixing weight after the last epoch. It increases linearly.", need=SMOOTHED
    )

    epochs: PositiveInt = of_weights(50, "Number of epochs of the search.")
    batch_size: AtLeastTwo = of_weights(64, "Number of images in each batch.")
    learning_rate: PositiveFloat = of_weights(0.025, "Initial learning rate of the weights.")
    learning_rate_min: NonNegativeFloat = of_weights(0.001, "Final learning rate of the weights, after cosine decay.")
    momentum: NonNegativeFloat = of_weights(0.9, "Momentum of SGD for the weights.")
    nesterov: bool = of_weights(
        False, "Use Nesterov momentum for the weights.", need=Need("--momentum above 0", lambda s: s.momentum > 0)
    )
    weight_decay: NonNegativeFloat = of_weights(3e-4, "Weight decay of the network weights.")
    grad_clip: PositiveFloat = of_weights(5.0, "Largest norm of the gradient of the weights, which is clipped to it.")

    hypergradient: Literal["first", "unrolled", "implicit"] = of_alpha(
        "first",
        "Gradient of alpha: at the current weights (first; DARTS, first order), after one weight step (unrolled, or "
        "--unrolled for short; DARTS, second order), or by the implicit function theorem (implicit; iDARTS).",
    )
    inner_steps: PositiveInt = of_alpha(1, "Number T of weight steps for each step of alpha.")
    inner_batches: Literal["shared", "fresh"] = of_alpha(
        "shared",
        "Batches of the T weight steps. shared: the next T training batches of the epoch; one of them also gives the "
        "second derivatives of alpha's gradient. fresh (iDARTS): T batches drawn at random, and another one for the "
        "second derivatives; an epoch has as many steps of alpha as training batches.",
    )
    weights_first: bool = of_alpha(
        False,
        "Update the weights before alpha, as Λ-DARTS's released code does in NAS-Bench-201. With the implicit gradient "
        "the weights are always updated first.",
        need=Need("--hypergradient first or unrolled", lambda s: s.hypergradient != "implicit"),
    )
    neumann_terms: NonNegativeInt = of_alpha(
        2, "Last index K in the Neumann series of the implicit gradient, which has terms 0 to K.", need=IMPLICIT
    )
    implicit_noise: bool = of_alpha(
        False,
        "Leave the residue of the implicit gradient's finite differences in the weights, as iDARTS's released code "
        "does.",
        need=Need(
            "--hypergradient implicit with --derivatives difference",
            lambda s: s.hypergradient == "implicit" and s.derivatives == "difference",
        ),
    )
    arch_learning_rate: NonNegativeFloat = of_alpha(
        3e-4,
        "Learning rate of Adam for alpha. With 0, alpha keeps its initial values (blank-PT) and its gradient is only "
        "logged.",
    )
    arch_beta1: Probability = of_alpha(0.5, "Decay rate of the first moment of Adam for alpha.")
    arch_beta2: Probability = of_alpha(0.999, "Decay rate of the second moment of Adam for alpha.")
    arch_weight_decay: NonNegativeFloat = of_alpha(1e-3, "Weight decay of alpha.")
    alpha_reg: str = of_alpha(
        "none",
        "Regularizer of alpha: FairDARTS's zero-one loss on p (zero_one_l2 or zero_one_l1), beta-DARTS's logsumexp, "
        "another entry of ALPHA_REGULARIZERS, or none.",
    )
    alpha_reg_weight: NonNegativeFloat = of_alpha(10.0, "Weight of the regularizer of alpha.", need=ALPHA_REGULARIZED)
    alpha_reg_schedule: Literal["constant", "linear"] = of_alpha(
        "constant",
        "Schedule of --alpha_reg_weight: constant, or increased linearly from 0 in the first epoch (linear).",
        need=ALPHA_REGULARIZED,
    )
    derivatives: Literal["difference", "exact"] = of_alpha(
        "difference",
        "Computation of second derivatives: by central differences, as in the papers (difference), or by a second "
        "backward pass (exact).",
        need=Need(
            "--reg other than none, or --hypergradient unrolled or implicit",
            lambda s: s.reg != "none" or s.hypergradient != "first",
        ),
    )

    reg: str = of_regularizer(
        "none",
        "Regularizer of the weights: layer alignment by cosine (corr) or by sign (signcorr), another entry of "
        "REGULARIZERS, none, or noise (a control: a random vector with the norm of corr's gradient).",
    )
    lambda_: NonNegativeFloat = of_regularizer(
        0.125, "Weight of the regularizer, increased linearly from 0 to this value in the last epoch.", need=REGULARIZED
    )
    epsilon_0: PositiveFloat = of_regularizer(
        1e-4,
        "Norm of the step of the regularizer's finite differences.",
        need=Need(
            "--reg other than none with --derivatives difference, or --compare_derivatives",
            lambda s: (s.reg != "none" and s.derivatives == "difference") or s.compare_derivatives,
        ),
    )
    compare_derivatives: bool = of_regularizer(
        False,
        "Log once per epoch the cosine between the regularizer's gradients by differences and by exact derivatives.",
    )

    selection: Selection = of_cell(
        "argmax",
        "Rule that derives the cell. argmax keeps the two strongest edges of each node (DARTS). threshold_sparse keeps "
        "those of them whose gates reach --threshold (FairDARTS). threshold_edge keeps up to two operations of every "
        "edge whose gates reach it (FairDARTS). perturbation keeps the operations whose removal costs most accuracy "
        "(DARTS-PT).",
    )
    threshold: Gate = of_cell(
        0.85,
        "Smallest gate that the threshold rules keep. The log counts the gates that reach it.",
        need=Need("--relaxation sigmoid", lambda s: s.relaxation == "sigmoid"),
    )
    finetune_epochs: NonNegativeInt = of_cell(
        5,
        "Epochs of fine-tuning between two decisions of the perturbation rule.",
        need=PERTURBATION,
    )
    selection_criterion: Literal["accuracy", "loss"] = of_cell(
        "accuracy", "Validation measure that the perturbation rule compares.", need=PERTURBATION
    )
    selection_augment: bool = of_cell(
        False, "Augment the validation images of the perturbation rule, anew for each measurement.", need=PERTURBATION
    )

    precision: Literal["32-true", "bf16-mixed", "64-true"] = of_execution(
        "32-true", "Precision of the supernet's forward and backward passes."
    )
    fast_edges: bool = of_execution(
        True,
        "Compute all edges of a cell together (fast_edges.py). --no_fast_edges runs each operation as its own module "
        "and starts from other initial weights.",
    )
    cuda_graphs: bool = of_execution(
        False,
        "Launch each pass as one CUDA graph. Second derivatives and smaller last batches run without graphs.",
    )
    keep_checkpoints: AtLeastTwo = of_execution(
        2, "Number of checkpoints to keep. If the last one is corrupt, the run resumes from the one before."
    )

    # Bugs of the released codes; they have no separate flags.

    @property
    def fixes_weights(self) -> bool:
        """True if weight steps leave the weights unchanged, as in iDARTS's released code.

        That code steps a copy of the optimizer, whose parameters have no gradients (D1).
        """
        return self.released and self.hypergradient == "implicit"

    @property
    def clips_with_alpha(self) -> bool:
        """True if the clipped norm includes alpha's accumulated gradient.

        Λ-DARTS's released code does this in NAS-Bench-201 (D14).
        """
        return self.released and self.space == "nasbench201" and self.weights_first


@dataclass
class SearchSettings(CommonSettings):
    """The settings of a search in a space of DARTS cells. The defaults are those of first-order DARTS (ICLR 2019)."""

    space: SpaceName = of_space(
        "s5",
        "Search space: s1 to s4 (RobustDARTS), darts (DARTS), or s5, which is darts without none (FairDARTS's seven "
        "operations). By default the space of the method's paper if it is one of these, else s5.",
    )
    layers: Layers = of_space(8, "Number of cells: at least 3, or at least 4 with a regularizer of the weights.")


class Script(NamedTuple):
    """A search script: its path, the settings that its flags set, and its description in --help."""

    path: str
    settings: type[CommonSettings]
    description: str
    #: settings that can be given together with --resume, because they are paths
    movable: tuple[str, ...] = ("data", "halves")

    @property
    def prog(self) -> str:
        """The name of the script."""
        return Path(self.path).name

    def preset(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that the given `method`, `space` and `released` imply."""
        method = given.get("method", CommonSettings.method)
        own = {"space": METHODS[method].space} if self.settings is SearchSettings else {}
        space = given.get("space", own.get("space", self.settings.space))
        return own | preset(method, space, given.get("released", False))

    def settings_of(self, method: str, **changes: Any) -> Any:
        """The settings of a method, with changes."""
        return self.settings(**{**self.preset({"method": method, **changes}), "method": method, **changes})


SCRIPT = Script("search/train_search.py", SearchSettings, DESCRIPTION)
