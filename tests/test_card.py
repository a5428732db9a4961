"""Model cards, as rendered from Markdown."""

import re
from html import unescape

import pytest

from analysis.card import card

NAMES = [
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|",
    "runs/*_a_* [1] <2>",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_shows_names_with_special_characters_unchanged(name):
    markdown_it = pytest.importorskip("markdown_it")
    origin = {
        "command": f"python train/train.py --arch '{name}'",
        "commit": "1",
        "device": name,
        "versions": {"a": "2"},
    }
    config = {"arch": name, "data": "data", "dataset": name, "teacher": name, "provenance": origin}
    result = {"accuracy": 0.5, "test_images": 10, "params": 1e6, "multiply_adds": 1e8, "classes": [name] * 3}
    text = card(result, config, ("normal",))
    page = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)

    headings = re.findall(r"<(h\d)>(.*?)</\1>", page)
    assert [unescape(heading) for _, heading in headings] == [f"{name} on {name}", "Recipe"]
    assert re.findall(r'<img src="(.*?)"', page) == ["cells/normal.png", "curves.png"]
    cells = [unescape(re.sub("</?code>", "", cell)) for cell in re.findall("<td>(.*?)</td>", page)]
    rows = dict(zip(cells[::2], cells[1::2], strict=True))
    assert rows["device"] == rows["--teacher"] == name and rows["data"] == f"{name}, 3 classes"
    (command,) = re.findall('<pre><code class="language-bash">(.*)</code></pre>', page, re.DOTALL)
    assert unescape(command) == f"{origin['command']}\n"
