"""The folder layouts of ImageNet. Nothing here imports torch."""

from pathlib import Path


def find_split(root: Path, split: str) -> Path:
    """The folder of "train" or "val" in ILSVRC's layout (root/Data/CLS-LOC/train) or a plain one (root/train).

    Raises:
        ValueError: There is none.
    """
    for folder in (root / "Data" / "CLS-LOC" / split, root / split):
        if folder.is_dir():
            return folder
    raise ValueError(f"no folder {root / split}; expected {split}/<class>/*, in {root} or in {root / 'Data/CLS-LOC'}")
