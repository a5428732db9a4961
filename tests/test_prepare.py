"""Sorting the raw validation pictures of ILSVRC 2012."""

import os
import signal

import numpy as np
import pytest

from imagenet.prepare import read_devkit
from tests.helpers import assert_refused, script_in_process

PREPARE = "imagenet/prepare.py"
CLASSES = ("n01440764", "n01443537", "n01484850")


def raw(root, count=6):
    folder = root / "Data/CLS-LOC/val"
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(bytes([number]))
    return folder


def devkit(root, labels=(2, 1, 3, 1, 2, 3)):
    """As the development kit is: numbers of classes, and meta.mat that says which they are."""
    from scipy.io import savemat

    synsets = np.array(
        [(number + 1, name) for number, name in enumerate(CLASSES)], dtype=[("ILSVRC2012_ID", int), ("WNID", object)]
    )
    savemat(root / "meta.mat", {"synsets": synsets})
    truth = root / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("".join(f"{label}\n" for label in labels))
    return truth


def sorted_as(folder, labels=(2, 1, 3, 1, 2, 3)):
    for number, label in enumerate(labels, 1):
        path = folder / CLASSES[label - 1] / f"ILSVRC2012_val_{number:08d}.JPEG"
        assert path.read_bytes() == bytes([number])
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(CLASSES)


def test_the_raw_validation_pictures_are_sorted_by_the_development_kit(tmp_path):
    folder, truth = raw(tmp_path), devkit(tmp_path)
    first = script_in_process(PREPARE, tmp_path, "--ground_truth", truth)
    assert first.returncode == 0, first.stderr
    assert "6 pictures moved; 6 in 3 classes" in first.stdout
    sorted_as(folder)
    second = script_in_process(PREPARE, tmp_path, "--ground_truth", truth)
    assert second.returncode == 0 and "0 pictures moved; 6 in 3 classes" in second.stdout
    sorted_as(folder)


def test_sorting_that_was_killed_goes_on(tmp_path):
    folder, truth = raw(tmp_path), devkit(tmp_path)
    # as it stands when two pictures are moved
    for number, label in ((1, 2), (2, 1)):
        (folder / CLASSES[label - 1]).mkdir()
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        (folder / name).rename(folder / CLASSES[label - 1] / name)
    result = script_in_process(PREPARE, tmp_path, "--ground_truth", truth)
    assert "4 pictures moved; 6 in 3 classes" in result.stdout, result.stderr
    sorted_as(folder)


def test_the_raw_validation_pictures_are_sorted_by_kaggles_table(tmp_path):
    folder = raw(tmp_path)
    truth = tmp_path / "LOC_val_solution.csv"
    lines = [f"ILSVRC2012_val_{n:08d},{CLASSES[label - 1]} 1 2 3 4 " for n, label in enumerate((2, 1, 3, 1, 2, 3), 1)]
    truth.write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]))
    assert script_in_process(PREPARE, tmp_path, "--ground_truth", truth).returncode == 0
    sorted_as(folder)


def test_pictures_that_are_not_those_of_the_ground_truth_are_refused_and_none_is_moved(tmp_path):
    folder, truth = raw(tmp_path), devkit(tmp_path)

    def refused(*mentions, truth=truth):
        before = sorted(folder.rglob("*"))
        assert_refused(script_in_process(PREPARE, tmp_path, "--ground_truth", truth), *mentions)
        assert sorted(folder.rglob("*")) == before

    last = folder / "ILSVRC2012_val_00000006.JPEG"
    last.rename(folder / "cat.JPEG")
    refused("data", "cat.JPEG is not in the ground truth")
    (folder / "cat.JPEG").unlink()
    refused("data", "ILSVRC2012_val_00000006 is missing (1 of 6")
    (folder / CLASSES[0]).mkdir()
    (folder / CLASSES[0] / last.name).write_bytes(b"\6")
    refused("data", f"expected in {CLASSES[2]}")
    twin = folder / "ILSVRC2012_val_00000001.jpg"
    twin.write_bytes(b"")
    (folder / CLASSES[0] / last.name).rename(last)
    refused("data", "ILSVRC2012_val_00000001.JPEG", "expected one file of a name")
    twin.unlink()
    refused("--ground_truth", "line 2", "'9'", truth=devkit(tmp_path, (1, 9)))
    (tmp_path / "x.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,cat 1 2\n")
    refused("--ground_truth", "x.csv, line 2", truth=tmp_path / "x.csv")
    (tmp_path / "meta.mat").write_bytes(b"no matrix")
    refused("--ground_truth", "meta.mat is not", truth=devkit_text(tmp_path))
    (tmp_path / "meta.mat").unlink()
    refused("--meta", "meta.mat", truth=devkit_text(tmp_path))


def devkit_text(root):
    return root / "ILSVRC2012_validation_ground_truth.txt"


def test_a_meta_that_crashes_its_reader_is_refused(tmp_path, monkeypatch):
    """SciPy's reader does on some damaged files: a segmentation fault, which nothing in the process could catch."""
    import scipy.io

    def crash(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(scipy.io, "loadmat", crash)
    (tmp_path / "meta.mat").write_bytes(b"\0" * 128)
    with pytest.raises(ValueError, match=r"meta\.mat is not the development kit's meta\.mat"):
        read_devkit(tmp_path / "truth.txt", tmp_path / "meta.mat")
