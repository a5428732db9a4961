"""The differences between the papers and the released codes; docs/faithfulness.md explains D1 to D14."""

import shutil
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from architect import unrolled
from genotypes import Edge
from lib import datasets
from lib.batches import draw
from lib.cli import InputError
from lib.objective import cosine_similarity, norm
from lib.progress import StepProgress
from lib.provenance import write_config
from nasbench201.search201 import SearchState201
from nasbench201.settings import SCRIPT as SCRIPT_201
from regularizers import regularized_gradient
from search.command_line import resolve
from search.methods import METHODS, preset
from search.perturbation import Perturbation
from search.settings import SCRIPT
from search.state import SearchState
from search.train_search import Schedule, alpha_step, schedule, weight_step
from search.turns import turns
from tests.helpers import assert_same_run, few_images, run_search_201, settings_of, settings_of_201
from tests.test_perturbation import no_epoch, planted_search


def search_of(method, space="s2", **changes):
    """A small search on the digits, before its first step."""
    settings = settings_of(method, space=space, **{"batch_size": 64, "layers": 4, "init_channels": 4, **changes})
    return SearchState(settings, datasets.load("digits"), torch.device("cpu"))


def weights_of(state):
    return [weight.detach().clone() for weight in state.weights()]


def moved(before, after):
    return [b - a for a, b in zip(before, after, strict=True)]


def epoch_of(state):
    return list(turns(state, 0, StepProgress("run", 1, 0), "epoch"))


# Settings


@pytest.mark.parametrize(
    ("method", "space", "departures"),
    [
        ("darts", "darts", {"fresh_batches": "valid", "split": "file_order", "noise": "fresh"}),
        ("darts", "nasbench201", {"fresh_batches": "valid", "weights_first": True, "epochs": 100}),
        ("darts-minus", "darts", {"fresh_batches": "valid", "split": "file_order"}),
        ("fair-darts", "s5", {"fresh_batches": "valid", "split": "file_order"}),
        ("lambda-darts", "s4", {"fresh_batches": "none", "split": "file_order", "noise": "fresh"}),
        ("lambda-darts", "nasbench201", {"fresh_batches": "valid", "split": "random", "weights_first": True}),
        ("idarts", "nasbench201", {"fresh_batches": "valid", "implicit_noise": True, "split": "random"}),
        ("darts-pt", "s3", {"fresh_batches": "both", "selection_augment": True, "split": "file_order"}),
    ],
)
def test_released_settings_differ_from_those_of_the_paper(method, space, departures):
    paper, released = preset(method, space), preset(method, space, released=True)
    assert {name: released.get(name) for name in departures} == departures
    # all other settings of the method equal those of the paper
    assert {name: released[name] for name in paper if name not in departures} == {
        name: value for name, value in paper.items() if name not in departures
    }
    assert paper.get("fresh_batches") is None and paper.get("weights_first") is None


def test_a_method_searches_the_space_of_its_paper():
    spaces = {method: SCRIPT.preset({"method": method})["space"] for method in METHODS}
    with_none = {"darts", "darts-2nd", "darts-minus"}
    assert spaces == {method: "darts" if method in with_none else "s5" for method in METHODS}
    assert SCRIPT.settings_of("darts", space="s3").space == "s3"


def test_the_command_line_reads_and_records_released(tmp_path):
    settings = resolve(["--method", "idarts", "--released", "--save", str(tmp_path / "run")]).settings
    assert (settings.released, settings.implicit_noise, settings.split) == (True, True, "file_order")
    settings = resolve(["--released", "--split", "random", "--save", str(tmp_path / "run")]).settings
    assert (settings.split, settings.noise) == ("random", "fresh")
    write_config(tmp_path, asdict(SCRIPT.settings_of("idarts")), {})
    for flags, message in (
        (
            ["--method", "idarts", "--released", "--derivatives", "exact"],
            "--implicit_noise: only the implicit gradient",
        ),
        (["--method", "idarts", "--released", "--no_implicit_noise"], "--released: in iDARTS's released code only"),
        (
            ["--config", str(tmp_path / "config.yaml"), "--released"],
            "--released: True cannot be combined with --config",
        ),
    ):
        with pytest.raises(InputError, match=message):
            resolve([*flags, "--save", str(tmp_path / "run")])
    with pytest.raises(InputError, match="--released: the settings of beta-darts's released code are not recorded"):
        resolve(["--method", "beta-darts", "--released"])


