"""The methods: the settings of each paper, as far as they differ from first-order DARTS (the defaults of settings.py).

`released` has the settings of the released code where they depart from the paper, for --released. Bugs of a released
code have no settings: search/settings.py (`keeps_weights`, `clips_alpha`) and search/perturbation.py have them.
docs/faithfulness.md explains each departure.

To add a method, add an entry, here or in a plugin: `METHODS["mine"] = Method("Me (2027)", {"reg": "mine"})`. A part of
a method that no flag has yet is an entry of another registry, such as REGULARIZERS, ALPHA_REGULARIZERS or SMOOTHING, or
a new field of `search.settings.CommonSettings`. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lib.cli import InputError
from lib.registry import Registry, check_instance


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        paper: The paper, as cited.
        settings: Its settings in every space.
        by_space: Further settings in some spaces, which override `settings`.
        space: The search space of its paper among those of DARTS's cells.
        released: Settings of its released code that depart from these; None if no departures are recorded.
        released_by_space: Further ones in some spaces.
    """

    paper: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_space: Mapping[tuple[str, ...], Mapping[str, Any]] = field(default_factory=dict)
    space: str = "s5"
    released: Mapping[str, Any] | None = None
    released_by_space: Mapping[tuple[str, ...], Mapping[str, Any]] = field(default_factory=dict)


DARTS = "DARTS (Liu, Simonyan and Yang, ICLR 2019)"
LAMBDA_DARTS = "Λ-DARTS (Movahedi et al., ICLR 2023)"
S1_TO_S4 = ("s1", "s2", "s3", "s4")
NASBENCH201 = ("nasbench201",)
#: Λ-DARTS in NAS-Bench-201 (its section 5.1)
LAMBDA_DARTS_201 = {"lambda_": 0.25, "arch_learning_rate": 1e-4, "epochs": 100}
#: what the released codes have in common: they halve the images in file order (D10), draw each validation batch from
#: the whole half (D11), and draw noise anew in every pass (D4)
RELEASED = {"split": "file_order", "fresh_batches": "valid", "noise": "fresh"}
#: halves of NAS-Bench-201 are listed in a file, for --halves
RELEASED_201 = {"split": "random"}
LAMBDA_DARTS_RELEASED: dict[str, Any] = {
    "released": RELEASED | {"fresh_batches": "none"},
    "released_by_space": {NASBENCH201: RELEASED_201 | {"fresh_batches": "valid", "weights_first": True}},
}
DARTS_PT: dict[str, Any] = {"selection": "perturbation", "finetune_epochs": 5}
DARTS_PT_201: dict[tuple[str, ...], dict[str, Any]] = {NASBENCH201: {"epochs": 100}}
#: training batches too are drawn from the whole half, and removals are scored on augmented images (D7)
DARTS_PT_RELEASED = RELEASED | {"fresh_batches": "both", "selection_augment": True}

