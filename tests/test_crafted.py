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
from tests.test_retraining import SMALL as RETRAINING
from tests.test_retraining import retrain
from tests.test_search import SMALL, run_search

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


def crafted(run, folder, place, value):
    """A copy of a run whose only checkpoint is its first, in which a tensor (by its name) or a part is another."""
    shutil.copytree(run, folder)
    first, *later = sorted((folder / "checkpoints").glob("*.safetensors"))
    for path in later:
        path.unlink()
    for name in ("result.json", "genotype.json"):
        (folder / name).unlink(missing_ok=True)
    tensors, state = checkpoints.read(first)
    if isinstance(place, str):
        tensors = changed(tensors, (place,), value)
    else:
        state = changed(state, place, value)
    checkpoints.write(first, tensors, state)
    return folder


def assert_goes_on_or_refuses(go_on, expected):
    """`expected` is what stands in the line, or None where the run may go on."""
    if expected is None:
        go_on()
        return
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
        (("rows", 0, "valid_loss"), DELETED, "other columns than the run's: valid_loss"),
        (("genotypes",), DELETED, "'genotypes'"),
        (("genotypes", 0), None, "its cells are not one an epoch"),
        ("alpha_history.normal", torch.zeros(1, 14, 2), "its alphas of the normal cell are not one an epoch"),
        ("alpha.normal", torch.zeros(3), "size mismatch"),
        ("supernet.classifier.bias", DELETED, "Missing key(s)"),
        ("weight_optimizer.4.momentum_buffer", torch.zeros(0), "the optimizer's momentum_buffer is not of its"),
        ("weight_optimizer.4.momentum_buffer", DELETED, None),
        ("weight_optimizer.4.other", torch.zeros(2), "the optimizer's state is of other parameters"),
        ("weight_optimizer.99999.momentum_buffer", torch.zeros(2), "the optimizer's state is of other parameters"),
        ("weight_optimizer.x", torch.zeros(2), "not enough values to unpack"),
        ("alpha_optimizer.0.exp_avg", DELETED, "the optimizer's state is of other parameters"),
    ],
)
def test_a_search(searched, tmp_path, place, value, expected):
    run = crafted(searched, tmp_path / "run", place, value)
    assert_goes_on_or_refuses(lambda: run_search(SEARCH, run, resumed=True), expected)


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
        (("rows", 0, "more"), 3, "other columns than the run's: more"),
        (("rows",), [], "its metrics are of 0 epochs, and the training of another number"),
        (("seconds",), "x", "its seconds, batches or loops are no numbers"),
        ((*LOOP, "epoch_progress", "total", "ready"), "x", "its seconds, batches or loops are no numbers"),
        ((*LOOP, "epoch_progress", "current", "processed"), -3, "its seconds, batches or loops are no numbers"),
        ((*LOOP, "epoch_loop.val_loop.batch_progress", "current"), 3, "not iterable"),
        (("loops",), DELETED, "'loops'"),
        (("lr_schedulers",), DELETED, "the last checkpoint does not fit the run"),
        (("pytorch-lightning_version",), [], "the last checkpoint does not fit the run"),
        (("state_dict", "network.classifier.bias"), None, "Error(s) in loading state_dict"),
        (("state_dict", "network.classifier.bias"), DELETED, "Missing key(s)"),
        (("train_scores", "loss", "compute"), {"#tensor": MOMENTUM}, "'compute'"),
        (("train_scores", "loss", "sum_value"), {"#tensor": MOMENTUM}, "the loss so far is of another shape"),
        ((*OPTIMIZER, "param_groups", 0, "momentum"), [], "the optimizer's settings are of another run"),
        ((*OPTIMIZER, "param_groups", 0, "params"), [], "parameter group"),
        ((*OPTIMIZER, "state"), {}, None),
        (MOMENTUM, torch.zeros(0), "the optimizer's momentum_buffer is not of its"),
    ],
)
def test_a_retraining(retrained, tmp_path, place, value, expected):
    run = crafted(retrained, tmp_path / "run", place, value)
    assert_goes_on_or_refuses(lambda: retrain(RETRAIN, run, resumed=True), expected)


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
    assert_goes_on_or_refuses(lambda: select_again(settings, run, selection, ""), expected)
