"""DARTS-PT's selection, on a stand-in supernet for which the best cell is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genotypes import Genotype
from lib.datasets import DataSet, ImageSet
from lib.progress import StepProgress
from search.perturbation import Perturbation
from search.settings import SearchSettings
from search.state import SearchState
from spaces import SPACES

EDGES = SPACES["s5"].edges

DOUBLE = torch.float64

#: the useful operation of each edge, as an index into the candidates of S3: none, skip_connect, sep_conv_3x3
PLANTED = {"normal": (1, 2, 2, 1, 2, 1, 1, 2, 2, 1, 2, 1, 2, 1), "reduce": (2, 2, 1, 1, 2, 2, 1, 2, 1, 2, 2, 1, 1, 2)}
#: the edges that images depend on, two for each node
USED = {
    "normal": ((0, 2), (1, 2), (0, 3), (2, 3), (1, 4), (3, 4), (0, 5), (4, 5)),
    "reduce": ((0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (1, 5), (3, 5)),
}
GROUPS = [(kind, EDGES.index(edge)) for kind in ("normal", "reduce") for edge in USED[kind]]


class Planted(nn.Module):
    """A stand-in for the supernet: an image is classified correctly if its edge has weight on its planted operation.

    The planted operations of edges without images only scale the logits a little.
    """

    def __init__(self, supernet):
        super().__init__()
        self.kinds, self.alpha_shapes = supernet.kinds, supernet.alpha_shapes
        self.classifier = nn.Linear(1, 1)

    def forward(self, images, weights, drop_path_prob=0.0, skip_beta=0.0):
        labels, groups = images[:, 0, 0, 0].round().long(), images[:, 0, 0, 1].round().long()
        planted = {
            (kind, edge): weights[self.kinds.index(kind)][edge, operation]
            for kind in PLANTED
            for edge, operation in enumerate(PLANTED[kind])
        }
        right = torch.stack([planted[group] for group in GROUPS])[groups] > 0
        sureness = 1 + 0.01 * sum(weight for edge, weight in planted.items() if edge not in GROUPS)
        return sureness * torch.where(right, 1.0, -1.0)[:, None] * F.one_hot(labels, 10)


def planted_search(**changes):
    """A search whose images hold two numbers: their label and the index in GROUPS of the edge that they depend on."""
    generator = np.random.default_rng(0)
    images = torch.zeros(600, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.from_numpy(generator.integers(0, 10, 600))
    images[:, 0, 0, 1] = torch.arange(600) % len(GROUPS)
    part = ImageSet(images, images[:, 0, 0, 0].long())
    digits = tuple(str(digit) for digit in range(10))
    settings = SearchSettings(
        space="s3", layers=4, init_channels=4, batch_size=100, device="cpu", **{"finetune_epochs": 0, **changes}
    )
    dataset = DataSet(part, part, digits, mean=(0.0,), std=(1 / 255,), flip=False)
    search = SearchState(settings, dataset, torch.device("cpu"))
    search.supernet = Planted(search.supernet)
    return search


def no_epoch(*arguments):
    raise AssertionError


def test_perturbation_finds_the_planted_cell_and_logs_the_accuracy_after_every_removal():
    search = planted_search()
    selection = Perturbation(search, no_epoch)
    assert selection.stages == [("decide", number) for number in range(17)]
    progress = StepProgress("selection", 1, 0)
    for number, stage in enumerate(selection.stages, start=1):
        before = len(selection.scores)
        selection.run(stage, progress)
        assert selection.steps(stage) == len(selection.batches()) * (len(selection.scores) - before)
        if number == len(EDGES):
            for kind, operations in PLANTED.items():
                one_hot = F.one_hot(torch.tensor(operations), 3)
                assert torch.equal(search.architecture.mixing_weights()[kind].detach(), one_hot.float())

    names = ("none", "skip_connect", "sep_conv_3x3")
    cells = {kind: tuple((names[PLANTED[kind][EDGES.index(edge)]], edge[0]) for edge in USED[kind]) for kind in PLANTED}
    assert selection.cell() == Genotype(cells["normal"], (2, 3, 4, 5), cells["reduce"], (2, 3, 4, 5))

    groups = search.valid.images[:, 0, 0, 1].tolist()
    orders = []
    for kind in ("normal", "reduce"):
        rows = [row for row in selection.scores if row["cell"] == kind]
        edges = [row for row in rows if row["decision"] <= 14]
        nodes = [row for row in rows if row["decision"] > 14]
        # each edge has one decision, among all of its operations except `none`
        assert sorted((row["source"], row["target"], row["removed"]) for row in edges) == sorted(
            (*edge, name) for edge in EDGES for name in names[1:]
        )
        orders.append([(row["source"], row["target"]) for row in edges if row["outcome"] == "kept"])
        assert sorted(orders[-1]) == sorted(EDGES)
        # node 3 tries 3 edges; node 4 tries 4 and then 3; node 5 tries 5, 4 and 3
        assert sorted(row["target"] for row in nodes) == [3] * 3 + [4] * 7 + [5] * 12
        dropped = [(row["source"], row["target"]) for row in nodes if row["outcome"] == "dropped"]
        assert sorted(dropped) == sorted(set(EDGES) - set(USED[kind]))
        for row in rows:
            edge = EDGES.index((row["source"], row["target"]))
            matters = (kind, edge) in GROUPS and row["removed"] in ("edge", names[PLANTED[kind][edge]])
            lost = groups.count(GROUPS.index((kind, edge))) if matters else 0
            assert matters == (lost > 0)
            assert row["valid_accuracy"] == pytest.approx(1 - lost / len(groups), abs=1e-6)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0], key=EDGES.index)


def test_fine_tuning_between_decisions_uses_a_tenth_of_the_learning_rate():
    search, calls = planted_search(epochs=50, finetune_epochs=2), []
    selection = Perturbation(search, lambda epoch, rate, progress, name: calls.append((epoch, rate)))
    assert [what for what, _ in selection.stages] == ["decide", "finetune", "finetune"] * 16 + ["decide"]
    progress = StepProgress("selection", 1, 0)
    for stage in selection.stages:
        selection.run(stage, progress)
    assert [epoch for epoch, _ in calls] == list(range(50, 82))
    assert [rate for _, rate in calls] == [pytest.approx(0.0025)] * 32
    assert selection.done == 49
