"""Data sets, splits and augmentation."""

import hashlib
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from lib import datasets, imagenet16
from lib.batches import Augmentation, Batches, cycle, shares
from lib.datasets import DataSet, ImageSet
from lib.seeds import shuffled
from tests.cifar_files import CIFAR10, write_cifar
from tests.helpers import write_folder

PLAIN = Augmentation(mean=(0.0,), std=(1 / 255,))


def numbered(count, size=8):
    """Return images whose pixels and labels equal their number."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, size, size).contiguous()
    return ImageSet(images, torch.arange(count))


def test_digits_are_split_by_class_and_never_shared_between_training_and_test():
    digits = datasets.load("digits")
    assert (len(digits.train), len(digits.test), digits.image_size, digits.in_channels) == (1437, 360, 8, 1)
    assert digits.test.labels.bincount().min() >= 34
    training = {image.numpy().tobytes() for image in digits.train.images}
    assert not any(image.numpy().tobytes() in training for image in digits.test.images)
    assert not digits.flip
    assert digits.train.images.max() == 255
    pixels = digits.train.images.double() / 255
    assert digits.mean[0] == pytest.approx(pixels.mean().item())
    assert digits.std[0] == pytest.approx(pixels.std(correction=0).item())
    assert datasets.load("digits", image_size=12).image_size == 12


def test_a_folder_loads_its_images_in_the_order_of_its_classes(tmp_path):
    write_folder(tmp_path, size=(24, 12))
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/cat/._0.png").write_bytes(b"")
    loaded = datasets.load("folder", str(tmp_path))
    assert loaded.classes == ("cat", "dog")
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    # cropped to the centre
    expected = np.asarray(Image.open(tmp_path / "train/dog/1.png")).transpose(2, 0, 1)[:, :, 6:18]
    assert np.array_equal(loaded.train.images[4].numpy(), expected)
    assert datasets.load("folder", str(tmp_path), image_size=6).train.images.shape[1:] == (3, 6, 6)


def test_a_folder_has_one_channel_if_all_its_images_are_gray(tmp_path):
    first, *others = write_folder(tmp_path).rglob("*.png")
    Image.open(first).convert("L").save(first)
    assert datasets.load("folder", str(tmp_path)).in_channels == 3
    for path in others:
        Image.open(path).convert("L").save(path)
    assert datasets.load("folder", str(tmp_path)).in_channels == 1


def test_an_invalid_image_folder_is_rejected_with_the_reason(tmp_path):
    root = write_folder(tmp_path)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(root / "train/cat/0.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        datasets.load("folder", str(root))
    Image.new("RGB", (8, 8)).save(root / "train/cat/0.png")
    write_folder(root, classes=("horse",))
    shutil.rmtree(root / "test/dog")
    with pytest.raises(ValueError, match="test has no class dog"):
        datasets.load("folder", str(root))
    (root / "test/dog").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        datasets.load("folder", str(root))


def test_cifar10_and_cifar100_load_from_their_official_layout(tmp_path, monkeypatch):
    """These files hold a few images, so torchvision's check against the checksums of the full files is disabled."""
    import torchvision.datasets

    pixels = write_cifar(tmp_path)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)

    cifar10 = datasets.load("cifar10", str(tmp_path))
    assert (len(cifar10.train), len(cifar10.test), cifar10.classes) == (100, 10, CIFAR10)
    assert np.array_equal(cifar10.train.images[0].numpy(), pixels[0].reshape(3, 32, 32))
    assert len(datasets.load("cifar100", str(tmp_path)).classes) == 100


def test_svhn_loads_from_its_official_layout(tmp_path, monkeypatch):
    import torchvision.datasets
    from scipy.io import savemat

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": np.arange(1, 13)[:, None] % 10 + 1})
    monkeypatch.setattr(torchvision.datasets.svhn, "check_integrity", lambda *_: True)
    svhn = datasets.load("svhn", str(tmp_path), image_size=16)
    assert svhn.image_size == 16
    assert svhn.train.labels.max() == 9
    assert np.array_equal(
        datasets.load("svhn", str(tmp_path)).train.images[3].numpy(), pixels[..., 3].transpose(2, 0, 1)
    )


