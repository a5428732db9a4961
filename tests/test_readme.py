"""The README and the documents: examples that run, links and names that exist."""

import re

import numpy as np

from regularizers import REGULARIZERS
from search.methods import METHODS
from tests.helpers import ROOT, script_in_process, without_figures

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_search_runs_with_the_regularizer_of_the_readme(tmp_path, monkeypatch):
    for registry in (REGULARIZERS, METHODS):  # so that the new entries are removed afterwards
        monkeypatch.setattr(registry, "data", dict(registry))
    example = re.search(r"## Your own cell.*?```python\n(.*?)```", README, re.DOTALL).group(1)
    program = tmp_path / "balance.py"
    program.write_text(f'{example}\nimport runpy\n\nrunpy.run_path("search/train_search.py", run_name="__main__")\n')
    run = tmp_path / "run"
    flags = "--dataset digits --images 64 --space s2 --layers 4 --init_channels 2 --batch_size 30 --epochs 2"
    with without_figures():
        result = script_in_process(
            program, *flags.split(), "--method", "balanced-darts", "--derivatives", "exact", "--save", run
        )
    assert result.returncode == 0, result.stderr
    rows = np.genfromtxt(run / "metrics.csv", delimiter=",", names=True)
    assert rows["regularizer_gradient_norm"][1] > 0 > rows["regularizer"][1]


def test_the_readme_names_files_that_exist():
    for path in re.findall(r"`([\w/]+\.(?:py|json)|\w+/)`", README.split("## The repository")[1]):
        assert (ROOT / path).exists(), path


def headings(document):
    """The anchors that GitHub makes of the headings of a document."""
    found = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found}


def test_links_between_documents_lead_somewhere():
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"]
    links = [
        (document, link)
        for document in documents
        for link in re.findall(r"\]\((?!https?:)([^\s)]+)\)", document.read_text(encoding="utf-8"))
    ]
    assert len(links) > 40
    for document, link in links:
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), (document.name, link)
        assert not anchor or anchor in headings(target), (document.name, link)


def test_every_name_in_docs_code_is_in_the_file_that_it_says():
    found = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", (ROOT / "docs/code.md").read_text(encoding="utf-8"))
    assert len(found) > 20
    for path, names in found:
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^(def|class) {name}\b|^{name}\b", source, re.MULTILINE), (path, name)
