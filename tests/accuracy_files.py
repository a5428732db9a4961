"""Small files of accuracies: as CSV and in the official layout of NAS-Bench-201."""

import csv
import gzip
from collections import OrderedDict

import numpy as np
import torch
from nas_201_api import ResultsCount
from nas_201_api.api_utils import ArchResults

from nasbench201.cells import all_cells
from nasbench201.table import main
from tests.helpers import run_main

ARCHS = [cell.arch for cell in all_cells()][4321:4326]
#: data set of the training -> the sets on which the network is evaluated
SETS = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("x-valid", "x-test", "ori-test"),
}


def write_csv(path, archs=ARCHS):
    """Write a CSV file with two accuracies for each cell, and return its path."""
    rows = [[arch, 50 + i, 60.25 + i] for i, arch in enumerate(archs)]
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        csv.writer(file).writerows([("arch", "cifar10_valid", "cifar10_test"), *rows])
    return path


def printed(capsys, *arguments):
    """The output of nasbench201/table.py."""
    capsys.readouterr()
    run_main(main, *arguments)
    return capsys.readouterr().out


def trial(dataset, arch, seed, epochs, generator, wrap=float):
    """The official package's record of one training, with random accuracies; `wrap` converts its costs."""
    per_epoch = [OrderedDict((i, generator.uniform(20, 90)) for i in range(epochs)) for _ in range(4)]
    config = {"channel": 16, "num_cells": 5, "arch_str": arch, "class_num": 10}
    result = ResultsCount(dataset, None, *per_epoch[:2], wrap(0.5), wrap(80.25), config, seed, epochs, [0.01])
    result.update_train_info(*per_epoch)
    keys = [f"{name}@{epoch}" for name in SETS[dataset] for epoch in range(epochs)]
    result.update_eval(*({key: generator.uniform(20, 90) for key in keys} for _ in range(3)))
    return result


def write_official(path, trained=lambda epochs: SETS, wrap=float, **options):
    """Write a file in the official layout, with results of each cell after 12 and 200 epochs, for 1 to 3 seeds.

    Args:
        path: The file.
        trained: Return the data sets that have results after a number of epochs.
        wrap: Convert parameters and multiply-adds to a type.
        options: Options of torch.save.

    Returns:
        The content of the file.
    """
    generator = np.random.default_rng(0)
    infos = {}
    for index, arch in enumerate(ARCHS):
        states = {}
        for key, epochs in (("less", 12), ("full", 200)):
            results = ArchResults(index, arch)
            for dataset in trained(epochs):
                for seed in (777, 888, 999)[: 1 + index % 3]:
                    results.update(dataset, seed, trial(dataset, arch, seed, epochs, generator, wrap))
            states[key] = results.state_dict()
        infos[index] = states
    content = {"meta_archs": ARCHS, "arch2infos": infos, "evaluated_indexes": list(infos)}
    torch.save(content, path, **options)
    return content
