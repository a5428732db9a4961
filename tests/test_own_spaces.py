"""Search spaces of users: any number of nodes, and a different number of candidates on each edge."""

import numpy as np
import pytest
import torch

from architect import Architecture
from genotypes import load_genotype
from lib.objective import Objective
from lib.registry import EntryError
from search.metrics import Meters
from search.perturbation import Perturbation
from spaces import SPACES, Space
from tests.helpers import (
    assert_same_run,
    few_images,
    interrupt,
    metrics,
    run_search,
    select,
    settings_of,
    without_figures,
)
from tests.supernets import batch_and_weights, fast_and_plain, uneven_space

DOUBLE = torch.float64


@pytest.mark.parametrize("relaxation", ["softmax", "sigmoid"])
def test_the_gradient_of_alpha_in_an_uneven_space_equals_finite_differences(relaxation):
    space = uneven_space()
    supernet, plain = fast_and_plain(space)
    architecture = Architecture(space.counts, relaxation).double()
    with torch.no_grad():
        for kind, alpha in architecture.alphas.items():
            alpha.copy_(torch.randn_like(alpha) * architecture.places[kind])
    batch, _ = batch_and_weights(supernet)

    def loss(objective=None):
        mixing = architecture.mixing_weights()
        value, _ = (objective or Objective(supernet))([mixing[kind] for kind in supernet.kinds], batch)
        return value

    assert abs(loss() - loss(Objective(plain))) < 1e-12
    gradients = torch.autograd.grad(loss(), list(architecture.parameters()))
    for (kind, alpha), gradient in zip(architecture.alphas.items(), gradients, strict=True):
        places = architecture.places[kind]
        assert places.sum() == sum(space.counts[kind]) < places.numel()
        assert (architecture.mixing_weights()[kind][~places] == 0).all() and (gradient[~places] == 0).all()
        for index in places.nonzero():
            values = []
            for step in (1e-6, -2e-6, 1e-6):
                with torch.no_grad():
                    alpha[tuple(index)] += step
                values.append(loss().item())
            assert gradient[tuple(index)].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_derived_cell_of_an_uneven_space_keeps_the_strongest_edges_of_each_node(keep):
    space = uneven_space(keep)
    generator = np.random.default_rng(0)
    weights = {kind: generator.random((5, 3)) for kind in space.cells}
    cell = select(space, weights, "argmax")
    for kind, candidates in space.cells.items():
        expected = set()
        for node in (2, 3):
            best = []
            for edge, (source, target) in enumerate(space.edges):
                names = [name for name in candidates[edge] if name != "none"]
                scores = {name: weights[kind][edge][candidates[edge].index(name)] for name in names}
                name = max(scores, key=scores.get)
                best += [(scores[name], (name, target, source))] if target == node else []
            expected |= {edge for _, edge in sorted(best, reverse=True)[:keep]}
        assert set(cell.edges(kind)) == expected and cell.concat(kind) == [2, 3]
        assert len(cell.edges(kind)[0]) == 3 and len(getattr(cell, kind)[0]) == (2 if keep == 2 else 3)


def test_a_search_of_an_uneven_space_that_combines_five_papers_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(SPACES, "data", dict(SPACES))
    SPACES["uneven"] = uneven_space()
    settings = settings_of(
        "lambda-darts", space="uneven", smooth="adversarial", smooth_end=0.2, auxiliary_skip="skip",
        alpha_reg="logsumexp", alpha_reg_weight=1.0, alpha_reg_schedule="linear", selection="perturbation",
        **few_images(tmp_path / "data") | {"epochs": 2},
    )  # fmt: skip
    with without_figures():
        whole = run_search(settings, tmp_path / "whole")
        for method, call in (("add_weight_step", 3), ("add_weight_step", 1)):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                interrupt(patch, Meters, method, call)
                run_search(settings, tmp_path / "stopped", resumed=call == 1)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, Perturbation, "evaluate", 9)
            run_search(settings, tmp_path / "stopped", resumed=True)
        run_search(settings, tmp_path / "stopped", resumed=True)
    assert_same_run(whole, tmp_path / "stopped")
    cell = load_genotype(str(whole))
    for kind, candidates in SPACES["uneven"].cells.items():
        for operation, target, source in cell.edges(kind):
            assert operation in candidates[SPACES["uneven"].edges.index((source, target))]
    rows = metrics(whole)
    assert all(float(row["alpha_regularizer"]) > 0 for row in rows)


def test_alpha_stays_zero_at_places_without_an_operation():
    architecture = Architecture(uneven_space().counts)
    optimizer = torch.optim.Adam(architecture.parameters(), 0.1, weight_decay=0.1)
    for _ in range(5):
        sum(p.square().sum() for p in architecture.mixing_weights().values()).backward()
        optimizer.step()
    for kind, alpha in architecture.alphas.items():
        assert (alpha[~architecture.places[kind]] == 0).all()
        torch.testing.assert_close(architecture.mixing_weights()[kind].sum(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": [(0, 2), (1, 2, 3)]}, "expected pairs"),
        ({"edges": ((0, 2), (1, 2.0))}, "expected pairs"),
        ({"edges": ((0, 2), (0, 2))}, "each edge once"),
        ({"edges": ((1, 3), (0, 2))}, "in the order of their targets"),
        ({"edges": ((0, 2), (2, 2))}, "expected a source of 0 or more, and a target after it"),
        ({"edges": ((0, 2), (1, 4))}, r"nodes \[2, 4\]; expected consecutive numbers from 2 on"),
        ({"keep": 0}, "keep 0; expected a whole number"),
        ({"keep": True}, "keep True; expected"),
        ({"keep": 1.5}, "keep 1.5; expected"),
        ({"keep": None}, "keep None; expected"),
        ({"cells": {"normal": (("a",), ("b",))}}, "cells normal; expected normal and reduce"),
        ({"cells": {"normal": (("a",), ("b",)), "reduce": (("a",),)}}, "reduce: candidates for 1 edges; expected 2"),
        ({"cells": {"normal": (("a",), "bc"), "reduce": (("a",), ("b",))}}, "normal, edge 1 -> 2: candidates 'bc'"),
        ({"cells": {"normal": (("a",), ("b", "b")), "reduce": (("a",), ("b",))}}, "one or more different operations"),
        ({"cells": {"normal": (("a",), ()), "reduce": (("a",), ("b",))}}, "one or more different operations"),
        ({"cells": {"normal": (("a",), ("none",)), "reduce": (("a",), ("b",))}}, "an operation besides none"),
    ],
)
def test_an_invalid_space_raises_an_error_when_it_is_constructed(changes, message):
    cell = (("a",), ("b",))
    with pytest.raises(EntryError, match=message):
        Space(**{"cells": {"normal": cell, "reduce": cell}, "edges": ((0, 2), (1, 2)), "keep": 2, **changes})


def test_a_space_accepts_lists_and_kinds_in_any_order():
    space = Space({"reduce": [["a"], ["b"]], "normal": [["c"], ["d"]]}, [[0, 2], [1, 2]], keep=1)
    assert [*space.cells.items()] == [("normal", (("c",), ("d",))), ("reduce", (("a",), ("b",)))]
    assert space.edges == ((0, 2), (1, 2)) and space.nodes == (2,) and space.inputs == 2
