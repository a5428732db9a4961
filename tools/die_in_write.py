"""Run a script that is killed in the midst of a write: python tools/die_in_write.py MOMENT SCRIPT [arguments]

A write of files.py has three moments: half of the temporary file is there, all of it is, it has its name. Moment 0 is
the first of the first write, moment 3 the first of the second.
"""

import os
import runpy
import signal
import stat
import sys
from collections.abc import Callable
from typing import Any


def cut_short(moment: int, die: Callable[[], object]) -> None:
    """Have this process die in a moment of a write, from now on."""
    synced, renamed = os.fsync, os.replace

    def is_now() -> bool:
        nonlocal moment
        moment -= 1
        return moment < 0

    def fsync(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode) and is_now():
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        synced(descriptor)

    def replace(source: Any, target: Any) -> None:
        if is_now():
            die()
        renamed(source, target)
        if is_now():
            die()

    os.fsync, os.replace = fsync, replace


def main() -> None:
    if sys.argv[1:] == ["--help"]:
        print(f"usage: {__doc__}")
        return
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal() or not os.path.isfile(sys.argv[2]):
        sys.stderr.write(f"die_in_write.py: error: {' '.join(sys.argv[1:])!r}, expected MOMENT SCRIPT [arguments]\n")
        sys.exit(2)
    cut_short(int(sys.argv[1]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
