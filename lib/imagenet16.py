"""ImageNet16-120: the first 120 classes of ImageNet at 16x16 pixels, the third data set of NAS-Bench-201.

References:
    Chrabaszcz, Loshchilov and Hutter, 2017: A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets.
    Dong and Yang, 2020: NAS-Bench-201, section 2.2.
"""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.files import read_bytes

CLASSES = 120  # of 1,000; they have 151,700 training and 6,000 validation images in the files below

SOURCE = (
    "its files are linked from NAS-Bench-201's page, https://github.com/D-X-Y/AutoDL-Projects "
    "(docs/NAS-Bench-201.md, training and evaluation data)"
)

#: md5 sums of the official files
TRAIN_FILES = {
    "train_data_batch_1": "27846dcaa50de8e21a7d1a35f30f0e91",
    "train_data_batch_2": "c7254a054e0e795c69120a5727050e3f",
    "train_data_batch_3": "4333d3df2e5ffb114b05d2ffc19b1e87",
    "train_data_batch_4": "1620cdf193304f4a92677b695d70d10f",
    "train_data_batch_5": "348b3c2fdbb3940c4e9e834affd3b18d",
    "train_data_batch_6": "6e765307c242a1b3d7d5ef9139b48945",
    "train_data_batch_7": "564926d8cbf8fc4818ba23d2faac7564",
    "train_data_batch_8": "f4755871f718ccb653440b9dd0ebac66",
    "train_data_batch_9": "bb6dd660c38c58552125b1a92f86b5d4",
    "train_data_batch_10": "8f03f34ac4b42271a294f91bf480f29b",
}
TEST_FILES = {"val_data": "3410e3017fdaefba8d5073aaa65e4bd6"}


def load(root: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Load the training images and, as test images, the validation images.

    Args:
        root: Folder of the files, or a folder that has them in its sub-folder ImageNet16/.

    Returns:
        Images (N, 3, 16, 16) uint8 and labels (N,) int64 from 0 to 119, for each split.

    Raises:
        ValueError: A file is missing or is not the official one; the message names it.
        OSError: A file cannot be read.
    """
    folder = root / "ImageNet16" if (root / "ImageNet16").is_dir() else root
    missing = [name for name in (*TRAIN_FILES, *TEST_FILES) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in {folder}; {SOURCE}")

    def split(files: dict[str, str]) -> tuple[Tensor, Tensor]:
        parts = [_read(folder / name, md5) for name, md5 in files.items()]
        images, labels = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True))
        return images, labels

    return split(TRAIN_FILES), split(TEST_FILES)


def _read(path: Path, md5: str) -> tuple[np.ndarray, np.ndarray]:
    """The images (n, 3, 16, 16) and labels (n,) of the first classes in one batch file."""
    content = read_bytes(path)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{path} is not the official file, whose md5 sum is {md5}")
    batch = pickle.loads(content, encoding="latin1")  # safe, because it is the official file; Python 2 wrote it
    pixels, labels = batch["data"], np.array(batch["labels"], dtype=np.int64)
    kept = labels <= CLASSES
    return pixels[kept].reshape(-1, 3, 16, 16), labels[kept] - 1
