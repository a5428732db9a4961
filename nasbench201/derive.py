"""Derive another cell from a finished or interrupted search in NAS-Bench-201, by another rule.

    python nasbench201/derive.py runs/search-... --selection perturbation      # after an interruption, run it again

The flags are those of search/derive.py.
"""

from typing import TYPE_CHECKING

from lib import cli
from nasbench201.settings import SCRIPT
from search.derive import PROG, derive

if TYPE_CHECKING:
    from search.state import SearchState


def main() -> None:
    def load_class() -> "type[SearchState]":
        from nasbench201.search201 import SearchState201

        return SearchState201

    derive(SCRIPT, load_class)


if __name__ == "__main__":
    cli.run(main, PROG)
