"""A model card as a reader of Markdown shows it."""

import re
from html import unescape

import pytest

from analysis.card import card

NAMES = [
    "a | b \\| &lt;b&gt; \\",
    "<img src=x onerror=alert(1)> ![picture](http://example.org/x.png) [link](http://example.org)",
    "**bold** _slanted_ ~~gone~~ `code` and ``more``",
    "# two\n\n# lines",
]
TAGS = {"h1", "h2", "p", "img", "table", "thead", "tbody", "tr", "th", "td", "code", "pre"}


@pytest.mark.parametrize("name", NAMES)
def test_a_card_shows_names_as_they_are_and_nothing_comes_of_their_markup(name):
    markdown_it = pytest.importorskip("markdown_it")
    origin = {"command": f"python {name}\n```\n# {name}", "commit": name, "device": name, "versions": {name: name}}
    config = {"arch": name, "data": "data", "dataset": name, name: name, "provenance": origin}
    result = {"accuracy": 0.5, "test_images": 10, "params": 1e6, "multiply_adds": 1e8, "classes": [name] * 3}
    text = card(result, config, ("normal",))
    page = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)

    shown = " ".join(name.split())
    headings = re.findall(r"<(h\d)>(.*?)</\1>", page)
    assert [unescape(heading) for _, heading in headings] == [f"{shown} on {shown}", "Recipe"]
    assert set(re.findall(r"<(\w+)", page)) <= TAGS
    assert re.findall(r'<img src="(.*?)"', page) == ["cells/normal.png", "curves.png"]
    cells = [unescape(re.sub("</?code>", "", cell)) for cell in re.findall("<td>(.*?)</td>", page)]
    rows = dict(zip(cells[::2], cells[1::2], strict=True))
    assert rows["device"] == rows["commit"] == shown and rows["versions"] == f"{shown} {shown}"
    assert rows["data"] == f"{shown}, 3 classes" and rows[f"--{shown}"] == shown
    (command,) = re.findall('<pre><code class="language-bash">(.*)</code></pre>', page, re.DOTALL)
    assert unescape(command) == f"{origin['command']}\n"
