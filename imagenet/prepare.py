"""Sort ILSVRC 2012's raw validation pictures into a folder for each class, and check what is there.

    python imagenet/prepare.py ILSVRC --ground_truth devkit/data/ILSVRC2012_validation_ground_truth.txt
    python imagenet/prepare.py ILSVRC --ground_truth LOC_val_solution.csv

The ground truth is the development kit's (a number for each picture, in their order; its meta.mat lies beside it, or
--meta names it) or Kaggle's table (a picture and its class in each row). Pictures are moved, one at a time: stopped at
any point, the same command goes on, and on a sorted folder it only checks.
"""

import multiprocessing
import os
import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cli
from cli import InputError, blaming, option
from imagenet.layout import find_split
from parsing import open_csv, read_text

PROG = "prepare.py"
#: of ILSVRC 2012
CLASSES, TEST_PICTURES, TRAINING_PICTURES = 1000, 50_000, 1_281_167


@dataclass
class PrepareSettings:
    """validation pictures"""

    ground_truth: str = option(
        "", "ILSVRC2012_validation_ground_truth.txt of the development kit, or Kaggle's LOC_val_solution.csv"
    )
    meta: str = option("", "meta.mat of the development kit; by default the one beside the ground truth")


def read_kaggle(path: Path) -> dict[str, str]:
    """Kaggle's LOC_val_solution.csv: picture (without suffix) -> WordNet ID of its class.

    Raises:
        ValueError: the file is not of that form.
        OSError: it cannot be read.
    """
    with open_csv(path) as reader:
        rows = list(reader)
    if not rows or rows[0][:2] != ["ImageId", "PredictionString"]:
        raise ValueError(f"{path} begins with {','.join(rows[0]) if rows else 'nothing'!r}; expected ImageId,...")
    classes: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        words = row[1].split() if len(row) == 2 else []
        if not words or not is_wordnet_id(words[0]) or not _is_name(row[0]) or row[0] in classes:
            raise ValueError(f"{path}, line {number}: {','.join(row)[:60]!r}, expected a new picture and its class")
        classes[row[0]] = words[0]
    return classes


def read_devkit(path: Path, meta: Path) -> dict[str, str]:
    """The development kit's ground truth: picture (without suffix) -> WordNet ID of its class.

    Args:
        path: a number of a class for each picture, in their order.
        meta: meta.mat, which says what the numbers of the classes mean.

    Raises:
        ValueError: a file is not of that form.
        OSError: it cannot be read.
    """
    try:
        # SciPy's reader is C, which a damaged file can crash: in a process of its own.
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as reading:
            names = reading.submit(_read_synsets, meta).result()
    except Exception as error:  # a damaged file, or one of another program, raises almost any
        raise ValueError(f"{meta} is not the development kit's meta.mat ({error})") from error
    strange = next((name for name in names.values() if not is_wordnet_id(name)), None)
    if strange is not None:
        raise ValueError(f"{meta} has a class {strange[:60]!r}, expected a WordNet ID such as n01440764")
    classes = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not re.fullmatch("[0-9]{1,9}", line.strip()) or int(line) not in names:
            raise ValueError(f"{path}, line {number}: {line[:60]!r}, expected the number of a class of {meta}")
        classes[f"ILSVRC2012_val_{number:08d}"] = names[int(line)]
    return classes


def _read_synsets(meta: Path) -> dict[int, str]:
    """The classes of meta.mat: number -> WordNet ID."""
    from scipy.io import loadmat

    synsets = loadmat(meta, squeeze_me=True)["synsets"]
    return {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}


def _is_name(text: str) -> bool:
    """Whether a file may be called so, and nothing that leads elsewhere."""
    return text.isprintable() and Path(text).name == text != ""


def is_wordnet_id(text: str) -> bool:
    """Whether it looks like n01440764."""
    return re.fullmatch("n[0-9]{8}", text) is not None


