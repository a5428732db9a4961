"""The settings of a search in NAS-Bench-201 and its command line. Nothing here imports torch."""

from dataclasses import dataclass
from typing import Literal

from lib.options import Layers, Seed
from search.settings import CommonSettings, Script, of_space, of_table

DESCRIPTION = (
    "Search a cell of NAS-Bench-201 with any of the methods, or with their ideas combined, and look up its accuracy in "
    "the benchmark's table. --method sets all flags as in the method's paper; other flags override it. The defaults "
    "shown are those of Λ-DARTS."
)


@dataclass
class SearchSettings201(CommonSettings):
    """The settings of a search in NAS-Bench-201."""

    space: Literal["nasbench201"] = of_space("nasbench201", "Name of the search space.")
    cells_per_stage: Layers = of_space(5, "Number of cells N in each of the three stages.")
    table: str = of_table(
        "", "Accuracy table made by nasbench201/table.py build. By default, the table that comes with the project."
    )
    table_dataset: Literal["auto", "cifar10", "cifar100", "imagenet16_120"] = of_table(
        "auto",
        "Data set whose accuracies are looked up for each epoch's cell. auto: the data set of the search, or CIFAR-10 "
        "if it is not a data set of NAS-Bench-201.",
    )
    seeds: list[Seed] | None = of_table(
        None, "Seeds to search with, one after another. The mean and deviation are printed."
    )


SCRIPT = Script("nasbench201/train_search.py", SearchSettings201, DESCRIPTION, ("data", "halves", "table"))
