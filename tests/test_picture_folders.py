"""Pictures in folders: the files that are read, and their pixels."""

import os
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from imagenet.images import Decoder, read_splits
from lib import datasets
from lib.cli import InputError
from lib.pictures import read_picture, read_tree
from lib.preprocessing import Preprocessing
from lib.scoring import check_classes
from tests.helpers import settings_of

WHOLE = Preprocessing(3, 8, 8, (0.0,) * 3, (1.0,) * 3)


def save(path, value=100, mode="RGB", size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "P") else (value,) * len(mode)).save(path, **options)


def save_splits(root, names, held_out="test", **options):
    """Save a picture of each name in both classes of both splits."""
    for split in ("train", held_out):
        for kind in ("cat", "dog"):
            for name in names:
                save(root / split / kind / name, **options)
    return root


NAMES = {
    "sub-folders": ["a.png", "one/b.png", "one/two/c.png"],
    "Tiny-ImageNet": ["images/a.png", "images/b.png", "images/c.png"],
    "suffixes": ["a.jfif", "b.JPE", "c.dib"],
    "other suffixes": ["a.pnm", "b.apng", "c.pbm"],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_all_pictures_of_a_class_are_loaded(tmp_path, names):
    formats = {".jfif": "JPEG", ".jpe": "JPEG", ".dib": "BMP", ".apng": "PNG", ".pbm": "PPM", ".pnm": "PPM"}
    for name in names:
        save_splits(tmp_path, [name], format=formats.get(os.path.splitext(name)[1].lower(), "PNG"))
    loaded = datasets.load("folder", str(tmp_path))
    assert (len(loaded.train), len(loaded.test), loaded.classes) == (6, 6, ("cat", "dog"))
    train, test = read_splits(tmp_path)
    assert (len(train), len(test)) == (6, 6)
    assert Decoder(train, WHOLE).decode(0, 5).shape == (3, 8, 8)


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation"])
def test_the_folder_of_held_out_pictures_may_have_any_of_several_names(tmp_path, held_out):
    save_splits(tmp_path, ["a.png"], held_out)
    assert len(datasets.load("folder", str(tmp_path)).test) == 2
    assert len(read_splits(tmp_path)[1]) == 2


def test_each_loader_prefers_the_name_that_its_data_sets_use(tmp_path):
    save_splits(tmp_path, ["a.png"], "test")
    save_splits(tmp_path, ["a.png", "b.png"], "val")
    assert len(datasets.load("folder", str(tmp_path)).test) == 2
    assert len(read_splits(tmp_path)[1]) == 4  # ImageNet uses val, because its test labels are not public
    (tmp_path / "val").rename(tmp_path / "elsewhere")
    (tmp_path / "test").rename(tmp_path / "testing")
    with pytest.raises(ValueError, match=r"no folder .*test; expected test/<class>/\* \(or val, valid, validation\)"):
        datasets.load("folder", str(tmp_path))


def test_other_files_are_ignored_and_counted(tmp_path, capsys):
    save_splits(tmp_path, ["a.png"])
    cat = tmp_path / "train" / "cat"
    (cat / "notes.txt").touch()
    (cat / ".hidden.png").touch()
    os.mkfifo(cat / "pipe.png")
    os.symlink(tmp_path / "train", cat / "loop")  # following it would never end
    os.symlink("a.png", cat / "link.png")
    tree = read_tree(tmp_path / "train")
    assert [tree.path(number).name for number in range(len(tree))] == ["a.png", "link.png", "a.png"]
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "2 file(s) ignored, such as cat/notes.txt; expected regular files" in error
    assert len(datasets.load("folder", str(tmp_path)).train) == 3  # reading the pipe would block


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_is_rotated_by_its_exif_orientation(tmp_path, orientation):
    stored = np.zeros((8, 12, 3), np.uint8)
    stored[:4, :6] = 255  # white in the upper left quarter of the stored picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            path = tmp_path / split / kind / "a.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(stored).save(path, exif=exif)
    turned = np.rot90(stored, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    assert np.array_equal(np.asarray(read_picture(path)), turned)
    (top, left), side = ((n - 8) // 2 for n in turned.shape[:2]), 8
    centre = torch.from_numpy(turned[top : top + side, left : left + side].copy()).permute(2, 0, 1)
    assert torch.equal(datasets.load("folder", str(tmp_path)).train.images[0], centre)
    assert torch.equal(Decoder(read_splits(tmp_path)[0], WHOLE).decode(0, 0), centre)
    with Image.open(path) as opened:
        assert torch.equal(WHOLE.transform()(opened), centre / 255)


@pytest.mark.parametrize(("mode", "expected"), [("RGBA", 255), ("LA", 255), ("P", 255), ("RGB", 0), ("L", 0)])
def test_transparent_pixels_are_white(tmp_path, mode, expected):
    path = tmp_path / "a.png"
    save(path, 0, mode, **({"transparency": 0} if mode == "P" else {}))
    picture = read_picture(path)
    assert np.asarray(picture.convert("RGB")).tolist() == np.full((8, 8, 3), expected).tolist()
    assert picture.mode == ("L" if mode in ("L", "LA") else "RGB")
    with Image.open(path) as opened:
        assert WHOLE.transform()(opened).unique().tolist() == [expected / 255]


def test_each_warning_of_pillow_is_printed_once_with_a_count(tmp_path, capsys):
    save_splits(tmp_path, [f"{number}.jpg" for number in range(5)])
    for path in tmp_path.glob("*/*/*.jpg"):
        content = path.read_bytes()
        broken = b"Exif\0\0" + b"II*\0\x08\0\0\0" + b"\xff\xff" + b"\0" * 6
        path.write_bytes(content[:2] + b"\xff\xe1" + (len(broken) + 2).to_bytes(2, "big") + broken + content[2:])
    assert len(datasets.load("folder", str(tmp_path)).train) == 10
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) <= 2
    assert all(line.startswith(f"warning: {tmp_path}: ") and line.endswith(" times)") for line in lines) and lines


def test_class_names_in_composed_and_decomposed_letters_are_equal(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "vögel") for form in ("NFC", "NFD"))
    assert composed != decomposed
    for split, name in (("train", composed), ("test", decomposed)):
        save(tmp_path / split / name / "a.png")
        save(tmp_path / split / "vz" / "a.png", 50)
    loaded = datasets.load("folder", str(tmp_path))
    assert loaded.classes == ("vz", composed)
    assert loaded.train.images.flatten(1)[:, 0].tolist() == loaded.test.images.flatten(1)[:, 0].tolist() == [50, 100]
    check_classes([decomposed, "b"], [composed, "b"])
    with pytest.raises(InputError, match="they differ in a, b"):
        check_classes(["a"], ["b"])
    save(tmp_path / "train" / decomposed / "a.png")
    with pytest.raises(ValueError, match="two folders vögel in different Unicode forms"):
        datasets.load("folder", str(tmp_path))


def test_scoring_needs_only_the_test_images(tmp_path):
    save_splits(tmp_path, ["a.png"])
    with_training = datasets.load("folder", str(tmp_path), test_only=True).test
    (tmp_path / "train").rename(tmp_path / "away")
    assert torch.equal(datasets.load("folder", str(tmp_path), test_only=True).test.images, with_training.images)
    with pytest.raises(ValueError, match=r"no folder .*train"):
        datasets.load("folder", str(tmp_path))


def test_mirroring_can_be_switched_off(tmp_path):
    save_splits(tmp_path, ["a.png"])
    folder = {"dataset": "folder", "data": str(tmp_path)}
    assert datasets.load_dataset(settings_of(**folder)).flip
    assert not datasets.load_dataset(settings_of(**folder, flip=False)).flip
    assert not datasets.load_dataset(settings_of(dataset="digits", flip=True)).flip


def test_both_spellings_of_imagenet16_are_one_data_set():
    assert settings_of(dataset="imagenet16-120") == settings_of(dataset="imagenet16_120")
