"""Write a page about some runs: measured and published accuracies, curves, cells and cost.

    python analysis/report.py runs/robust-small report.html
    python analysis/report.py runs/nasbench201-small runs/search-... report.html     # tables and single runs together
    python analysis/report.py runs/robust-small report.html --watch                  # rewritten until all runs end

The page is a single file, which loads nothing from the network.
"""

import time
from pathlib import Path

from lib import cli, options
from lib.files import write_atomically

PROG = "report.py"
#: marks the pages that this script may overwrite
GENERATOR = b'<meta name="generator" content="analysis/report.py">'


def main() -> None:
    parser = options.Parser(prog=PROG, description=__doc__.splitlines()[0])
    every = options.reader(options.PositiveInt)
    parser.add_argument("runs", nargs="+", help="Folders of tables, folders of runs, or run folders.")
    parser.add_argument("out", help="Page to write, OUT.html.")
    parser.add_argument("--watch", action="store_true", help="Write the page again until all runs are finished.")
    parser.add_argument("--every", type=every, default=30, metavar="N", help="Seconds between two pages (default: 30).")
    given = parser.parse_args()
    out, paths = Path(given.out), [Path(run) for run in given.runs]
    if out.suffix != ".html":
        raise cli.InputError(f"out: {given.out!r}, expected the name of a page, OUT.html")
    if not out.parent.is_dir():
        raise cli.InputError(f"out: {given.out!r}, but there is no folder {out.parent}")
    content = out.read_bytes()[:4096] if out.is_file() else b""
    if out.exists() and (not out.is_file() or (content and GENERATOR not in content)):
        raise cli.InputError(f"out: {given.out!r} is there and no report of this script; expected another name")
    for path in paths:
        if not path.is_dir():
            raise cli.InputError(f"runs: {str(path)!r}, expected a folder of runs")

    # Imported here: --help and a wrong argument are answered before matplotlib and SciPy are loaded.
    from analysis.page import build

    command, finished = cli.command_line(), False
    while not finished:
        with cli.blaming("runs"):
            page, problems, finished = build(paths, command, int(given.every) if given.watch else 0)
        if finished and given.watch:  # the last page stays as it is
            page, problems, _ = build(paths, command)
        for problem in problems:
            print(problem, flush=True)
        with cli.blaming("out"):
            write_atomically(out, page)
        print(out, flush=True)
        if not given.watch:
            return
        if not finished:
            time.sleep(given.every)


if __name__ == "__main__":
    cli.run(main, PROG)
