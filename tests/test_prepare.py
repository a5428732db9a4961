"""Sorting the raw validation pictures of ILSVRC 2012."""

import numpy as np
import pytest
from scipy.io import savemat

from tests.helpers import assert_rejected, script_in_process

CLASSES = ("n01440764", "n01443537", "n01484850")
LABELS = (2, 1, 3, 1, 2, 3)
NAMES = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 7)]


@pytest.fixture
def folder(tmp_path):
    """Six raw pictures."""
    folder = tmp_path / "Data/CLS-LOC/val"
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (folder / f"{name}.JPEG").write_bytes(bytes([number]))
    return folder


def devkit(root, text="2\n1\n\n3\n1\n2\n3\n\n"):
    """Write the development kit's list of class numbers and its meta.mat, which maps numbers to classes."""
    synsets = [(number, name) for number, name in enumerate(CLASSES, 1)]
    fields = [("ILSVRC2012_ID", int), ("WNID", object)]
    savemat(root / "meta.mat", {"synsets": np.array(synsets, dtype=fields)})
    (root / "truth.txt").write_text(text)
    return root / "truth.txt"


def kaggle(root):
    """Write Kaggle's list of classes, which is not sorted."""
    lines = [f"{name},{CLASSES[label - 1]} 1 2 3 4 " for name, label in zip(NAMES, LABELS, strict=True)]
    (root / "truth.csv").write_text("\r\n".join(["ImageId,PredictionString", *reversed(lines), ""]))
    return root / "truth.csv"


def sort(root, truth, *flags):
    """Sort the pictures, check that each is in the folder of its class, and return the standard output."""
    result = script_in_process("imagenet/prepare.py", root, "--ground_truth", truth, *flags)
    assert result.returncode == 0, result.stderr
    for number, (name, label) in enumerate(zip(NAMES, LABELS, strict=True)):
        assert (root / "Data/CLS-LOC/val" / CLASSES[label - 1] / f"{name}.JPEG").read_bytes() == bytes([number])
    return result.stdout


@pytest.mark.parametrize("ground_truth", [devkit, kaggle])
def test_the_raw_pictures_are_sorted_once_and_afterwards_only_counted(tmp_path, folder, ground_truth):
    truth = ground_truth(tmp_path)
    said = sort(tmp_path, truth)
    assert "6 pictures moved" in said and "val: 6 pictures in 3 classes" in said
    assert sorted(path.name for path in folder.iterdir()) == list(CLASSES)
    assert "0 pictures moved" in sort(tmp_path, truth)


def test_interrupted_sorting_continues_and_ignores_other_files(tmp_path, folder):
    for name, label in list(zip(NAMES, LABELS, strict=True))[:2]:
        (folder / CLASSES[label - 1]).mkdir()
        (folder / f"{name}.JPEG").rename(folder / CLASSES[label - 1] / f"{name}.JPEG")
    others = [folder / "README.txt", folder / "._cat.JPEG", folder / CLASSES[0] / "._cat.JPEG"]
    for path in others:
        path.touch()
    truth = devkit(tmp_path)
    (tmp_path / "meta.mat").rename(tmp_path / "other.mat")
    said = sort(tmp_path, truth, "--meta", tmp_path / "other.mat")
    assert "4 pictures moved" in said and "val: 6 pictures in 3 classes" in said
    assert all(path.exists() for path in others)


def assert_nothing_is_moved(root, truth, *mentions):
    before = sorted(root.rglob("*"))
    assert_rejected(script_in_process("imagenet/prepare.py", root, "--ground_truth", truth), *mentions)
    assert sorted(root.rglob("*")) == before


# invocations.txt has more wrong input
def test_pictures_that_do_not_match_the_ground_truth_are_rejected(tmp_path, folder):
    truth, last = kaggle(tmp_path), folder / f"{NAMES[5]}.JPEG"
    (folder / CLASSES[0]).mkdir()
    last.rename(folder / CLASSES[0] / last.name)
    assert_nothing_is_moved(tmp_path, truth, "data", f"{last.name} is in the wrong folder", CLASSES[2])
    (folder / CLASSES[0] / last.name).unlink()
    assert_nothing_is_moved(tmp_path, truth, "data", f"lacks 1 of 6 pictures, such as {NAMES[5]}")
    assert_nothing_is_moved(tmp_path, devkit(tmp_path, "1\n9\n"), "--ground_truth", "class '9' of picture 2")
