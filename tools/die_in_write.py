"""Run a script and kill it in the middle of a write: python tools/die_in_write.py MOMENT SCRIPT [arguments]

Each call of `lib.files.write_atomically` has three moments: half of the temporary file is written, all of it is
written, and it is renamed. MOMENT counts from 0 over all writes: 3 is the first moment of the second write.
"""

import os
import runpy
import signal
import stat
import sys
from collections.abc import Callable
from typing import Any


def cut_short(moment: int, die: Callable[[], object]) -> None:
    """Make this process call `die` at the given moment, counted from the next write."""
    synced, renamed = os.fsync, os.replace

    def is_now() -> bool:
        nonlocal moment
        moment -= 1
        return moment < 0

    def fsync(fd: Any) -> None:
        if not stat.S_ISDIR(os.fstat(fd).st_mode) and is_now():
            os.ftruncate(fd, os.fstat(fd).st_size // 2)
            die()
        synced(fd)

    def replace(src: Any, dst: Any, **folders: Any) -> None:
        if is_now():
            die()
        renamed(src, dst, **folders)
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
