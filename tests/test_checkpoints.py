"""Checkpoint files: what is written comes back; damaged files and those of other settings are refused."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import checkpoints
from checkpoints import Checkpoints, DamagedError, NewerError, flatten, read, unflatten, write
from cli import InputError
from search.loop import open_search
from tests.helpers import RETRAINING, ROOT, SMALL, last_checkpoint, retrain
from trainer import load_checkpoint

TENSORS = {
    "weight": torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last),
    "half": torch.arange(6.0).view(2, 3).to(torch.bfloat16),
    "turned": torch.arange(6.0).view(2, 3).T,
    "count": torch.tensor(7),
    "nothing": torch.zeros(0, 3),
    "infinite": torch.tensor([torch.inf, -torch.inf]),
}
STATE = {"rows": [{"epoch": 1, "loss": 0.1, "none": None}], "text": 'a "quoted" \\ λ\n', "zeros": "0" * 64}


def test_what_is_written_comes_back_bit_for_bit_and_in_its_memory_format(tmp_path):
    write(tmp_path / "a.safetensors", TENSORS, STATE)
    tensors, state = read(tmp_path / "a.safetensors")
    assert state == STATE and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
    assert tensors["weight"].is_contiguous(memory_format=torch.channels_last)


def test_a_file_with_any_one_bit_changed_is_damaged(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, TENSORS, STATE)
    whole, draw = path.read_bytes(), random.Random(0)
    positions = {*range(0, len(whole), 7), *range(8), len(whole) - 1}
    for position in positions:
        changed = bytearray(whole)
        changed[position] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match=r"a\.safetensors is damaged"):
            read(path)
    assert len(positions) > 200


def test_a_file_that_is_cut_or_longer_is_damaged(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, TENSORS, STATE)
    whole = path.read_bytes()
    for content in [whole[:length] for length in range(0, len(whole), 11)] + [whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=r"a\.safetensors is damaged"):
            read(path)


def test_a_file_of_a_newer_format_is_refused_and_the_one_before_is_not_taken(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(1, TENSORS, {})
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    kept.save(2, TENSORS, {})
    assert kept.load()[1] == {}
    monkeypatch.undo()
    with pytest.raises(NewerError, match=r"epoch_00002\.safetensors has format 2, of a newer version .* expected 1"):
        kept.load()


def test_a_file_without_a_checksum_is_no_checkpoint(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"state": "{}"})
    with pytest.raises(DamagedError, match="no checkpoint"):
        read(tmp_path / "a.safetensors")


def test_a_damaged_last_checkpoint_is_named_and_the_one_before_taken(tmp_path, capsys):
    kept = Checkpoints(tmp_path / "checkpoints", keep=3)
    for epoch in (1, 2, 3):
        kept.save(epoch, {"epoch": torch.tensor(epoch)}, {"epoch": epoch})
    assert kept.load()[1] == {"epoch": 3} and not capsys.readouterr().err
    kept.path(3).write_bytes(kept.path(3).read_bytes()[:-1])
    kept.path(2).write_bytes(b"")
    assert kept.load()[1] == {"epoch": 1}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "epoch_00003" in said[0] and "going on from epoch_00002" in said[0]
    assert "epoch_00002" in said[1] and "going on from epoch_00001" in said[1]
    kept.path(1).write_bytes(b"junk")
    with pytest.raises(DamagedError, match="epoch_00001"):
        kept.load()


def test_the_last_ones_are_kept_and_what_was_not_gone_on_from_goes(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints", keep=2, unit="step")
    assert kept.load() is None and kept.numbers == []
    for step in (9, 99_999, 100_000):
        kept.save(step, {}, {})
    assert kept.numbers == [99_999, 100_000]
    kept.save(99_999 + 1, {}, {})
    assert kept.numbers == [99_999, 100_000]
    kept.save(50, {}, {})  # of a run that went on from before
    assert kept.numbers == [50]


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text().filter(lambda key: not key.startswith("#")), inner)
        | st.dictionaries(st.integers(), inner, min_size=1)
    ),
    max_leaves=20,
)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(TREES)
def test_a_tree_of_plain_values_comes_back(tree):
    tensors, state = flatten(tree)
    assert not tensors and unflatten(tensors, json.loads(json.dumps(state))) == tree


def test_a_tree_with_tensors_comes_back_and_tuples_are_lists():
    tree = {"optimizer": {"state": {0: {"momentum": torch.ones(2)}, 1: {}}, "betas": (0.5, torch.tensor(1))}}
    tensors, state = flatten(tree)
    back = unflatten(tensors, json.loads(json.dumps(state)))
    assert torch.equal(back["optimizer"]["state"][0]["momentum"], torch.ones(2))
    assert back["optimizer"]["betas"] == [0.5, torch.tensor(1)] and list(back["optimizer"]["state"]) == [0, 1]


def test_what_json_does_not_have_is_not_written():
    with pytest.raises(TypeError, match=r"/a/0: .* not a PosixPath"):
        flatten({"a": [Path("x")]})


@pytest.mark.parametrize("edited", [{"layers": 5}, {"space": "s3"}, {"init_channels": 6}, {"auxiliary_skip": "conv1"}])
def test_a_search_refuses_a_checkpoint_of_other_settings(edited):
    """As when a user edits config.yaml before --resume."""
    checkpoint = open_search(SMALL).snapshot()
    with pytest.raises(ValueError, match=r"the checkpoint does not fit config\.yaml.*Error\(s\) in loading state_dict"):
        open_search(replace(SMALL, **edited)).restore(*checkpoint)


def test_a_retraining_refuses_a_checkpoint_of_other_settings(tmp_path):
    one = replace(RETRAINING, init_channels=2, epochs=1)
    run = retrain(one, tmp_path / "run")
    (run / "result.json").unlink()
    with pytest.raises(InputError, match=r"the last checkpoint does not fit the run.*Error\(s\) in loading state_dict"):
        retrain(replace(one, layers=4), run, resumed=True)
    assert load_checkpoint(last_checkpoint(run))["settings"]["layers"] == 3


def test_a_search_s_checkpoint_is_not_taken_for_a_retraining_s(tmp_path):
    write(tmp_path / "epoch_00001.safetensors", *open_search(SMALL).snapshot())
    with pytest.raises(ValueError, match=r"epoch_00001\.safetensors is the checkpoint of a search"):
        load_checkpoint(tmp_path / "epoch_00001.safetensors")


def test_nothing_of_the_project_writes_a_pickle_or_reads_one_unrestricted():
    """Readers of foreign pickles: imagenet16.py, of numbers alone; the benchmark's file, with weights_only."""
    names = ("torch.save(", "pickle.dump", "pickle.load", "allow_pickle=True", "weights_only=False")
    everything = [path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.is_file()]
    sources = [path for path in everything if not path.parts[0].startswith(".") and path.parts[0] != "tests"]
    found = {(path.name, name) for path in sources for name in names if name in (ROOT / path).read_text("utf-8")}
    assert len(sources) > 60
    # a file in the benchmark's own format, to measure its reading
    assert found == {("nasbench201_table.py", "torch.save(")}
