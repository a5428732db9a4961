"""Fuzz a reader of files from elsewhere, guided by coverage: one of tests/readers.py, which says what may come of it.

    pip install atheris
    python scripts/fuzz.py genotype --seconds 3600 --out runs/fuzz

A finding is an error that the reader does not document, anything it does outside its folder, and a file of 64 KB at
most that takes it ten seconds or a gigabyte. Its file is kept in OUT/TARGET/findings, and named once for each place in
the code. What reached new branches is in OUT/TARGET/corpus, from which the next call goes on.
"""

import hashlib
import io
import json
import os
import re
import resource
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path

try:
    import atheris
except ModuleNotFoundError:
    atheris = None

#: packages whose branches the fuzzer sees: this project's, and what is written in Python of the parsers under them.
#: (NumPy and torch would be seen too: they take minutes to be prepared.)
SEEN = (
    *("cli", "genotypes", "spaces", "parsing", "files", "data", "imagenet16", "checkpoints", "trainer", "analysis"),
    *("search", "imagenet", "nasbench201", "scripts", "yaml", "PIL"),
)


@contextmanager
def seen() -> Iterator[None]:
    """What is imported for the first time meanwhile is seen, without a line about each module."""
    with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=SEEN) if atheris else nullcontext():
        yield


with seen():  # YAML's parser is imported by both
    from jsonargparse.typing import PositiveInt

    import cli

PROG = "fuzz.py"
SECONDS, MEMORY, BYTES = 10, 1 << 30, 1 << 16


def main() -> None:
    parser = cli.Parser(prog=PROG, description=str(__doc__).splitlines()[0])
    parser.add_argument("target", type=str, help="the reader: a name in tests/readers.py")
    parser.add_argument("--seconds", type=PositiveInt, default=3600, help="how long")
    parser.add_argument("--out", type=str, default="runs/fuzz", help="folder of the corpus and the findings")
    given = parser.parse_args()
    if atheris is None:
        raise cli.InputError("atheris: not installed; expected it: pip install atheris")

    with seen():
        from tests.readers import TARGETS

        if given.target not in TARGETS:
            raise cli.InputError(f"target: {given.target!r}, expected one of {', '.join(TARGETS)}")
        target, out = TARGETS[given.target], Path(given.out, given.target).resolve()
        for place in ("corpus", "seeds", "findings"):
            (out / place).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp())  # TMPDIR says where: in memory it is four times as fast as on a disk
        target.prepare(folder)
    words = set()
    for number, seed in enumerate(target.seeds()):
        (out / "seeds" / str(number)).write_bytes(seed)
        words |= set(re.findall(rb"\w{2,30}", seed)[:300])
    (out / "words").write_text("".join(f'"{word.decode("latin1")}"\n' for word in sorted(words) if word.isascii()))

    # Beyond what is loaded by now
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    start, executions, places = time.monotonic(), 0, set()

    def read(content: bytes) -> None:
        nonlocal executions
        executions += 1
        try:
            target.run(folder, content)
        except BaseException as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = (type(error).__name__, frame.filename, frame.lineno)
            if place not in places:
                places.add(place)
                path = out / "findings" / hashlib.sha256(content).hexdigest()[:16]
                path.write_bytes(content)
                print(f"finding: {path}: {place} {str(error)[:200]}", flush=True)
        if time.monotonic() - start > given.seconds:
            cpu = resource.getrusage(resource.RUSAGE_SELF)
            figures = {"cpu_seconds": round(cpu.ru_utime + cpu.ru_stime), "executions": executions}
            print(json.dumps({"target": given.target, **figures, "findings": len(places)}), flush=True)
            os._exit(bool(places))  # libFuzzer has no other end that gives a status

    options = [f"-timeout={SECONDS}", f"-rss_limit_mb={4096}", f"-max_len={BYTES}", f"-artifact_prefix={out}/findings/"]
    atheris.Setup(["fuzz.py", *options, f"-dict={out}/words", str(out / "corpus"), str(out / "seeds")], read)
    atheris.Fuzz()


if __name__ == "__main__":
    cli.run(main, PROG)
