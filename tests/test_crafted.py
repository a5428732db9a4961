"""Checkpoints with the right checksum and the wrong content: a run refuses to go on from one, in a line."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch

import checkpoints
from cli import InputError
from search.loop import select_again
from tests.test_combinations import few_images, settings_of
from tests.test_numbers import weights_of
from tests.test_retraining import SMALL as RETRAINING
from tests.test_retraining import retrain
from tests.test_search import SMALL, metrics, run_search

DELETED = object()
SEARCH = replace(SMALL, init_channels=2, reg="none", epochs=2)
RETRAIN = replace(RETRAINING, init_channels=2, epochs=2)


def changed(tree, place, value):
    """A tree in which what stands at a place is another value, or is deleted."""
    tree = copy.deepcopy(tree)
    *folders, name = place
    at = tree
    for folder in folders:
        at = at[folder]
    if value is DELETED:
        del at[name]
    else:
        at[name] = value
    return tree


def crafted(run, folder, place, value, last=False):
    """A copy of a run with one checkpoint, the last or the one before, in which a tensor or a part is another.

    Args:
        place: the name of a tensor, or the way to a part of the state.
    """
    shutil.copytree(run, folder)
    kept = sorted((folder / "checkpoints").glob("*.safetensors"))
    path = kept.pop(-1 if last else 0)
    for other in kept:
        other.unlink()
    for name in ("result.json", "genotype.json"):
        (folder / name).unlink(missing_ok=True)
    tensors, state = checkpoints.read(path)
    if isinstance(place, str):
        tensors = changed(tensors, (place,), value)
    else:
        state = changed(state, place, value)
    checkpoints.write(path, tensors, state)
    return folder


def assert_refused_in_a_line(go_on, expected):
    with pytest.raises(InputError) as refused:
        go_on()
    (line,) = str(refused.value).splitlines()
    assert expected in line and len(line) < 500


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    return run_search(SEARCH, tmp_path_factory.mktemp("crafted") / "search")


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("rows",), [], "its cells are not one an epoch"),
        (("rows",), {}, "its metrics are no rows"),
        (("rows", 0), "x", "its metrics are no rows"),
        (("rows", 0, "epoch"), 7, "its metrics are not those of epoch 1"),
        (("rows", 0, "seconds"), [1], "its seconds of epoch 1 is '[1]', expected a finite number"),
        (("rows", 0, "train_loss"), float("inf"), "its train_loss of epoch 1 is 'inf'"),
        (("rows", 0, "gradient_norm_layer_2"), None, "its metrics of epoch 1 have no gradient_norm_layer_2"),
        (("genotypes",), DELETED, "it has no 'genotypes'"),
        (("genotypes", 0), None, "its cells are not one an epoch"),
        ("alpha_history.normal", torch.zeros(1, 14, 2), "its alphas of the normal cell are not one an epoch"),
        ("alpha.normal", torch.zeros(3), "size mismatch"),
        ("supernet.classifier.bias", DELETED, "Missing key(s)"),
        ("weight_optimizer.4.momentum_buffer", torch.zeros(0), "the optimizer's momentum_buffer is not of its"),
        ("weight_optimizer.4.other", torch.zeros(2), "the optimizer's state is of other parameters"),
        ("weight_optimizer.99999.momentum_buffer", torch.zeros(2), "the optimizer's state is of other parameters"),
        ("weight_optimizer.x", torch.zeros(2), "not enough values to unpack"),
        ("alpha_optimizer.0.step", torch.tensor(-1.0), "the optimizer's step is less than the first"),
        ("alpha_optimizer.0.exp_avg", DELETED, "the optimizer's state is of other parameters"),
    ],
)
def test_a_search(searched, tmp_path, place, value, expected):
    run = crafted(searched, tmp_path / "run", place, value)
    assert_refused_in_a_line(lambda: run_search(SEARCH, run, resumed=True), expected)


def test_a_search_goes_on_from_metrics_of_other_columns(searched, tmp_path):
    run = crafted(searched, tmp_path / "run", ("rows", 0, "table_rank"), 3)
    run_search(SEARCH, run, resumed=True)
    assert (run / "genotype.json").exists()
    assert [row["table_rank"] for row in metrics(run)] == ["3", ""]


@pytest.fixture(scope="module")
def retrained(tmp_path_factory):
    return retrain(RETRAIN, tmp_path_factory.mktemp("crafted") / "retrain")


LOOP = ("loops", "fit_loop")
OPTIMIZER = ("optimizer_states", 0)
MOMENTUM = "/optimizer_states/0/state/0/momentum_buffer"


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("classes",), DELETED, "is no checkpoint of a retraining"),
        (("classes", 0), [], "a class is no name"),
        (("classes", 0), "cat", "the run began with other classes"),
        (("images",), "many", "is no checkpoint of a retraining"),
        (("rows", 0), None, "its metrics are no rows"),
        (("rows", 0, "test_loss"), DELETED, "its metrics of epoch 1 have no test_loss"),
        (("rows",), [], "its metrics are of 0 epochs, and the training of another number"),
        (("seconds",), "x", "its seconds, batches or loops are no numbers"),
        ((*LOOP, "epoch_progress", "total", "ready"), "x", "its seconds, batches or loops are no numbers"),
        ((*LOOP, "epoch_progress", "current", "processed"), -3, "its seconds, batches or loops are no numbers"),
        ((*LOOP, "epoch_loop.val_loop.batch_progress", "current"), 3, "its seconds, batches or loops are no numbers"),
        ((*LOOP, "epoch_progress", "current", "completed"), 1000, "the last checkpoint does not fit the run"),
        ((*LOOP, "epoch_loop.state_dict", "_batches_that_stepped"), {}, "its seconds, batches or loops are no numbers"),
        ((*LOOP, "epoch_loop.batch_progress", "current", "ready"), 9, "9 of the epoch's 3 batches are done"),
        (("loops",), DELETED, "it has no 'loops'"),
        (("callbacks",), {"EMAWeightAveraging": {"latest_update_step": "x"}}, "its callbacks' states are no numbers"),
        (("lr_schedulers",), DELETED, "the last checkpoint does not fit the run"),
        (("pytorch-lightning_version",), [], "the last checkpoint does not fit the run"),
        (("state_dict", "network.classifier.bias"), None, "Error(s) in loading state_dict"),
        (("state_dict", "network.classifier.bias"), DELETED, "Missing key(s)"),
        (("train_scores", "loss", "compute"), {"#tensor": MOMENTUM}, "it has no 'compute'"),
        (("train_scores", "loss", "sum_value"), {"#tensor": MOMENTUM}, "the loss so far is of another shape"),
        ((*OPTIMIZER, "param_groups", 0, "params"), [], "parameter group"),
        (MOMENTUM, torch.zeros(0), "the optimizer's momentum_buffer is not of its"),
    ],
)
def test_a_retraining(retrained, tmp_path, place, value, expected):
    run = crafted(retrained, tmp_path / "run", place, value)
    assert_refused_in_a_line(lambda: retrain(RETRAIN, run, resumed=True), expected)


@pytest.mark.parametrize("rows", [[], [{}]])
def test_a_retraining_that_claims_to_be_finished(retrained, tmp_path, rows):
    run = crafted(retrained, tmp_path / "run", ("rows",), rows, last=True)
    assert_refused_in_a_line(lambda: retrain(RETRAIN, run, resumed=True), "its metrics")


def test_the_optimizer_s_settings_are_those_of_the_run(retrained, tmp_path):
    run = crafted(retrained, tmp_path / "run", (*OPTIMIZER, "param_groups", 0, "momentum"), DELETED)
    retrain(RETRAIN, run, resumed=True)
    assert weights_of(run) == weights_of(retrained)


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """A search, the settings of a selection on it, and that selection's folder."""
    folder = tmp_path_factory.mktemp("crafted")
    settings = settings_of("darts", **few_images(folder / "data"), finetune_epochs=0)
    run = run_search(settings, folder / "search")
    settings = replace(settings, selection="perturbation")
    select_again(settings, run, folder / "selection", "")
    return run, settings, folder / "selection"


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("perturbation",), [], "is not one of a selection"),
        (("perturbation", "done"), 1000, "'1000' stages are done, expected a number up to 17"),
        (("perturbation", "done"), "x", "'x' stages are done"),
        (("perturbation", "scores", 0), {"decision": 1}, "the scores so far are not those of a selection"),
        (("perturbation", "search", "seed"), 9, "begun on another search, of other seed"),
        ("fixed.normal", torch.zeros(1), "what is decided of the normal cell is not of its edges"),
        ("fixed.normal", DELETED, "what is decided of the normal cell is not of its edges"),
        ("supernet.classifier.bias", torch.zeros(1), "size mismatch"),
    ],
)
def test_a_selection(selected, tmp_path, place, value, expected):
    run, settings, folder = selected
    selection = crafted(folder, tmp_path / "selection", place, value)
    assert_refused_in_a_line(lambda: select_again(settings, run, selection, ""), expected)


def test_a_selection_that_claims_to_be_finished(selected, tmp_path):
    run, settings, folder = selected
    selection = crafted(folder, tmp_path / "selection", ("perturbation", "scores"), [], last=True)
    assert_refused_in_a_line(lambda: select_again(settings, run, selection, ""), "the scores so far are not those")
