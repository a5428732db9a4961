"""Search a cell of NAS-Bench-201, and score it by the benchmark's table.

    python nasbench201/train_search.py --download                                    # Λ-DARTS on CIFAR-10
    python nasbench201/train_search.py --method darts --seeds 0 1 2 3
    python nasbench201/train_search.py --dataset digits --init_channels 8 --cells_per_stage 1 --epochs 10
    python nasbench201/train_search.py --resume runs/search-...                      # resume an interrupted run

The search is the same as in search/train_search.py. search201.py has the parts for this space, settings.py its
settings.
"""

import sys

from lib import cli
from lib.cli import InputError
from nasbench201.settings import SCRIPT, SearchSettings201
from search.command_line import resolve


def main() -> None:
    resolved = resolve(sys.argv[1:], SCRIPT)
    settings, flags = resolved.settings, set(resolved.sources.get("command line", []))
    assert isinstance(settings, SearchSettings201)
    if {"seed", "seeds"} <= flags:
        raise InputError(f"--seed: {settings.seed} cannot be combined with --seeds; expected only one of the two")
    if "seed" in flags:  # one seed with the config.yaml of a series
        settings.seeds = None
    if settings.seeds is not None and (not settings.seeds or len(set(settings.seeds)) < len(settings.seeds)):
        raise InputError(f"--seeds: {settings.seeds}, expected different whole numbers, such as --seeds 0 1 2 3")
    # Imported here, so that --help and wrong flags are answered before torch is loaded.
    from nasbench201.search201 import SearchState201
    from nasbench201.series import search_seeds
    from search.train_search import search

    if settings.seeds:
        search_seeds(resolved)
    else:
        search(resolved, SearchState201)


if __name__ == "__main__":
    cli.run(main, SCRIPT.prog)