# iDARTS (D1, D2)


def test_the_inner_steps_of_idarts_released_code_move_nothing_and_its_noise_descends_the_validation_loss():
    state = search_of("idarts", released=True, implicit_noise=True, precision="64-true", epochs=1)
    objective, now = state.objective(0.0, 0.0), schedule(state.settings, 0)
    turn, start = epoch_of(state)[0], weights_of(state)
    for batch in turn.weights:
        weight_step(state, objective, batch, now, layers=False)
    assert norm(moved(start, weights_of(state))) == 0.0
    v_0 = torch.autograd.grad(objective(state.layer_weights(), turn.valid)[0], objective.parameters)
    alpha_step(state, objective, turn.train, turn.valid, now)
    noise = moved(start, weights_of(state))
    # s is about 3 v_0, so the noise R (v_0 - s) is about -0.02 v_0 / |v_0|
    assert norm(noise) == pytest.approx(0.02, rel=0.05)
    assert cosine_similarity(noise, list(v_0)) == pytest.approx(-0.99, abs=0.01)


def test_the_inner_steps_of_idarts_move_the_weights_and_a_step_of_alpha_does_not():
    state = search_of("idarts", precision="64-true", epochs=1)
    objective, now = state.objective(0.0, 0.0), schedule(state.settings, 0)
    turn, start = epoch_of(state)[0], weights_of(state)
    for batch in turn.weights:
        weight_step(state, objective, batch, now, layers=False)
    after = weights_of(state)
    assert norm(moved(start, after)) > 0.01
    alpha_step(state, objective, turn.train, turn.valid, now)
    assert norm(moved(after, weights_of(state))) == 0.0


