"""tools/prose.py: the sentences that it reports, and those that it leaves alone."""

import pytest

from tools.prose import LONGEST, reported

LONG = " ".join(["word"] * (LONGEST + 1)) + "."
PYTHON = '"""{}"""\n'


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.py", PYTHON.format("Whether a run has ended."), "docstring: opening"),
        ("a.py", PYTHON.format("True if a run has ended."), None),
        ("a.py", PYTHON.format(f"Good. {LONG}"), f"docstring: {LONGEST + 1} words"),
        ("a.py", f"# {LONG}\nx = 1\n", f"comment: {LONGEST + 1} words"),
        ("a.py", "x = f'{1} cells, of these the first one'\n", "message: phrase"),
        ("a.py", "parser.add_argument('--n', help='Number of cells.')\n", "help: short"),
        ("a.py", "n: int = option(1, 'Number of cells.')\n", "help: short"),
        ("a.py", "n: int = option(1, 'Number of cells in the network.')\n", None),
        ("a.md", f"# Title\n\n{LONG}\n", f"document: {LONGEST + 1} words"),
        ("a.md", f"```bash\n{LONG}\n```\n", None),
        ("a.md", "| Flags beside it win | another cell |\n", "document: phrase"),
        ("a.sh", f"# {LONG}\n", f"comment: {LONGEST + 1} words"),
    ],
)
def test_a_sentence_is_reported_for_a_reason(tmp_path, name, text, reason):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    lines = list(reported(path))
    assert (len(lines), reason in lines[0]) == (1, True) if reason else not lines