def python2_pickle(pixels, labels):
    """Pickle a batch as Python 2 does: protocol 2, one type for text and bytes, integers for the flags of a dtype."""

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


def python3_pickle(pixels, labels):
    return pickle.dumps({"data": pixels, "labels": labels, "mean": pixels.mean(0)})


@pytest.fixture
def write_imagenet16(monkeypatch):
    def write(root, pickled=python3_pickle):
        """Write six images to each of the eleven files: the first of class 1, 2, ..., two of classes above 120."""
        root.mkdir(exist_ok=True)
        generator = np.random.default_rng(0)
        written = {}
        for number, name in enumerate([*imagenet16.TRAIN_FILES, *imagenet16.TEST_FILES]):
            pixels = generator.integers(0, 256, (6, 768), dtype=np.uint8)
            content = pickled(pixels, [number + 1, 121, 120, 1000, 1, 50])
            (root / name).write_bytes(content)
            # accept this checksum as that of the official file
            files = imagenet16.TEST_FILES if name == "val_data" else imagenet16.TRAIN_FILES
            monkeypatch.setitem(files, name, hashlib.md5(content).hexdigest())
            written[name] = pixels
        return written

    return write


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pickled", [python2_pickle, python3_pickle])
def test_imagenet16_keeps_the_first_120_classes_of_its_batch_files(tmp_path, write_imagenet16, pickled):
    written = write_imagenet16(tmp_path / "ImageNet16", pickled)
    loaded = datasets.load("imagenet16_120", str(tmp_path))
    assert (len(loaded.train), len(loaded.test), loaded.image_size, len(loaded.classes)) == (40, 4, 16, 120)
    assert loaded.train.labels.tolist() == [label for file in range(10) for label in (file, 119, 0, 49)]
    assert loaded.test.labels.tolist() == [10, 119, 0, 49]
    kept = np.concatenate([pixels[[0, 2, 4, 5]] for name, pixels in written.items() if name != "val_data"])
    assert np.array_equal(loaded.train.images.numpy(), kept.reshape(-1, 3, 16, 16))
    assert np.array_equal(loaded.test.images[1].numpy(), written["val_data"][2].reshape(3, 16, 16))
    assert loaded.mean[0] * 255 == pytest.approx(122.68)


def test_imagenet16_may_lie_in_the_data_folder_and_missing_or_modified_files_are_rejected(tmp_path, write_imagenet16):
    with pytest.raises(ValueError, match=r"no train_data_batch_1.*AutoDL-Projects"):
        datasets.load("imagenet16_120", str(tmp_path))
    write_imagenet16(tmp_path)
    assert datasets.load("imagenet16_120", str(tmp_path), image_size=8).train.images.shape == (40, 3, 8, 8)
    path = tmp_path / "train_data_batch_3"
    path.write_bytes(b"csys\nexit\n)R.")  # a pickle that would end the process
    with pytest.raises(ValueError, match="train_data_batch_3 is not the official file"):
        datasets.load("imagenet16_120", str(tmp_path))


def test_a_split_is_disjoint_and_complete_and_depends_on_the_seed():
    train, valid = datasets.split(numbered(100), 0.3, seed=1)
    assert len(train) == 30
    assert sorted(train.labels.tolist() + valid.labels.tolist()) == list(range(100))
    assert torch.equal(train.labels, datasets.split(numbered(100), 0.3, seed=1)[0].labels)
    assert not torch.equal(train.labels, datasets.split(numbered(100), 0.3, seed=2)[0].labels)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"train": ["int", ["0", "1"]]}', 'expected {"train":'),
        ('{"train": ["int", ["0", "1"]], "valid": ["int", ["2", "4"]]}', "expected each of the 4 training images"),
        ('{"train": ["int", ["0", "1", "2"]], "valid": ["int", ["2", "3"]]}', "expected each of the 4 training images"),
        ('{"train": ["int", ["0", "1"]], "valid": ["int", ["3"]]}', "expected each of the 4 training images"),
    ],
)
def test_halves_that_do_not_divide_the_images_are_rejected(tmp_path, content, says):
    path = tmp_path / "cifar-split.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"cifar-split.txt.*{says}"):
        datasets.benchmark_halves(numbered(4), path)


