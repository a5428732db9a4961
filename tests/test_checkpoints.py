"""Checkpoint files: they load bit for bit. If the last one is corrupt, the previous one is used."""

import pytest
import torch

from lib.checkpoints import CorruptError, load, load_last, number, paths, save
from tests.helpers import ROOT, flat

TENSORS = {
    "weight": torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last),
    "half": torch.arange(6.0).view(2, 3),
    "turned": torch.arange(6.0).view(2, 3).T,
    "count": torch.tensor(7),
    "nothing": torch.zeros(0, 3),
    "infinite": torch.tensor([torch.inf, -torch.inf]),
}
STATE = {"tensors": TENSORS, "rows": [{"epoch": 1, "loss": 0.1, "none": None}], "text": 'a "quoted" \\ λ\n'}


def test_a_checkpoint_loads_bit_for_bit_and_keeps_memory_formats(tmp_path):
    save(tmp_path / "step_1.ckpt", STATE)
    state = load(tmp_path / "step_1.ckpt")
    assert flat(state) == flat(STATE)
    assert all(state["tensors"][name].stride() == tensor.stride() for name, tensor in TENSORS.items())


def test_a_flipped_bit_in_a_tensor_is_detected(tmp_path):
    """torch.load alone would return the changed number."""
    path = tmp_path / "step_1.ckpt"
    save(path, {"weight": torch.full((64,), 0.1)})
    whole = bytearray(path.read_bytes())
    position = whole.index(torch.tensor(0.1).numpy().tobytes() * 64) + 100
    whole[position] ^= 1
    path.write_bytes(whole)
    assert (torch.load(path, weights_only=True)["weight"] != torch.full((64,), 0.1)).sum() == 1
    with pytest.raises(CorruptError, match=r"data/0 has changed since it was written"):
        load(path)


def test_a_corrupt_last_checkpoint_is_named_and_the_previous_one_is_used(tmp_path, capsys):
    first, last = (tmp_path / f"epoch_{epoch:05d}.ckpt" for epoch in (1, 2))
    for epoch, path in enumerate((first, last), 1):
        save(path, {"epoch": epoch})
    assert load_last(tmp_path) == (last, {"epoch": 2}) and not capsys.readouterr().err
    last.write_bytes(last.read_bytes()[:-1])
    assert load_last(tmp_path) == (first, {"epoch": 1})
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{last} is corrupt" in said and "falling back to epoch_00001" in said
    first.write_bytes(b"")
    with pytest.raises(CorruptError, match="epoch_00001"):
        load_last(tmp_path)


def test_saving_keeps_the_last_two_checkpoints_and_removes_those_of_later_steps(tmp_path):
    assert load_last(tmp_path) is None and load_last(tmp_path / "nowhere") is None
    for step in (9, 99_999, 100_000):
        save(tmp_path / f"step_{step:05d}.ckpt", {})
    assert [number(path) for path in paths(tmp_path)] == [99_999, 100_000]
    save(tmp_path / "step_00050.ckpt", {})  # a run that was resumed from an earlier checkpoint
    assert [number(path) for path in paths(tmp_path)] == [50]


def test_only_the_official_imagenet16_files_are_unpickled_without_restrictions():
    names = ("pickle.dump", "pickle.load", "allow_pickle=True", "weights_only=False")
    everything = [path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.is_file()]
    sources = [path for path in everything if not path.parts[0].startswith(".") and path.parts[0] != "tests"]
    found = {(path.name, name) for path in sources for name in names if name in (ROOT / path).read_text("utf-8")}
    assert len(sources) > 60
    assert found == {("imagenet16.py", "pickle.load")}
