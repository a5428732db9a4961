"""A stub for tests of tables. It trains nothing, writes the files of a run, and can fail, die or wait.

python tests/stub_run.py --save RUN --epochs 3 --seed 0 [--arch SEARCH]    # with --arch, a retraining
python tests/stub_run.py --resume RUN
python tests/stub_run.py RUN                                               # print the score of a retraining
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
    parser.add_argument("--pause", type=float, default=0.0, help="Duration of an epoch in seconds.")
    parser.add_argument("--fail_at", type=int, default=0, help="Epoch in which the run fails. 0 for none.")
    parser.add_argument("--die_at", type=int, default=0, help="Epoch in which the run kills its process. 0 for none.")
    parser.add_argument(
        "--wait_at", type=int, default=0, help="Epoch in which the run waits for ten minutes. 0 for none."
    )
    parser.add_argument("--times", type=int, default=1, help="Number of times that the run dies or waits.")
    return parser.parse_args(line)


def resolve(line: list[str], script: str) -> argparse.Namespace:
    """Check a command line. scripts/reproduce.py calls this function."""
    return parse(line)


def run(given: dict[str, Any], folder: Path) -> None:
    checkpoint = folder / "checkpoint.json"
    rows = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    value = Path(given["arch"], "genotype.json").read_text() if given["arch"] else "search"
    for epoch in range(len(rows) + 1, given["epochs"] + 1):
        begin = time.monotonic()
        time.sleep(given["pause"])
        if epoch == given["fail_at"]:
            sys.exit("stub_run.py: error: --fail_at: the run fails in this epoch, as requested")
        if epoch in (given["die_at"], given["wait_at"]) and len(list(folder.glob("time-*"))) < given["times"]:
            (folder / f"time-{time.time_ns()}").touch()
            if epoch == given["die_at"]:
                os.kill(os.getpid(), signal.SIGKILL)
            for _ in range(6000):  # ray.cancel cannot interrupt a long sleep
                time.sleep(0.1)
        # The value of an epoch depends on all earlier ones, so a run that loses or repeats one gets another genotype.
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
