"""The methods: the settings of each paper that differ from first-order DARTS (the defaults of settings.py).

`released` has the settings in which the released code differs from the paper; --released applies them. Bugs of the
released codes are not settings: see `fixes_weights` and `clips_with_alpha` in search/settings.py, and
search/perturbation.py. docs/faithfulness.md explains each difference.

To add a method, add an entry, here or in a plugin: `METHODS["mine"] = Method("Me (2027)", {"reg": "mine"})`. If no flag
covers a part of the method, add an entry to another registry, such as REGULARIZERS, ALPHA_REGULARIZERS or SMOOTHING, or
a field to `search.settings.CommonSettings`. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lib.cli import InputError
from lib.registry import Registry, check_instance


@dataclass(frozen=True)
class Method:
    """A method: a paper and its settings.

    Attributes:
        paper: The paper, as cited.
        settings: The settings in every space.
        by_space: Further settings in some spaces, which override `settings`.
        space: The default search space: that of the paper, if it has DARTS cells.
        released: Settings in which the released code differs from these; None if the differences are not recorded.
        released_by_space: Further settings of the released code in some spaces.
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
#: Λ-DARTS in NAS-Bench-201 (section 5.1 of the paper)
LAMBDA_DARTS_201 = {"lambda_": 0.25, "arch_learning_rate": 1e-4, "epochs": 100}
#: common to the released codes: they split the images into halves in file order (D10), draw each validation batch from
#: the whole half (D11), and draw new noise in every pass (D4)
RELEASED = {"split": "file_order", "fresh_batches": "valid", "noise": "fresh"}
#: a file lists the halves of NAS-Bench-201, for --halves
RELEASED_201 = {"split": "random"}
LAMBDA_DARTS_RELEASED: dict[str, Any] = {
    "released": RELEASED | {"fresh_batches": "none"},
    "released_by_space": {NASBENCH201: RELEASED_201 | {"fresh_batches": "valid", "weights_first": True}},
}
DARTS_PT: dict[str, Any] = {"selection": "perturbation", "finetune_epochs": 5}
DARTS_PT_201: dict[tuple[str, ...], dict[str, Any]] = {NASBENCH201: {"epochs": 100}}
#: also draws each training batch from the whole half, and scores removals on augmented images (D7)
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
    # Exact derivatives need a larger lambda; docs/nasbench201.md has the measurements.
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
        {NASBENCH201: {"selection": "argmax"}},  # cells of its table have one operation on every edge
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
            raise ValueError(f"{settings!r}; expected a mapping from names of flags to values")
    if method.released_by_space and method.released is None:
        raise ValueError("released_by_space needs released; expected released={} if no setting holds in all spaces")
    for spaces in by_space:
        if not isinstance(spaces, tuple):
            raise ValueError(
                f"by_space or released_by_space: {spaces!r}; expected a tuple of spaces, such as ({spaces!r},)"
            )


METHODS: Registry[Method] = Registry("method", _METHODS, _check_method)


def preset(name: str, space: str, released: bool = False) -> dict[str, Any]:
    """The settings of a method in a space that differ from first-order DARTS.

    Args:
        released: Return the settings of the released code instead of those of the paper.

    Raises:
        InputError: The settings of the released code are not recorded.
    """
    method = METHODS[name]
    if released and method.released is None:
        recorded = ", ".join(other for other, entry in METHODS.items() if entry.released is not None)
        raise InputError(
            f"--released: the settings of {name}'s released code are not recorded; expected one of {recorded}"
        )
    settings = dict(method.settings)
    settings |= _in_space(method.by_space, space)
    if released:
        settings |= {**(method.released or {}), **_in_space(method.released_by_space, space)}
    return settings


def _in_space(by_space: Mapping[tuple[str, ...], Mapping[str, Any]], space: str) -> dict[str, Any]:
    return {name: value for spaces, further in by_space.items() if space in spaces for name, value in further.items()}
