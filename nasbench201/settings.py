"""The settings of a search in NAS-Bench-201 and its command line. Light: nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cli import Layers, Seed, option
from search.settings import CommonSettings, Script, preset

DESCRIPTION = (
    "Search a cell of NAS-Bench-201 with Λ-DARTS, DARTS, DARTS-, FairDARTS, iDARTS or DARTS-PT, or with any of their "
    "ideas together, and score it by the benchmark's table. --method sets every flag that its paper sets; a flag given "
    "beside it wins. The defaults shown are Λ-DARTS's."
)


@dataclass
class BenchmarkSettings:
    """benchmark"""

    space: Literal["nasbench201"] = option("nasbench201", "search space")
    cells_per_stage: Layers = option(5, "cells N of each of the three stages")
    halves: str = option(
        "",
        "the benchmark's cifar-split.txt, which lists CIFAR-10's halves for the weights and for alpha; without it "
        "--train_portion of the images, in an order of --seed",
    )
    table: str = option("", "accuracy table made by nasbench201/table.py; every epoch's cell is looked up in it")
    table_dataset: Literal["auto", "cifar10", "cifar100", "imagenet16_120"] = option(
        "auto", "whose accuracies to look up; auto: those of the data set searched on, else CIFAR-10's"
    )
    seeds: list[Seed] = option(None, "search once with each of these seeds, and print mean and deviation")


@dataclass
class SearchSettings(CommonSettings, BenchmarkSettings):
    """All settings of a search in NAS-Bench-201."""


def preset_201(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a method sets otherwise than first-order DARTS, in this space."""
    return preset({**given, "space": "nasbench201"})


SCRIPT = Script("nasbench201/train_search.py", SearchSettings, DESCRIPTION, preset_201, ("data", "halves", "table"))