_METHODS = {
    "darts": Method(
        f"{DARTS}, first order",
        space="darts",
        released=RELEASED,
        # as in Λ-DARTS's repository (D12)
        released_by_space={NASBENCH201: RELEASED_201 | {"weights_first": True, "epochs": 100}},
    ),
    "darts-2nd": Method(
        f"{DARTS}, second order",
        {"hypergradient": "unrolled"},
        space="darts",
        released=RELEASED,
        released_by_space={NASBENCH201: RELEASED_201},
    ),
    "lambda-darts": Method(
        LAMBDA_DARTS,
        {"reg": "corr", "lambda_": 0.125, "epsilon_0": 1e-4},
        {
            S1_TO_S4: {"lambda_": 0.25, "epsilon_0": 1e-3, "batch_size": 96},
            NASBENCH201: LAMBDA_DARTS_201,
        },
        **LAMBDA_DARTS_RELEASED,
    ),
    # Exact derivatives need a larger lambda; docs/nasbench201.md has what was measured.
    "lambda-darts-exact": Method(
        f"{LAMBDA_DARTS}, with exact derivatives",
        {"reg": "corr", "derivatives": "exact", "lambda_": 1.0},
        {S1_TO_S4: {"batch_size": 96}, NASBENCH201: LAMBDA_DARTS_201},
        **LAMBDA_DARTS_RELEASED,
    ),
    "darts-minus": Method(
        "DARTS- (Chu et al., ICLR 2021)",
        {"auxiliary_skip": "skip", "skip_beta": 1.0, "decay": "linear"},
        space="darts",
        released=RELEASED,
        released_by_space={NASBENCH201: RELEASED_201},
    ),
    "fair-darts": Method(
        "FairDARTS (Chu et al., ECCV 2020)",
        {
            "relaxation": "sigmoid",
            "alpha_reg": "zero_one_l2",
            "alpha_reg_weight": 10.0,
            "selection": "threshold_sparse",
            "threshold": 0.85,
            "arch_learning_rate": 3e-3,
            "arch_beta1": 0.9,
            "learning_rate": 0.005,
            "batch_size": 128,
        },
        {NASBENCH201: {"selection": "argmax"}},  # a cell of its table has one operation on every edge
        released=RELEASED,
        released_by_space={NASBENCH201: RELEASED_201},
    ),
    "idarts": Method(
        "iDARTS (Zhang et al., ICML 2021)",
        {
            "hypergradient": "implicit",
            "inner_steps": 4,
            "inner_batches": "fresh",
            "neumann_terms": 2,
            # gamma is the learning rate
            "learning_rate": 0.01,
            "weight_decay": 5e-4,
            "nesterov": True,
            "epochs": 30,
        },
        released=RELEASED | {"implicit_noise": True},
        released_by_space={NASBENCH201: RELEASED_201},
    ),
    "darts-pt": Method("DARTS-PT (Wang et al., ICLR 2021)", DARTS_PT, DARTS_PT_201, released=DARTS_PT_RELEASED),
    "blank-pt": Method(
        "blank-PT (DARTS-PT's paper): alpha is never trained",
        DARTS_PT | {"arch_learning_rate": 0.0},
        DARTS_PT_201,
        released=DARTS_PT_RELEASED,
    ),
    "beta-darts": Method(
        "beta-DARTS (Ye et al., CVPR 2022)",
        {"alpha_reg": "logsumexp", "alpha_reg_weight": 25.0, "alpha_reg_schedule": "linear"},
        {NASBENCH201: {"alpha_reg_weight": 50.0, "epochs": 100}},  # 0.5 more in each epoch in either space
    ),
    "sdarts-rs": Method("SmoothDARTS (Chen and Hsieh, ICML 2020), random smoothing", {"smooth": "random"}),
    "sdarts-adv": Method("SmoothDARTS, adversarial training", {"smooth": "adversarial"}),
}


def _check_method(method: Method) -> None:
    check_instance(Method)(method)
    by_space = {**method.by_space, **method.released_by_space}
    for settings in (method.settings, method.released or {}, *by_space.values()):
        if not isinstance(settings, Mapping):
            raise ValueError(f"{settings!r}; expected settings by the names of their flags")
    if method.released_by_space and method.released is None:
        raise ValueError("released_by_space needs released; expected released={} if no space has departures in common")
    for spaces in by_space:
        if not isinstance(spaces, tuple):
            raise ValueError(
                f"by_space or released_by_space: {spaces!r}; expected a tuple of spaces, such as ({spaces!r},)"
            )


METHODS: Registry[Method] = Registry("method", _METHODS, _check_method)


def preset(name: str, space: str, released: bool = False) -> dict[str, Any]:
    """The settings of a method in a space, as far as they differ from first-order DARTS.

    Args:
        released: Those of its released code, in place of those of its paper.

    Raises:
        InputError: The departures of its released code are not recorded.
    """
    method = METHODS[name]
    if released and method.released is None:
        recorded = ", ".join(other for other, entry in METHODS.items() if entry.released is not None)
        raise InputError(f"--released: the released code of {name} is not recorded; expected one of {recorded}")
    settings = dict(method.settings)
    settings |= _in_space(method.by_space, space)
    if released:
        settings |= {**(method.released or {}), **_in_space(method.released_by_space, space)}
    return settings


def _in_space(by_space: Mapping[tuple[str, ...], Mapping[str, Any]], space: str) -> dict[str, Any]:
    return {name: value for spaces, further in by_space.items() if space in spaces for name, value in further.items()}
