"""A run that trains nothing, for tests of tables: it leaves the files of a run, and can fail, die or wait.

python tests/stub_run.py --save RUN --epochs 3 --seed 0 [--arch SEARCH]    # with --arch, a retraining
python tests/stub_run.py --resume RUN
python tests/stub_run.py RUN                                               # the score of a retraining
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lib.files import write_atomically

SCRIPT = "tests/stub_run.py"


def parse(line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stub_run.py")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--arch", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of an epoch")
    parser.add_argument("--fail_at", type=int, default=0, help="the epoch in which the run fails")
    parser.add_argument("--die_at", type=int, default=0, help="the epoch in which the run kills its process")
    parser.add_argument("--wait_at", type=int, default=0, help="the epoch in which the run waits for ten minutes")
    parser.add_argument("--times", type=int, default=1, help="how often it dies or waits")
    return parser.parse_args(line)


def resolve(line: list[str], script: str) -> argparse.Namespace:
    """Check a command line, for scripts/grid.py."""
    return parse(line)


def run(given: dict[str, Any], folder: Path) -> None:
    checkpoint = folder / "checkpoint.json"
    rows = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    value = Path(given["arch"], "genotype.json").read_text() if given["arch"] else "search"
    for epoch in range(len(rows) + 1, given["epochs"] + 1):
        begin = time.monotonic()
        time.sleep(given["pause"])
        if epoch == given["fail_at"]:
            sys.exit("stub_run.py: error: --fail_at: the run fails, as it was told to")
        if epoch in (given["die_at"], given["wait_at"]) and len(list(folder.glob("time-*"))) < given["times"]:
            (folder / f"time-{time.time_ns()}").touch()
            if epoch == given["die_at"]:
                os.kill(os.getpid(), signal.SIGKILL)
            for _ in range(6000):  # ray.cancel cannot interrupt a long sleep
                time.sleep(0.1)
        # Each epoch's value follows from all before it: a run that lost or repeated one ends in another genotype.
        before = rows[-1]["value"] if rows else f"{value} {given['seed']}"
        after = hashlib.sha256(f"{before} {epoch}".encode()).hexdigest()[:8]
        rows.append({"epoch": epoch, "value": after, "seconds": time.monotonic() - begin})
        write_atomically(checkpoint, json.dumps(rows))
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        write_atomically(folder / "metrics.csv", "\n".join(lines) + "\n")
    write_atomically(folder / "genotype.json", json.dumps({"genotype": rows[-1]["value"]}))
    if given["arch"]:
        write_atomically(folder / "result.json", "{}")


def main() -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: sys.exit(130))
    if not sys.argv[1].startswith("--"):
        print(json.dumps({"accuracy": int(json.loads(Path(sys.argv[1], "genotype.json").read_text())["genotype"], 16)}))
        return
    given = vars(parse(sys.argv[1:]))
    save, resume = given.pop("save"), given.pop("resume")
    if resume:
        given = json.loads((resume / "config.yaml").read_text())
    else:
        save.mkdir(parents=True, exist_ok=True)
        write_atomically(save / "config.yaml", json.dumps(given))
    run(given, resume or save)


if __name__ == "__main__":
    main()