def sort_pictures(folder: Path, classes: dict[str, str]) -> int:
    """Move the pictures that lie in `folder` into the folders of their classes; how many were moved.

    Raises:
        ValueError: a picture is in no class, is missing, or lies in a wrong place; nothing was moved then.
        OSError: a file cannot be moved.
    """
    unsorted, there = [], []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            unsorted.append(Path(entry.path))
        else:
            there += [Path(file.path) for file in os.scandir(entry.path)]
    places = {path.stem: path for path in there}
    strange = sorted(path.name for path in unsorted if path.stem not in classes)
    if strange:
        raise ValueError(f"{folder / strange[0]} is not in the ground truth ({len(strange)} such files)")
    wrong = sorted(stem for stem, path in places.items() if classes.get(stem) != path.parent.name)
    if wrong:
        expected = f"expected in {classes[wrong[0]]}" if wrong[0] in classes else "not in the ground truth"
        raise ValueError(f"{places[wrong[0]]}: {expected} ({len(wrong)} such files)")
    times = Counter(path.stem for path in unsorted + there)
    twice = sorted(path for path in unsorted + there if times[path.stem] > 1)
    if twice:
        raise ValueError(f"{twice[0]} and {twice[1]}: expected one file of a name")
    missing = sorted(classes.keys() - {path.stem for path in unsorted} - places.keys())
    if missing:
        raise ValueError(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(classes)} pictures)")
    for name in sorted(set(classes.values())):
        (folder / name).mkdir(exist_ok=True)
    for path in sorted(unsorted):
        os.rename(path, folder / classes[path.stem] / path.name)
    return len(unsorted)


def count_pictures(folder: Path) -> Counter[str]:
    """Class -> number of its files."""
    return Counter(
        {entry.name: sum(1 for _ in os.scandir(entry.path)) for entry in os.scandir(folder) if entry.is_dir()}
    )


def main() -> None:
    parser = cli.parser_for(PrepareSettings, PROG, __doc__.splitlines()[0])
    parser.add_argument("data", help="ILSVRC's folder (with Data/CLS-LOC/val) or one with val/")
    given = parser.parse_args()
    if not given.ground_truth:
        raise InputError("--ground_truth: expected the development kit's or Kaggle's file, none is given")

    with blaming("data"):
        folder = find_split(Path(given.data), "val")
    truth = Path(given.ground_truth)
    with blaming("--ground_truth"):
        if truth.suffix == ".csv":
            classes = read_kaggle(truth)
        else:
            meta = Path(given.meta or truth.with_name("meta.mat"))
            if not truth.is_file():
                raise ValueError(f"no file {truth}")
            if not meta.is_file():
                raise InputError(f"--meta: no file {meta}; expected the development kit's meta.mat")
            classes = read_devkit(truth, meta)
    with blaming("data"):
        moved = sort_pictures(folder, classes)
    counts = count_pictures(folder)
    print(f"{folder}: {moved} pictures moved; {counts.total()} in {len(counts)} classes")
    whole = len(classes) == TEST_PICTURES
    if whole and set(counts.values()) != {TEST_PICTURES // CLASSES}:
        raise InputError(f"data: {folder} has classes without 50 pictures; expected ILSVRC 2012's")
    if not whole:
        print(f"ILSVRC 2012 has {TEST_PICTURES} in {CLASSES}: this is another set, or a part of it")
    try:
        train = find_split(Path(given.data), "train")
    except ValueError:
        print("no training pictures beside it yet")
        return
    there = count_pictures(train)
    differing = sorted(set(there) ^ set(counts))
    if differing:
        raise InputError(f"data: {train} and {folder} differ in {len(differing)} classes: {', '.join(differing[:5])}")
    full = "as in ILSVRC 2012" if there.total() == TRAINING_PICTURES else f"ILSVRC 2012 has {TRAINING_PICTURES}"
    print(f"{train}: {there.total()} pictures in {len(there)} classes ({full})")


if __name__ == "__main__":
    cli.run(main, PROG)