def test_inner_batches_are_shared_with_the_epoch_or_fresh():
    shared, fresh = (search_of("idarts", inner_batches=kind) for kind in ("shared", "fresh"))
    batches = len(shared.batches(0)[0])
    turns_of_shared, turns_of_fresh = epoch_of(shared), epoch_of(fresh)
    # an epoch uses each training batch once: four for each alpha step, and the last of them also for the Hessian
    assert [len(turn.weights) for turn in turns_of_shared] == [4] * (batches // 4) + [batches % 4] * (batches % 4 > 0)
    assert all(turn.train is turn.weights[-1] for turn in turns_of_shared)
    # an alpha step for each batch, with four fresh batches and one more for the Hessian
    assert [len(turn.weights) for turn in turns_of_fresh] == [4] * batches
    assert all(turn.train.seed not in {batch.seed for batch in turn.weights} for turn in turns_of_fresh)
    seeds = [batch.seed for turn in turns_of_fresh for batch in (*turn.weights, turn.train)]
    assert len(set(seeds)) == 5 * batches


def test_an_unrolled_nesterov_step_equals_that_of_the_optimizer():
    state = search_of("darts-2nd", nesterov=True, precision="64-true", grad_clip=1e9)
    settings, objective = state.settings, state.objective(0.0, 0.0)
    first, second = epoch_of(state)[:2]
    weight_step(state, objective, first.train, schedule(settings, 0), layers=False)  # so that the momentum is not zero
    rate, weights = settings.learning_rate, state.layer_weights()
    arguments = (rate, state.momentum_buffers(), settings.momentum, settings.weight_decay, "exact")
    ahead = unrolled(objective, weights, second.train, second.valid, *arguments, nesterov=True)
    plain = unrolled(objective, weights, second.train, second.valid, *arguments)
    weight_step(state, objective, second.train, schedule(settings, 0), layers=False)
    loss, _ = objective(weights, second.valid)
    assert ahead.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert plain.loss.item() != pytest.approx(loss.item(), rel=1e-6)


# Noise (D4)


def test_noise_that_is_drawn_anew_in_each_pass_swamps_a_finite_difference():
    def two_gradients(noise):
        state = search_of("lambda-darts", space="s4", noise=noise, precision="64-true", batch_size=32)
        objective, batch = state.objective(0.0, 0.0), epoch_of(state)[0].train
        mixing = state.layer_weights()
        return [
            regularized_gradient(objective, mixing, batch, "corr", "difference", 1e-3).regularizer_gradient
            for _ in range(2)
        ]

    held, fresh = two_gradients("held"), two_gradients("fresh")
    assert cosine_similarity(*held) == pytest.approx(1, abs=1e-9)
    assert abs(cosine_similarity(*fresh)) < 0.2
    assert norm(fresh[0]) > 5 * norm(held[0])


# Batches (D10, D11)


def test_the_images_are_split_at_random_or_in_file_order():
    images = datasets.load("digits").train.images
    half = len(images) // 2
    state = search_of("darts", split="file_order")
    assert torch.equal(state.train.images, images[:half]) and torch.equal(state.valid.images, images[half:])
    first, second = (search_of("darts", seed=seed).train.images for seed in (0, 1))
    assert not torch.equal(first, images[:half]) and not torch.equal(first, second)


def test_images_in_folders_cannot_be_split_in_file_order(tmp_path):
    settings = settings_of("darts", split="file_order", **few_images(tmp_path / "data"))
    with pytest.raises(InputError, match="--split: file_order, but the files of a folder are in the order of their"):
        SearchState(settings, datasets.load_dataset(settings), torch.device("cpu"))


def test_fresh_batches_are_drawn_from_all_images_without_replacement_within_a_batch():
    state = search_of("darts", fresh_batches="both", batch_size=128)
    labelled = state.train
    numbered = datasets.ImageSet(labelled.images, torch.arange(len(labelled)))
    batches = state.batches(0)[0]
    drawn = [batch.labels.tolist() for batch in draw(replace(batches, data=numbered), 40)]
    assert all(len(set(batch)) == 128 for batch in drawn)
    assert all(set(a) != set(b) for a, b in pairwise(drawn))
    counts = np.bincount(np.concatenate(drawn), minlength=len(labelled))
    # binomial: 40 draws, each with 128 of the 718 images
    share = 128 / len(labelled)
    assert counts.mean() == pytest.approx(40 * share) and counts.std() == pytest.approx(
        np.sqrt(40 * share * (1 - share)), rel=0.15
    )
    again = [batch.labels.tolist() for batch in draw(replace(batches, data=numbered), 40)]
    assert again == drawn


@pytest.mark.parametrize(
    ("fresh", "whole"), [("none", (True, True)), ("valid", (True, False)), ("both", (False, False))]
)
def test_an_epoch_sees_every_image_once_unless_its_batches_are_fresh(fresh, whole):
    state = search_of("darts", fresh_batches=fresh, batch_size=64)
    state.train, state.valid = (
        datasets.ImageSet(part.images, torch.arange(len(part))) for part in (state.train, state.valid)
    )
    epoch = epoch_of(state)
    for part, batches, every in (
        (state.train, [turn.weights[0] for turn in epoch], whole[0]),
        (state.valid, [turn.valid for turn in epoch], whole[1]),
    ):
        seen = torch.cat([batch.labels for batch in batches])
        assert (len(set(seen.tolist())) == len(part)) == every


# NAS-Bench-201 (D12, D14)


def test_the_released_lambda_darts_clips_by_a_norm_that_includes_the_gradient_of_alpha():
    def norms(released):
        settings = settings_of_201("lambda-darts", released=released, weights_first=True, precision="64-true")
        state = SearchState201(settings, datasets.load("digits"), torch.device("cpu"))
        objective, now = state.objective(0.0, 0.0), Schedule(0.025)
        first, second = epoch_of(state)[:2]
        weight_step(state, objective, first.weights[0], now, layers=True)
        alpha_step(state, objective, first.train, first.valid, now)
        left = [alpha.grad.clone() for alpha in state.architecture.parameters()]
        result, clipped = weight_step(state, objective, second.weights[0], now, layers=True)
        own = state.architecture.gradients(state.supernet.kinds, result.layer_gradients)
        accumulated = [a + b for a, b in zip(left, own, strict=True)]
        return clipped.item(), norm(result.gradient).item(), norm([*result.gradient, *accumulated]).item()

    clipped, weights, both = norms(released=False)
    assert clipped == pytest.approx(weights, rel=1e-12) and both > weights
    clipped, weights, both = norms(released=True)
    assert clipped == pytest.approx(both, rel=1e-12)


# DARTS-PT (D5 to D9)


def test_removals_are_scored_on_the_same_images_or_on_new_augmented_ones_each_time():
    def losses(augment):
        state = search_of("darts-pt", selection_augment=augment, batch_size=128, finetune_epochs=0)
        selection, progress = Perturbation(state, no_epoch), StepProgress("selection", 1, 0)
        p = state.architecture.mixing_weights()
        return [selection.evaluate(p, progress)[1] for _ in range(2)]

    once, again = losses(False)
    assert once == again
    once, again = losses(True)
    assert once != again


def test_the_perturbation_rule_decides_by_accuracy_or_by_loss_and_the_released_code_keeps_the_first_of_equals():
    figures = [(0.5, 1.0), (0.4, 0.9), (0.4, 1.1), (0.6, 2.0), (0.6, 0.1)]  # accuracy, loss

    def kept_and_dropped(**changes):
        selection = Perturbation(planted_search(selection="perturbation", **changes), no_epoch)
        scores = [selection._score(pair) for pair in figures]
        return min(range(5), key=scores.__getitem__), max(reversed(range(5)), key=scores.__getitem__)

    assert kept_and_dropped() == (2, 4)
    assert kept_and_dropped(released=True) == (1, 4)
    assert kept_and_dropped(selection_criterion="loss") == (3, 4)


def test_the_released_code_may_keep_none_in_s3_and_its_cell_then_has_the_next_operation():
    def select(released):
        search = planted_search(released=released)
        selection, progress = Perturbation(search, no_epoch), StepProgress("selection", 1, 0)
        for stage in selection.stages:
            selection.run(stage, progress)
        return selection

    paper, released = select(False), select(True)
    assert "none" not in {row["removed"] for row in paper.scores}
    kept = [row["removed"] for row in released.scores if row["outcome"] == "kept"]
    # if all operations of an edge leave the same accuracy, it keeps the first one, which is `none`
    assert kept.count("none") == 28 - 16
    assert released.cell() == paper.cell()

    # Node 3 has dropped its first edge and keeps `none` on its second one. Both count as dropped, so the cell takes the
    # first one, with its first operation other than `none`.
    fixed = released.state.architecture.fixed["normal"]
    edges = released.state.space.edges_of[3]
    fixed[edges] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    of_node_3 = [edge for edge in released.cell().edges("normal") if edge.target == 3]
    assert of_node_3 == [Edge("skip_connect", 3, 0), Edge("sep_conv_3x3", 3, 2)]


@pytest.mark.parametrize(("released", "before_the_last"), [(False, 5), (True, 4)])
def test_the_released_code_fine_tunes_one_epoch_less_before_the_last_decision(released, before_the_last):
    settings = settings_of_201("darts-pt", released=released, finetune_epochs=5)
    state = SearchState201(settings, datasets.load("digits"), torch.device("cpu"))
    stages = [what for what, _ in Perturbation(state, no_epoch).stages]
    expected = (["decide"] + ["finetune"] * 5) * 4 + ["decide"] + ["finetune"] * before_the_last + ["decide"]
    assert stages == expected


def test_blank_pt_never_moves_alpha(tmp_path):
    run = run_search_201(
        settings_of_201("blank-pt", arch_learning_rate=0.0, **few_images(tmp_path / "data")), tmp_path / "run"
    )
    with np.load(run / "alphas.npz") as alphas:
        assert all((alphas[kind] == alphas[kind][0]).all() and alphas[kind].any() for kind in alphas.files)


# Interruptions


@pytest.mark.parametrize("method", ["lambda-darts", "idarts", "darts-pt"])
def test_a_released_search_resumes_bit_for_bit(tmp_path, method):
    images = few_images(tmp_path / "data") | {"epochs": 3, "finetune_epochs": 1, "split": "random"}
    changes = SCRIPT_201.preset({"method": method, "released": True}) | images | {"released": True}
    settings = settings_of_201(method, **changes)
    whole, part = run_search_201(settings, tmp_path / "whole"), tmp_path / "part"
    shutil.copytree(whole, part)
    for path in sorted((part / "checkpoints").iterdir())[-1:]:
        path.unlink()
    for name in ("genotype.json", "genotypes.jsonl", "metrics.csv", "alphas.npz"):
        (part / name).unlink()
    shutil.rmtree(part / "perturbation", ignore_errors=True)
    run_search_201(settings, part, resumed=True)
    assert_same_run(whole, part)