def test_each_epoch_visits_every_image_once_with_its_label_in_a_new_order():
    def epoch(number):
        batches = list(Batches(numbered(50), 16, PLAIN, (0, number)))
        assert all(torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels) for batch in batches)
        return torch.cat([batch.labels for batch in batches])

    assert sorted(epoch(0).tolist()) == list(range(50))
    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))
    last_is_single = Batches(numbered(33), 16, PLAIN)
    assert [len(batch.labels) for batch in last_is_single] == [16, 16] and len(last_is_single) == 2


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
    order = shuffled(count, 3)
    parts = [shares(order, batch_size, rank, world, accumulate) for rank in range(world)]

    # every image occurs once, all processes have the same number of passes, and no pass is empty
    assert sorted(torch.cat([share.indices for part in parts for share in part]).tolist()) == list(range(count))
    assert len({len(part) for part in parts}) == 1
    assert all(len(share.indices) for part in parts for share in part)
    passes = list(zip(*parts, strict=True))
    assert all(sum(len(share.indices) for share in one) >= smallest for one in passes)

    # `accumulate` passes make a step, which takes the next `batch_size` images of the order
    steps = [passes[first : first + accumulate] for first in range(0, len(passes), accumulate)]
    images = [[number for one in step for share in one for number in share.indices.tolist()] for step in steps]
    ends = [batch_size * (number + 1) for number in range(len(steps) - 1)] + [count]
    for begin, end, step in zip([0, *ends], ends, images, strict=False):
        assert sorted(step) == sorted(order[begin:end].tolist())
    assert len(images[-1]) < batch_size + smallest

    # the weighted losses of a step, summed as Lightning does, are the mean over its images
    loss = torch.rand(count, dtype=torch.float64)
    for step, chosen in zip(steps, images, strict=True):
        total = sum(share.weight * loss[share.indices].mean() / accumulate / world for one in step for share in one)
        torch.testing.assert_close(total, loss[chosen].mean())

    rest = shares(order, batch_size, 0, world, accumulate, begun)
    assert [share.indices.tolist() for share in rest] == [share.indices.tolist() for share in parts[0][begun:]]


def test_cycle_repeats_a_small_data_set_in_another_order():
    batches = list(cycle(Batches(numbered(8), 4, PLAIN), 5))
    assert len(batches) == 5
    first, second = (torch.cat([b.labels for b in batches[i : i + 2]]) for i in (0, 2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(8))
    assert not torch.equal(first, second)


def dataset(flip):
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    return DataSet(ImageSet(images, torch.zeros(64, dtype=torch.long)), None, ("a", "b"), (0.5,) * 3, (0.25,) * 3, flip)


def test_augmentation_crops_the_padded_image_and_mirrors_half_of_the_images():
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
    plain = Augmentation.none(source)(source.train.images, torch.Generator())
    torch.testing.assert_close(plain, (source.train.images.float() / 255 - 0.5) / 0.25)


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
    with pytest.raises(ValueError, match="expected 2 to 15"):
        Augmentation.training(dataset(flip=True), 1)


def test_a_limited_number_of_images_takes_the_first_of_each_class():
    whole, some = datasets.load("digits"), datasets.load("digits", images=105)
    assert torch.bincount(some.train.labels).tolist() == [10] * 10  # an equal number of each: 10 x 10
    assert len(some.test) == 100
    for label in range(10):
        first = whole.train.images[whole.train.labels == label][:10]
        assert torch.equal(some.train.images[some.train.labels == label], first)
    assert len(datasets.load("digits", images=10**6).train) == len(whole.train)
