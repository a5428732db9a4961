"""Sort ILSVRC 2012's raw validation pictures into a folder for each class.

    python imagenet/prepare.py ILSVRC --ground_truth devkit/data/ILSVRC2012_validation_ground_truth.txt
    python imagenet/prepare.py ILSVRC --ground_truth LOC_val_solution.csv

You can interrupt the script and run it again: pictures that are already in the folder of their class stay there.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lib import cli
from lib.cli import InputError, blaming
from lib.files import check_regular, find_split, is_picture, read_text
from lib.options import argument, option, parse

PROG = "prepare.py"


def read_kaggle(path: Path) -> dict[str, str]:
    """Read Kaggle's LOC_val_solution.csv into {name of a picture, without suffix: WordNet ID of its class}."""
    lines = read_text(path).splitlines()
    if not lines or lines[0] != "ImageId,PredictionString":
        raise ValueError(f"{path}: expected the header ImageId,PredictionString")
    classes = {}
    for number, line in enumerate(lines[1:], 2):
        if match := re.match(r"([^,]+),(n\d{8})\b", line):
            classes[match[1]] = match[2]
        elif line.strip():
            raise ValueError(f"{path}, line {number}: {line!r}; expected a picture and its WordNet ID")
    return classes


def read_devkit(path: Path, meta: Path) -> dict[str, str]:
    """Read the development kit's ground truth into {name of a picture, without suffix: WordNet ID of its class}.

    The i-th number in `path` is the class of picture i. `meta`, the file meta.mat, gives the WordNet ID of each number.
    """
    from scipy.io import loadmat

    numbers = read_text(path).split()
    check_regular(meta)
    try:
        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        wordnet_ids = {str(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    except Exception as error:  # SciPy raises many kinds of errors
        raise ValueError(f"cannot read {meta} ({error}); pass the development kit's meta.mat as --meta") from error
    for i, number in enumerate(numbers, 1):
        if number not in wordnet_ids:
            raise ValueError(f"{path}: class {number!r} of picture {i}; expected a class number of {meta}")
    return {f"ILSVRC2012_val_{i:08d}": wordnet_ids[number] for i, number in enumerate(numbers, 1)}


def sort_pictures(folder: Path, classes: dict[str, str]) -> int:
    """Move the pictures in `folder` into the folders of their classes. Returns the number of moved pictures.

    Raises:
        ValueError: A picture is missing, in the wrong class folder or not in the ground truth. Nothing has been moved.
    """
    raw = [path for path in folder.iterdir() if is_picture(path)]
    pictures = raw + [path for path in folder.glob("[!.]*/*") if is_picture(path)]
    for path in pictures:
        if path.stem not in classes:
            raise ValueError(f"{path} is not in the ground truth")
        if path.parent not in (folder, folder / classes[path.stem]):
            raise ValueError(f"{path} is in the wrong folder; its class in the ground truth is {classes[path.stem]}")
    missing = sorted(classes.keys() - {path.stem for path in pictures})
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} of {len(classes)} pictures, such as {missing[0]}")
    for path in raw:
        target = folder / classes[path.stem]
        target.mkdir(exist_ok=True)
        path.rename(target / path.name)
    return len(raw)


@dataclass
class PrepareSettings:
    """The settings of imagenet/prepare.py."""

    data: str = argument("ILSVRC's folder (with Data/CLS-LOC/val), or a folder with val/.")
    ground_truth: str = option(
        "",
        "ILSVRC2012_validation_ground_truth.txt of the development kit, or Kaggle's LOC_val_solution.csv.",
    )
    meta: str = option("", "meta.mat of the development kit. By default, the file in the folder of the ground truth.")


def main() -> None:
    given = parse(PrepareSettings, PROG, __doc__.splitlines()[0])
    if not given.ground_truth:
        raise InputError("--ground_truth: no file is given; expected a file with the classes of the pictures")
    with blaming("data"):
        folder = find_split(Path(given.data), "val")
    truth = Path(given.ground_truth)
    with blaming("--ground_truth"):
        kaggle = truth.suffix == ".csv"
        classes = read_kaggle(truth) if kaggle else read_devkit(truth, Path(given.meta or truth.with_name("meta.mat")))
    with blaming("data"):
        print(f"{sort_pictures(folder, classes)} pictures moved")
    for split, expected in ((folder, "50,000"), (folder.with_name("train"), "1,281,167")):
        counts = Counter(path.parent.name for path in split.glob("[!.]*/*") if is_picture(path))
        print(f"{split}: {counts.total()} pictures in {len(counts)} classes (ILSVRC 2012: {expected} in 1,000)")


if __name__ == "__main__":
    cli.run(main, PROG)
