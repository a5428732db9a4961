"""Small files in the official layout of CIFAR-10 and CIFAR-100."""

import pickle
from pathlib import Path

import numpy as np

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_cifar(root: Path) -> np.ndarray:
    """Write CIFAR-10 and CIFAR-100 with a few random images. Return the pixels of the first batch, (20, 3072)."""
    generator = np.random.default_rng(0)

    def write(name, content):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(pickle.dumps(content))

    def images(count, key, classes):
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": pixels, key: [i % classes for i in range(count)]}

    batches = [images(20, "labels", 10) for _ in range(5)]
    for number, batch in enumerate(batches, 1):
        write(f"cifar-10-batches-py/data_batch_{number}", batch)
    write("cifar-10-batches-py/test_batch", images(10, "labels", 10))
    write("cifar-10-batches-py/batches.meta", {"label_names": list(CIFAR10)})
    write("cifar-100-python/train", images(200, "fine_labels", 100))
    write("cifar-100-python/test", images(100, "fine_labels", 100))
    write("cifar-100-python/meta", {"fine_label_names": [f"class {number}" for number in range(100)]})
    return batches[0]["data"]
