"""Search a cell by differentiable architecture search, on CIFAR-10, CIFAR-100, SVHN, digits or a folder of images.

    python search/train_search.py --download                        # the Λ-DARTS paper's search on CIFAR-10
    python search/train_search.py --method darts-minus --reg corr   # ideas of two papers together
    python search/train_search.py --dataset digits --space s2 --layers 5 --init_channels 8 --epochs 10
    python search/train_search.py --resume runs/search-...          # go on with an interrupted run

The settings are in search/settings.py, the search itself in search/bilevel.py, its run folder in search/loop.py.
"""

import sys

from lib import cli
from search.settings import SCRIPT, resolve


def main() -> None:
    resolved = resolve(sys.argv[1:])
    # Imported here: --help and a wrong flag are answered before torch is loaded.
    from search.loop import search

    search(resolved)


if __name__ == "__main__":
    cli.run(main, SCRIPT.prog)
