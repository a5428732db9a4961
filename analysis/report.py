"""Write a report of runs as an HTML page: measured and published accuracies, curves, cells and cost.

    python analysis/report.py runs/robust-small report.html
    python analysis/report.py runs/nasbench201-small runs/search-... report.html     # tables and single runs together
    python analysis/report.py runs/robust-small report.html --watch                  # update until all runs end

The page is a single file and loads nothing from the network.
"""

import time
from pathlib import Path

from lib import cli, options
from lib.files import write_atomically

PROG = "report.py"
#: marks pages of this script, which it may overwrite
GENERATOR = b'<meta name="generator" content="analysis/report.py">'


def main() -> None:
    parser = options.Parser(prog=PROG, description=__doc__.splitlines()[0])
    every = options.reader(options.PositiveInt)
    parser.add_argument("runs", nargs="+", help="Run folders, or folders that contain runs, as of tables.")
    parser.add_argument("out", help="HTML file to write, OUT.html.")
    parser.add_argument("--watch", action="store_true", help="Update the page until all runs are finished.")
    parser.add_argument("--every", type=every, default=30, metavar="N", help="Seconds between updates (default: 30).")
    given = parser.parse_args()
    out, paths = Path(given.out), [Path(run) for run in given.runs]
    if out.suffix != ".html":
        raise cli.InputError(f"out: {given.out!r}, expected a file name that ends in .html")
    if not out.parent.is_dir():
        raise cli.InputError(f"out: {given.out!r}: there is no folder {out.parent}; expected an existing folder")
    content = out.read_bytes()[:4096] if out.is_file() else b""
    if out.exists() and (not out.is_file() or (content and GENERATOR not in content)):
        raise cli.InputError(f"out: {given.out!r} exists and is not a report of this script; name another file")
    for path in paths:
        if not path.is_dir():
            raise cli.InputError(f"runs: {str(path)!r}, expected a folder that contains runs")

    # imported here, so that --help and errors in arguments need not load matplotlib and SciPy
    from analysis.page import build

    command, finished = cli.command_line(), False
    while not finished:
        with cli.blaming("runs"):
            page, problems, finished = build(paths, command, int(given.every) if given.watch else 0)
        if finished and given.watch:  # the last page does not reload itself
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
