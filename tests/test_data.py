"""Data sets, splits and augmentation."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import data
from data import Augmentation, Batches, DataSet, ImageSet

PLAIN = Augmentation(mean=(0.0,), std=(1 / 255,))


def numbered(count, size=8):
    """Images whose every pixel is their number, labelled with it."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, size, size).contiguous()
    return ImageSet(images, torch.arange(count))


def write_folder(root, classes=("cat", "dog"), per_class=3, size=(8, 8)):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(per_class):
                pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def test_digits_are_split_by_class_and_never_shared_between_training_and_test():
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test), digits.image_size, digits.in_channels) == (1437, 360, 8, 1)
    assert digits.test.labels.bincount().min() >= 34
    training = {image.numpy().tobytes() for image in digits.train.images}
    assert not any(image.numpy().tobytes() in training for image in digits.test.images)
    assert not digits.flip
    assert digits.train.images.max() == 255
    assert data.load("digits", image_size=12).image_size == 12


def test_statistics_are_those_of_the_training_images():
    digits = data.load("digits")
    pixels = digits.train.images.double() / 255
    assert digits.mean[0] == pytest.approx(pixels.mean().item())
    assert digits.std[0] == pytest.approx(pixels.std(correction=0).item())


def test_a_folder_becomes_its_images_in_the_order_of_its_classes(tmp_path):
    loaded = data.load("folder", str(write_folder(tmp_path)))
    assert loaded.classes == ("cat", "dog")
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.asarray(Image.open(tmp_path / "train/dog/1.png")).transpose(2, 0, 1)
    assert np.array_equal(loaded.train.images[4].numpy(), expected)


def test_a_folder_of_oblong_images_is_scaled_and_cropped_to_the_centre(tmp_path):
    assert data.load("folder", str(write_folder(tmp_path, size=(24, 12))), image_size=6).train.images.shape[1:] == (
        3,
        6,
        6,
    )


def test_a_folder_of_gray_images_has_one_channel(tmp_path):
    write_folder(tmp_path)
    for path in tmp_path.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert data.load("folder", str(tmp_path)).in_channels == 1


def test_one_gray_image_among_colored_ones_does_not_make_the_set_gray(tmp_path):
    write_folder(tmp_path)
    Image.open(tmp_path / "train/cat/0.png").convert("L").save(tmp_path / "train/cat/0.png")
    assert data.load("folder", str(tmp_path)).in_channels == 3


def test_hidden_files_and_folders_are_no_data(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/cat/._0.png").write_bytes(b"")
    assert len(data.load("folder", str(tmp_path)).train) == 6


def remove(path):
    for file in sorted(path.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    path.rmdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda root: remove(root / "test"), "no folder"),
        (lambda root: [remove(root / split / "dog") for split in ("train", "test")], "expected two or more"),
        (lambda root: remove(root / "test/dog"), "differ in their classes: dog"),
        (lambda root: (root / "train/cat/1.png").write_bytes(b"no image"), "cat/1.png cannot be read as an image"),
        (lambda root: (root / "test/cat/0.png").write_bytes((root / "test/cat/0.png").read_bytes()[:60]), "cat/0.png"),
        (lambda root: [path.unlink() for path in (root / "train/dog").iterdir()], "no images in"),
        (
            lambda root: Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(root / "train/cat/0.png"),
            "more than 8 bits",
        ),
    ],
)
def test_a_folder_that_is_not_as_expected_is_named(tmp_path, damage, says):
    damage(write_folder(tmp_path))
    with pytest.raises(ValueError, match=says):
        data.load("folder", str(tmp_path))


