"""Data sets, splits and augmentation."""

import hashlib
import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

import data
import imagenet16
from data import Augmentation, Batches, DataSet, ImageSet
from tests.helpers import write_folder

PLAIN = Augmentation(mean=(0.0,), std=(1 / 255,))


def numbered(count, size=8):
    """Images whose every pixel is their number, labelled with it."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, size, size).contiguous()
    return ImageSet(images, torch.arange(count))


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
        (lambda root: (root / "train/dog").rename(root / "train" / os.fsdecode(b"\xe9")), "is not UTF-8"),
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


def python2_pickle(pixels, labels):
    """A batch in the words of Python 2 and its NumPy, protocol 2: text and bytes are one type, dtype flags integers."""

    def text(content):
        return b"T" + struct.pack("<i", len(content)) + content

    def integer(value):
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + integer(-1) + integer(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    shape = integer(pixels.shape[0]) + integer(pixels.shape[1]) + b"\x86"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(integer(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def python3_pickle(protocol):
    return lambda pixels, labels: pickle.dumps({"data": pixels, "labels": labels, "mean": pixels.mean(0)}, protocol)


PROTOCOL_4 = python3_pickle(4)


def numpy1_pickle(pixels, labels):
    return python3_pickle(2)(pixels, labels).replace(b"numpy._core", b"numpy.core")


def trust(monkeypatch, path):
    """Take the file's md5 sum for the official one's."""
    table = imagenet16.TEST_FILES if path.name == "val_data" else imagenet16.TRAIN_FILES
    monkeypatch.setitem(table, path.name, hashlib.md5(path.read_bytes()).hexdigest())


@pytest.fixture
def write_imagenet16(monkeypatch):
    def write(root, pickled=PROTOCOL_4):
        """Six images in each of the eleven files, two of them of a class beyond the 120; the first is numbered."""
        root.mkdir(exist_ok=True)
        generator = np.random.default_rng(0)
        written = {}
        for number, name in enumerate([*imagenet16.TRAIN_FILES, *imagenet16.TEST_FILES]):
            pixels = generator.integers(0, 256, (6, 768), dtype=np.uint8)
            labels = [number + 1, 121, 120, 1000, 1, 50]
            (root / name).write_bytes(pickled(pixels, labels))
            trust(monkeypatch, root / name)
            written[name] = pixels
        return written

    return write


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "pickled",
    [python2_pickle, numpy1_pickle, python3_pickle(2), PROTOCOL_4],
    ids=["python 2", "NumPy 1, protocol 2", "protocol 2", "protocol 4"],
)
def test_imagenet16_keeps_the_first_120_classes_of_its_batch_files(tmp_path, write_imagenet16, pickled):
    written = write_imagenet16(tmp_path / "ImageNet16", pickled)
    loaded = data.load("imagenet16-120", str(tmp_path))
    assert (len(loaded.train), len(loaded.test), loaded.image_size, len(loaded.classes)) == (40, 4, 16, 120)
    assert loaded.train.labels.tolist() == [label for file in range(10) for label in (file, 119, 0, 49)]
    assert loaded.test.labels.tolist() == [10, 119, 0, 49]
    kept = np.concatenate([pixels[[0, 2, 4, 5]] for name, pixels in written.items() if name != "val_data"])
    assert np.array_equal(loaded.train.images.numpy(), kept.reshape(-1, 3, 16, 16))
    assert np.array_equal(loaded.test.images[1].numpy(), written["val_data"][2].reshape(3, 16, 16))
    assert loaded.mean[0] * 255 == pytest.approx(122.68)


def test_imagenet16_lies_in_the_folder_itself_too_and_is_resized(tmp_path, write_imagenet16):
    write_imagenet16(tmp_path)
    assert data.load("imagenet16-120", str(tmp_path), image_size=8).train.images.shape == (40, 3, 8, 8)


def test_imagenet16_that_is_missing_or_asked_for_says_where_it_is(tmp_path, write_imagenet16):
    with pytest.raises(ValueError, match=r"no train_data_batch_1.*AutoDL-Projects"):
        data.load("imagenet16-120", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot be downloaded.*AutoDL-Projects"):
        data.load("imagenet16-120", str(tmp_path), download=True)
    write_imagenet16(tmp_path / "ImageNet16")
    (tmp_path / "ImageNet16/train_data_batch_7").unlink()
    with pytest.raises(ValueError, match=r"no train_data_batch_7 in .*ImageNet16"):
        data.load("imagenet16-120", str(tmp_path))


def test_an_imagenet16_file_with_another_md5_sum_is_not_read(tmp_path, write_imagenet16):
    write_imagenet16(tmp_path)
    path = tmp_path / "train_data_batch_3"
    path.write_bytes(b"csys\nexit\n)R.")  # a pickle that would end the process
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"train_data_batch_3 has the md5 sum {found}; expected [0-9a-f]{{32}}"):
        data.load("imagenet16-120", str(tmp_path))


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


def write_halves(path, train, valid):
    path.write_text(json.dumps({"train": ["int", list(map(str, train))], "valid": ["int", list(map(str, valid))]}))
    return path


def test_the_halves_of_the_benchmark_are_those_its_file_lists(tmp_path):
    path = write_halves(tmp_path / "cifar-split.txt", [5, 0, 3], [7, 1, 2, 6, 4])
    train, valid = data.benchmark_halves(numbered(8), path)
    assert train.labels.tolist() == [0, 3, 5]
    assert valid.labels.tolist() == [1, 2, 4, 6, 7]
    assert train.images[:, 0, 0, 0].tolist() == [0, 3, 5]


@pytest.mark.parametrize(
    ("train", "valid", "says"),
    [
        ([0, 1], [2, 4], "lists image 4; expected 0 to 3"),
        ([0, 1, 2], [2, 3], "lists image 2 twice"),
        ([0, 0, 1], [2, 3], "lists image 0 twice"),
        ([0, 1], [3], "lists 3 images; expected all 4"),
        ([0, 1, 2, 3], [], 'no "valid" of the form'),
        ([0, -1], [2, 3], 'no "train" of the form'),
        ([0, "1.0"], [2, 3], 'no "train" of the form'),
        ([0, "9" * 5000], [2, 3], 'no "train" of the form'),
    ],
)
def test_halves_that_do_not_divide_the_images_are_refused(tmp_path, train, valid, says):
    path = write_halves(tmp_path / "cifar-split.txt", train, valid)
    with pytest.raises(ValueError, match=f"cifar-split.txt.*{says}"):
        data.benchmark_halves(numbered(4), path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"0 1 2 3", "is not JSON"),
        (b'{"train": "\xff"}', "is not UTF-8 text"),
        (b"[0, 1]", 'no "train" of the form'),
        (b'{"train": ["int", ["0", "1"]]}', 'no "valid" of the form'),
        (b'{"train": ["int", [0, 1]], "valid": ["int", [2, 3]]}', 'no "train" of the form'),
        (b'{"train": ["float", ["0"]], "valid": ["int", ["1"]]}', 'no "train" of the form'),
        (b'{"train": ["0", "1"], "valid": ["2", "3"]}', 'no "train" of the form'),
    ],
)
def test_a_file_that_is_no_list_of_halves_is_refused(tmp_path, content, says):
    path = tmp_path / "cifar-split.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"cifar-split.txt.*{says}"):
        data.benchmark_halves(numbered(4), path)


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


@given(
    count=st.integers(2, 200),
    batch_size=st.integers(2, 40),
    world=st.integers(1, 7),
    accumulate=st.integers(1, 4),
    begun=st.integers(0, 20),
)
def test_processes_and_passes_share_the_images_of_an_epoch(count, batch_size, world, accumulate, begun):
    smallest = 2 * world
    assume(accumulate * smallest <= batch_size <= count)
    order = data.shuffled(count, 3)
    parts = [data.shares(order, batch_size, rank, world, accumulate) for rank in range(world)]

    # every image once, and as many passes for every process, none of them without images
    assert sorted(torch.cat([share.indices for part in parts for share in part]).tolist()) == list(range(count))
    assert len({len(part) for part in parts}) == 1
    assert all(len(share.indices) for part in parts for share in part)
    passes = list(zip(*parts, strict=True))
    assert all(sum(len(share.indices) for share in one) >= smallest for one in passes)

    # `accumulate` passes are a step of the next `batch_size` images of the order, whoever has them
    steps = [passes[first : first + accumulate] for first in range(0, len(passes), accumulate)]
    images = [[number for one in step for share in one for number in share.indices.tolist()] for step in steps]
    ends = [batch_size * (number + 1) for number in range(len(steps) - 1)] + [count]
    for begin, end, step in zip([0, *ends], ends, images, strict=False):
        assert sorted(step) == sorted(order[begin:end].tolist())
    assert len(images[-1]) < batch_size + smallest

    # and its weighted losses, as Lightning adds them up, are the mean over its images
    loss = torch.rand(count, dtype=torch.float64)
    for step, chosen in zip(steps, images, strict=True):
        total = sum(share.weight * loss[share.indices].mean() / accumulate / world for one in step for share in one)
        torch.testing.assert_close(total, loss[chosen].mean())

    rest = data.shares(order, batch_size, 0, world, accumulate, begun)
    assert [share.indices.tolist() for share in rest] == [share.indices.tolist() for share in parts[0][begun:]]


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


def test_the_first_images_of_each_class_are_taken(tmp_path):
    whole, some = data.load("digits"), data.load("digits", images=105)
    assert torch.bincount(some.train.labels).tolist() == [10] * 10  # as many of each: 10 x 10
    assert len(some.test) == 100
    for label in range(10):
        first = whole.train.images[whole.train.labels == label][:10]
        assert torch.equal(some.train.images[some.train.labels == label], first)
    assert some.mean == data.load("digits", images=105).mean
    assert len(data.load("digits", images=10**6).train) == len(whole.train)
    with pytest.raises(ValueError, match="--images 9 is less than one for each of 10"):
        data.load("digits", images=9)
