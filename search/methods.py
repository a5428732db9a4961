"""The methods: the settings of each paper, as far as they differ from first-order DARTS (the defaults of settings.py).

To add a method, add an entry, here or in a plugin: `METHODS["mine"] = Method("Me (2027)", {"reg": "mine"})`. A part of
a method that no flag has yet is an entry of another registry, such as REGULARIZERS, ALPHA_REGULARIZERS or SMOOTHING, or
a new field of `search.settings.CommonSettings`. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lib.registry import Registry, check_instance


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        paper: The paper, as cited.
        settings: Its settings in every space.
        by_space: Further settings in some spaces, which override `settings`.
    """

    paper: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_space: Mapping[tuple[str, ...], Mapping[str, Any]] = field(default_factory=dict)


DARTS = "DARTS (Liu, Simonyan and Yang, ICLR 2019)"
LAMBDA_DARTS = "Λ-DARTS (Movahedi et al., ICLR 2023)"
S1_TO_S4 = ("s1", "s2", "s3", "s4")
NASBENCH201 = ("nasbench201",)
#: Λ-DARTS in NAS-Bench-201 (its section 5.1, and the order of the steps in its released code)
LAMBDA_DARTS_201 = {"lambda_": 0.25, "arch_learning_rate": 1e-4, "epochs": 100, "weights_first": True}

_METHODS = {
    "darts": Method(f"{DARTS}, first order"),
    "darts-2nd": Method(f"{DARTS}, second order", {"hypergradient": "unrolled"}),
    "lambda-darts": Method(
        LAMBDA_DARTS,
        {"reg": "corr", "lambda_": 0.125, "epsilon_0": 1e-4},
        {
            S1_TO_S4: {"lambda_": 0.25, "epsilon_0": 1e-3, "batch_size": 96},
            NASBENCH201: LAMBDA_DARTS_201,
        },
    ),
    # Exact derivatives need a larger lambda; docs/nasbench201.md has what was measured.
    "lambda-darts-exact": Method(
        f"{LAMBDA_DARTS}, with exact derivatives",
        {"reg": "corr", "derivatives": "exact", "lambda_": 1.0},
        {S1_TO_S4: {"batch_size": 96}, NASBENCH201: LAMBDA_DARTS_201},
    ),
    "darts-minus": Method(
        "DARTS- (Chu et al., ICLR 2021)", {"auxiliary_skip": "skip", "skip_beta": 1.0, "decay": "linear"}
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
    ),
    "idarts": Method(
        "iDARTS (Zhang et al., ICML 2021)", {"hypergradient": "implicit", "inner_steps": 4, "neumann_terms": 2}
    ),
    "darts-pt": Method(
        "DARTS-PT (Wang et al., ICLR 2021)",
        {"selection": "perturbation", "finetune_epochs": 5},
        {NASBENCH201: {"epochs": 100}},  # as in its released code
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
    for settings in (method.settings, *method.by_space.values()):
        if not isinstance(settings, Mapping):
            raise ValueError(f"{settings!r}; expected settings by the names of their flags")
    for spaces in method.by_space:
        if not isinstance(spaces, tuple):
            raise ValueError(f"by_space: {spaces!r}; expected a tuple of spaces, such as ({spaces!r},)")


METHODS: Registry[Method] = Registry("method", _METHODS, _check_method)


def preset(method: str, space: str) -> dict[str, Any]:
    """The settings of a method in a space, as far as they differ from first-order DARTS."""
    settings = dict(METHODS[method].settings)
    for spaces, further in METHODS[method].by_space.items():
        if space in spaces:
            settings |= further
    return settings