def test_cifar10_and_cifar100_load_from_their_official_layout(tmp_path, monkeypatch):
    """torchvision's files, of a few images; their checksums are those of the full archives, so not asked for here."""
    from torchvision import datasets

    generator = np.random.default_rng(0)

    def write(path, count, key, classes):
        path.parent.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        path.write_bytes(pickle.dumps({"data": pixels, key: [i % classes for i in range(count)]}))
        return pixels

    first = write(tmp_path / "cifar-10-batches-py/data_batch_1", 20, "labels", 10)
    for number in range(2, 6):
        write(tmp_path / f"cifar-10-batches-py/data_batch_{number}", 20, "labels", 10)
    write(tmp_path / "cifar-10-batches-py/test_batch", 10, "labels", 10)
    names = [f"class {number}" for number in range(10)]
    (tmp_path / "cifar-10-batches-py/batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    write(tmp_path / "cifar-100-python/train", 200, "fine_labels", 100)
    write(tmp_path / "cifar-100-python/test", 100, "fine_labels", 100)
    (tmp_path / "cifar-100-python/meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)

    cifar10 = data.load("cifar10", str(tmp_path))
    assert (len(cifar10.train), len(cifar10.test), cifar10.classes) == (100, 10, tuple(names))
    assert np.array_equal(cifar10.train.images[0].numpy(), first[0].reshape(3, 32, 32))
    assert len(data.load("cifar100", str(tmp_path)).classes) == 100


def test_svhn_loads_from_its_official_layout(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision import datasets

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": np.arange(1, 13)[:, None] % 10 + 1})
    monkeypatch.setattr(datasets.svhn, "check_integrity", lambda *_: True)
    svhn = data.load("svhn", str(tmp_path), image_size=16)
    assert svhn.image_size == 16
    assert svhn.train.labels.max() == 9
    assert np.array_equal(data.load("svhn", str(tmp_path)).train.images[3].numpy(), pixels[..., 3].transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_missing_files_say_how_to_get_them(tmp_path, name):
    with pytest.raises(ValueError, match="--download"):
        data.load(name, str(tmp_path))


def test_a_split_is_disjoint_and_whole_and_drawn_from_the_seed():
    train, valid = data.split(numbered(100), 0.3, seed=1)
    assert len(train) == 30
    assert sorted(train.labels.tolist() + valid.labels.tolist()) == list(range(100))
    assert torch.equal(train.labels, data.split(numbered(100), 0.3, seed=1)[0].labels)
    assert not torch.equal(train.labels, data.split(numbered(100), 0.3, seed=2)[0].labels)


def test_an_epoch_sees_every_image_once_in_an_order_of_its_own():
    def epoch(number):
        return torch.cat([batch.labels for batch in Batches(numbered(50), 16, PLAIN, (0, number))])

    assert sorted(epoch(0).tolist()) == list(range(50))
    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))


def test_images_keep_their_labels_and_a_last_single_image_is_left_out():
    batches = Batches(numbered(33), 16, PLAIN)
    seen = list(batches)
    assert [len(batch.labels) for batch in seen] == [16, 16]
    assert len(batches) == 2
    for batch in seen:
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels)
    assert len(list(Batches(numbered(33), 16, PLAIN, shuffle=False))) == 3


def test_two_processes_share_an_epoch():
    shares = [[*Batches(numbered(40), 8, PLAIN, (3, 4), rank=rank, world=2)] for rank in (0, 1)]
    labels = [torch.cat([batch.labels for batch in share]) for share in shares]
    assert sorted(torch.cat(labels).tolist()) == list(range(40))
    assert len(labels[0]) == len(labels[1])


def test_a_short_set_is_passed_again_in_another_order():
    batches = list(data.cycle(Batches(numbered(8), 4, PLAIN), 5))
    assert len(batches) == 5
    first, second = (torch.cat([b.labels for b in batches[i : i + 2]]) for i in (0, 2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(8))
    assert not torch.equal(first, second)


def dataset(flip):
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    return DataSet(ImageSet(images, torch.zeros(64, dtype=torch.long)), None, ("a", "b"), (0.5,) * 3, (0.25,) * 3, flip)


def test_augmentation_is_a_crop_of_the_padded_image_mirrored_for_half():
    torch.manual_seed(0)
    source = dataset(flip=True)
    augmentation = Augmentation.training(source)
    assert augmentation.padding == 2  # 4 at 32 pixels
    output = augmentation(source.train.images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(source.train.images, (2,) * 4).float()
    restored = output * 63.75 + 127.5
    mirrored, offsets = 0, set()
    for image, original in zip(restored, padded, strict=True):
        found = [
            (row, column, flip)
            for row in range(5)
            for column in range(5)
            for flip in (False, True)
            if torch.allclose(
                image.flip(2) if flip else image, original[:, row : row + 16, column : column + 16], atol=1e-3
            )
        ]
        assert len(found) == 1
        offsets.add(found[0][:2])
        mirrored += found[0][2]
    assert len(offsets) > 15
    assert 16 < mirrored < 48


def test_no_augmentation_only_normalizes():
    source = dataset(flip=True)
    output = Augmentation.none(source)(source.train.images, torch.Generator())
    torch.testing.assert_close(output, (source.train.images.float() / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("length", [1, 16])
def test_a_cutout_of_nothing_or_of_the_whole_image_is_refused(length):
    with pytest.raises(ValueError, match="expected 2 to 15"):
        Augmentation.training(dataset(flip=True), length)


def test_cutout_sets_a_square_around_a_random_centre_to_the_mean():
    white = torch.full((500, 1, 16, 16), 255, dtype=torch.uint8)
    output = Augmentation((0.0,), (1.0,), cutout_length=6)(white, torch.Generator().manual_seed(0))
    zeros = (output == 0).flatten(1).sum(1)
    assert zeros.max() == 36
    assert zeros.min() >= 9  # a centre in a corner leaves a quarter of the square
    for image in output[:50, 0]:
        rows, columns = (image == 0).any(1), (image == 0).any(0)
        assert torch.equal(image == 0, rows[:, None] & columns[None, :])
    assert not torch.equal(output[0], output[1])
