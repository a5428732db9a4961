"""Build nasbench201/accuracies.npz, the accuracy table of this repository, from CSV files.

python tools/nasbench201_table.py epochs200.csv.gz epochs12.csv.gz

The first file has the accuracies after 200 epochs, the second after 12 epochs, both in percent and in the format of
nasbench201/table.py build. Accuracies are rounded to multiples of 1/600 percent (1/900 percent on ImageNet16-120) and
stored as 16-bit integers. This is exact for a mean of three trainings on 10,000 images (3,000 on ImageNet16-120).
For CIFAR-10 valid, with 25,000 images, the error is at most 1/1500 percent. No rank changes.
"""

import itertools

import numpy as np

from lib import cli, options
from nasbench201.accuracies import SHIPPED, SPACE, parts_of_percent
from nasbench201.cells import OPERATIONS, make_cell, operations_of
from nasbench201.sources import read_sources, warn_of_units, write_table

PROG = "nasbench201_table.py"
#: data set of the benchmark -> number of classes, height and width of the images
NETWORKS = {"cifar10": (10, 32), "cifar100": (100, 32), "imagenet16_120": (120, 16)}
CITATION = (
    "X. Dong and Y. Yang. NAS-Bench-201: Extending the scope of reproducible neural architecture search. ICLR 2020. "
    "The figures are those of NAS-Bench-201 v1.1, whose repository has the MIT licence."
)
UNITS = (
    "Accuracies are rounded to 1/600 of a percent, on ImageNet16-120 to 1/900. cifar10_params and so on are single "
    "parameters, and cifar10_madds and so on single multiply-adds of one image, of the network with C = 16 and N = 5."
)


def costs(cells: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters and multiply-adds of the network of each cell, (N,) each.

    Both depend only on the number of edges with each operation, so one cell is measured for each combination.
    """
    import torch

    from model import size
    from nasbench201.networks import Network201

    counts = np.stack([(cells == operation).sum(axis=1) for operation in range(len(OPERATIONS))], axis=1)
    kinds, kind_of = np.unique(counts, axis=0, return_inverse=True)
    columns = {}
    for dataset, (classes, pixels) in NETWORKS.items():
        sizes = []
        for kind in kinds:
            operations = itertools.chain(*([name] * count for name, count in zip(OPERATIONS, kind, strict=True)))
            with torch.device("meta"):
                network = Network201(make_cell(list(operations)), classes=classes)
            sizes.append(size(network, 3, pixels))
        for column, key in (("params", "params"), ("madds", "multiply_adds")):
            columns[f"{dataset}_{column}"] = np.array([s[key] for s in sizes], np.uint32)[kind_of.ravel()]
    return columns


def main() -> None:
    parser = options.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument("epochs200", type=str, help="CSV file with accuracies after 200 epochs, in percent.")
    parser.add_argument("epochs12", type=str, help="CSV file with accuracies after 12 epochs, in percent.")
    given = parser.parse_args()
    with cli.blaming("sources"):
        cells, accuracies, origins = read_sources([given.epochs200, given.epochs12], [200, 12])
        if len(cells) != SPACE:
            raise ValueError(f"the files have {len(cells):,} cells, expected all {SPACE:,} of the space")
    warn_of_units(accuracies)
    operations = operations_of(cells)
    rounded = {
        name: np.rint(parts_of_percent(name) * values.astype(np.float64)).astype(np.uint16)
        for name, values in accuracies.items()
    }
    about = {"citation": CITATION, "units": UNITS, "sources": origins}
    write_table(SHIPPED, {"cells": operations, **rounded, **costs(operations)}, about)
    print(f"{SHIPPED}: {SHIPPED.stat().st_size:,} bytes")


if __name__ == "__main__":
    cli.run(main, PROG)
