"""Run a script that is killed in the midst of a write: python scripts/die_in_write.py MOMENT SCRIPT [arguments]

A write of files.py has three moments: half of the temporary file is there, all of it is, it has its name. Moment 0 is
the first of the first write, moment 3 the first of the second.
"""

import os
import runpy
import signal
import sys
from typing import Any


def main() -> None:
    if sys.argv[1:] == ["--help"]:
        print(f"usage: {__doc__}")
        return
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal():
        sys.stderr.write(f"die_in_write.py: error: {' '.join(sys.argv[1:])!r}, expected MOMENT SCRIPT [arguments]\n")
        sys.exit(2)
    left, script = int(sys.argv[1]), sys.argv[2]
    synced, renamed = os.fsync, os.replace

    def count() -> bool:
        """Whether it is the moment."""
        nonlocal left
        left -= 1
        return left < 0

    def fsync(descriptor: int) -> None:
        if os.path.isfile(f"/proc/self/fd/{descriptor}") and count():  # which a folder is not
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        synced(descriptor)

    def replace(source: Any, target: Any) -> None:
        if count():
            os.kill(os.getpid(), signal.SIGKILL)
        renamed(source, target)
        if count():
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync, os.replace = fsync, replace
    sys.argv = sys.argv[2:]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
