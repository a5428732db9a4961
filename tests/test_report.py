"""The report page of a folder of runs: its content, its charts, and its use in a browser."""

import json
import re
import shutil
import subprocess
import sys
import time
from html import unescape
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from analysis.charts import Line, line_chart
from analysis.colors import METHODS, assign
from analysis.curves import leave_out_outliers
from analysis.page import build, references
from analysis.rows import load_published, published
from analysis.runs import load_entries
from lib.grid import expand, load_table
from search import methods as search_methods
from tests.helpers import ROOT, script, script_in_process, slowdown

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = {"DARTS": "darts", "Λ-DARTS": "lambda-darts", "FairDARTS": "fair-darts"}


@pytest.fixture(scope="module")
def unit(tmp_path_factory) -> Path:
    """The folder of a search and a retraining, like that of an entry in a table."""
    folder = tmp_path_factory.mktemp("unit")
    small = ("--dataset", "digits", "--init_channels", "2", "--batch_size", "256", "--epochs", "2")
    own = ("--space", "s2", "--layers", 4, "--keep_checkpoints", 2, "--save", folder / "search")
    search = script_in_process("search/train_search.py", *small, *own)
    assert search.returncode == 0, search.stderr
    own = ("--arch", folder / "search", "--layers", 3, "--save", folder / "retrain")
    retrain = script_in_process("train/train.py", *small, *own)
    assert retrain.returncode == 0, retrain.stderr
    return folder


def place(unit: Path, folder: Path, column: str, method: str, seed: int, accuracy: float, epochs: int = 2) -> None:
    """Copy the unit as another entry of a table, with the given accuracy and number of epochs."""
    shutil.copytree(unit, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "*.png", "*.gv"))
    about = {
        "table": "S1 to S4",
        "source": "RobustDARTS",
        "column": column,
        "method": method,
        "seed": seed,
        "published_for": {"space": "s5", "dataset": "cifar10", "method": NAMES.get(method, "none")},
        "scored": True,
        "steps": {"search": {"script": "search/train_search.py"}, "retrain": {"script": "train/train.py"}},
    }
    (folder / "unit.json").write_text(json.dumps(about), encoding="utf-8")
    score = {"command": "python train/test.py retrain", "accuracy": accuracy / 100, "loss": 1.0}
    (folder / "score.json").write_text(json.dumps(score))
    if epochs > 2:
        search, random = folder / "search", np.random.default_rng(seed)
        rows = pd.read_csv(search / "metrics.csv").iloc[[-1] * epochs]
        rows = rows.assign(epoch=range(1, epochs + 1), valid_accuracy=random.random(epochs), skip_connect_normal=3)
        rows.to_csv(search / "metrics.csv", index=False)
        with np.load(search / "alphas.npz") as alphas:
            shapes = {name: (epochs + 1, *a.shape[1:]) for name, a in alphas.items() if a.dtype.kind == "f"}
            grown = {**alphas, **{name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()}}
        np.savez(search / "alphas.npz", **grown)


@pytest.fixture(scope="module")
def table(unit, tmp_path_factory) -> Path:
    """A table of two columns and three methods with two or three seeds; one entry is unfinished and one not begun."""
    out = tmp_path_factory.mktemp("table")
    values = {"DARTS": (90.0, 91.0, 92.0), "Λ-DARTS": (92.0, 93.5, 96.0), "FairDARTS": (95.0, 89.0)}
    for column, name in (("S5 CIFAR-10", "s5-cifar-10"), ("S2", "s2")):
        for number, (method, accuracies) in enumerate(values.items()):
            for seed, accuracy in enumerate(accuracies):
                place(unit, out / name / str(number) / f"seed-{seed}", column, method, seed, accuracy)
    for entry, search in (("s2/0/seed-2", "search/genotype.json"), ("s2/1/seed-2", "search")):
        for path in (out / entry / name for name in ("score.json", "retrain", search)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    axes = {"columns": {"S5 CIFAR-10": {}, "S2": {}}, "methods": {key: {} for key in values}}
    about = {"scale": "tiny", "table": {"title": "S1 to S4", "source": "RobustDARTS", **axes}}
    (out / "table.yaml").write_text(yaml.safe_dump(about, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return out


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))


def test_the_page_shows_measured_and_published_accuracies_of_all_seeds(table):
    entries, problems = load_entries([table])
    finished = [entry for entry in entries if entry.finished]
    assert (len(entries), len(finished), problems) == (16, 14, [])
    entry = next(e for e in finished if (e.column, e.method, e.seed) == ("S2", "Λ-DARTS", 1))
    assert entry.scores["test accuracy"] == pytest.approx(93.5)
    assert entry.progress == {"search": (2, 2), "retrain": (2, 2)} and set(entry.pictures) == {"normal", "reduce"}

    page, problems, finished = build([table], "python analysis/report.py x y.html")
    text = text_of(page)
    assert not problems and not finished
    assert "14 of 16 entries finished" in text
    assert "91.00 ± 1.00" in text  # DARTS, 90 91 92
    assert "90.00 – 92.00" in text  # its interval: each end has a probability of 1/27 = 3.7 %
    assert "90.00, 91.00, 92.00" in text
    # the differences 2, 2.5 and 4 have equal signs, like 2 of the 8 assignments of signs
    assert "+2.83 p = 0.25, 3 pairs" in text
    assert "97.46 ± 0.049 (mean of seven runs; FairDARTS's repository)" in text
    assert text.count("not available") >= 4
    assert "python analysis/report.py x y.html" in text


def test_only_published_figures_of_the_same_method_space_and_data_are_shown():
    figures = [{"space": "s5", "dataset": "cifar10", "method": "darts", "metric": "a", "value": 1, "source": "x"}]
    same = {"space": "s5", "dataset": "cifar10", "method": "darts"}
    assert published(figures, same, "a") == "1.00 (x)"
    for other in ({**same, "space": "s1"}, {**same, "method": "idarts"}, {**same, "lambda_": 3}, {}):
        assert published(figures, other, "a") == "not available"
    assert published(figures, same, "b") == "not available"


@pytest.mark.parametrize("name", ["darts", "imagenet"])
def test_a_method_searches_the_space_of_its_published_figures(name):
    """The spaces of DARTS and DARTS- contain `none`; those of the other methods do not."""
    table, figures = load_table(name), load_published()
    units = expand(table, "paper", seeds=1, columns=[next(iter(table["columns"]))])
    for unit in units:
        method = unit.steps["search"]["method"]
        space = "darts" if method in ("darts", "darts-2nd", "darts-minus") else "s5"
        assert unit.published_for["space"] == unit.steps["search"]["space"] == space
        assert {figure["space"] for figure in figures if figure.get("method") == method} <= {space, "nasbench201"}
    found = {unit.method: published(figures, dict(unit.published_for), "test accuracy") for unit in units}
    expected = (
        {"DARTS, second order": "97.24", "FairDARTS": "97.46"} if name == "darts" else {"DARTS, second order": "73.30"}
    )
    assert {method: text.split()[0] for method, text in found.items() if text != "not available"} == expected


def test_references_match_the_spaces_and_the_data_set_of_the_rows():
    figures, darts = load_published(), {"space": "darts", "dataset": "cifar10", "method": "darts"}
    s5, imagenet = ({**darts, **other} for other in ({"space": "s5"}, {"dataset": "imagenet"}))

    def names(*origins: dict, metric: str = "test accuracy") -> list[str]:
        return [name for name, *_ in references(figures, [*origins], metric)]

    cells = ["FairDARTS_a", "FairDARTS_b", "FairDARTS_d", "FairDARTS, mean of seven runs"]
    assert names(s5) == cells
    assert names(darts, s5) == cells + names(darts) and "PC-DARTS" in names(darts)
    assert names(imagenet) == ["PC-DARTS", "FairDARTS-C"]
    assert names({**darts, "space": "s2"}) == names({}) == []
    table = {"space": "nasbench201", "dataset": "digits", "method": "darts"}
    assert names(table, metric="CIFAR-10 test") == ["best cell of the table", "all skip connections"]


def test_single_runs_and_unfinished_runs_are_reported_too(unit, tmp_path):
    shutil.copytree(unit / "search", tmp_path / "run", ignore=shutil.ignore_patterns("genotype.json"))
    page, _, finished = build([tmp_path / "run"], "c", refresh=5)
    assert "S2 on digits" in page and "location.reload(), 5000" in page and not finished
    page, _, finished = build([unit / "retrain"], "c")
    assert "Retraining on digits" in page and "location.reload" not in page and finished


def test_folders_that_cannot_be_read_are_named_and_left_out(table, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(table / "s2/0", runs / "s2/0")
    (runs / "other").mkdir()
    (runs / "other/config.yaml").write_text("a: !!python/object/apply:os.system ['touch /tmp/hacked']\n")
    (runs / "s2/0/seed-1/search/metrics.csv").write_text("epoch,train_loss\n1,x\n")
    page, problems, _ = build([runs], "c")
    assert [Path(problem.partition(" could not be read")[0]).name for problem in problems] == ["other", "seed-1"]
    assert "1 of 2 entries" in text_of(page)


def test_runs_of_two_sizes_of_a_table_do_not_share_a_row(unit, tmp_path):
    for size, accuracy in (("small", 50), ("large", 90)):
        place(unit, tmp_path / size / "s2" / "darts" / "seed-0", "S2", "DARTS", 0, accuracy)
    page, _, _ = build([tmp_path], "c")
    text = text_of(page)
    assert "50.00" in text and "90.00" in text and text.count("1 of 1") == 2


def test_text_from_a_run_is_escaped_and_never_executed(unit, tmp_path):
    place(unit, tmp_path / "runs" / "a", r"<img src=x onerror=alert(1)>\d", r"<script>hacked = 1</script>\d", 0, 90)
    page, _, _ = build([tmp_path / "runs"], "c & d")
    assert "<script>hacked" not in page and "<img src=x" not in page and "c &amp; d" in page


def test_the_colors_of_methods_differ_for_every_kind_of_color_vision():
    """Every two colors differ in OKLab for each kind of dichromacy (Machado et al., 2009), and from the background."""
    assert set(METHODS) <= set(search_methods.METHODS)

    def rgb(color: str) -> np.ndarray:  # linear RGB
        parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)

    def oklab(linear: np.ndarray) -> np.ndarray:
        cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
        axes = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
        return np.array(axes) @ np.cbrt(np.array(cones) @ np.clip(linear, 0, 1))

    visions = {
        "normal": np.eye(3),
        "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
        "deutan": [[0.3673, 0.8606, -0.2279], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
        "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
    }
    for theme, background in enumerate(("#ffffff", "#1c2024")):
        colors = [rgb(pair[theme]) for pair in METHODS.values()]
        for vision in map(np.array, visions.values()):
            seen = [oklab(vision @ color) for color in colors]
            # for Okabe and Ito's eight colors, the minimum is 0.076
            assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 0.1
        luminances = [np.dot((0.2126, 0.7152, 0.0722), color) + 0.05 for color in (rgb(background), *colors)]
        assert all(max(own / luminances[0], luminances[0] / own) >= 3 for own in luminances[1:])


def test_each_row_has_the_color_of_its_method_and_no_two_rows_share_one():
    assert assign({"A": "idarts", "B": "darts"}) == {"A": "idarts", "B": "darts"}
    ablation = assign({f"λ {number}": "lambda-darts" for number in range(8)})
    assert ablation["λ 0"] == "lambda-darts" and sorted(ablation.values()) == sorted(METHODS)
    assert assign({"none": "", "Λ-DARTS": "lambda-darts"})["Λ-DARTS"] == "lambda-darts"


@pytest.mark.parametrize(("low", "high", "integer"), [(-0.0004, 0.0001, False), (0, 1, True), (93.001, 93.004, False)])
def test_tick_labels_are_distinct(low, high, integer):
    drawing = line_chart([Line(np.arange(3), np.array([low, high, low]), "darts", "a")], "chart", integer)
    labels = re.findall(r"text-anchor: end[^>]*>([^<]*)</text>", drawing)  # labels of the y axis
    assert len(labels) == len(set(labels)) >= 2
    assert not integer or all(label.isdigit() for label in labels)


def test_an_accuracy_far_below_the_others_is_drawn_as_a_triangle_at_the_bottom_of_the_axis():
    axes = Figure().add_subplot()
    axes.plot(np.arange(12), [10, *range(85, 96)])
    leave_out_outliers(axes)
    assert 80 < axes.get_ylim()[0] < 85
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[0, axes.get_ylim()[0]]])


def test_a_chart_uses_the_colors_of_the_page_and_names_its_curves():
    values = np.array([0.1, 0.25, 0.5])
    drawing = line_chart([Line(np.arange(3), values, "idarts", "a <b> & c")], "alignment")
    assert "var(--idarts)" in drawing and "var(--grid)" in drawing and "<title>a &lt;b&gt; &amp; c</title>" in drawing
    assert 'class="idarts"' in drawing and 'aria-label="alignment"' in drawing
    # the curve has three equally spaced points and rises, so y in the SVG falls
    path = re.search(r'class="idarts"><title>.*?</title>\s*<path d="([^"]+)"', drawing)[1]
    x, y = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), dtype=float).T
    assert np.diff(x)[0] == pytest.approx(np.diff(x)[1], abs=0.02) and (np.diff(y) < 0).all()
    assert np.diff(y)[1] / np.diff(y)[0] == pytest.approx(0.25 / 0.15, rel=1e-2)


def test_watching_ends_when_the_runs_are_finished(unit, tmp_path):
    shutil.copytree(unit / "search", tmp_path / "run", ignore=shutil.ignore_patterns("genotype.json"))
    out = tmp_path / "page.html"
    command = [sys.executable, "analysis/report.py", tmp_path / "run", out, "--watch", "--every", "1"]
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True) as watching:
        while not out.exists():
            time.sleep(0.1)
            assert watching.poll() is None
        assert "location.reload" in out.read_text(encoding="utf-8")
        shutil.copy(unit / "search" / "genotype.json", tmp_path / "run")
        said, _ = watching.communicate(timeout=120)
    assert watching.returncode == 0 and said.count(str(out)) >= 2
    assert "location.reload" not in out.read_text(encoding="utf-8")


#: runs a script and prints its CPU time in seconds and its peak memory in GiB
MEASURED = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    kib = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(used.ru_utime + used.ru_stime, int(kib) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from Linux's /proc")
def test_three_hundred_runs_take_less_than_20_seconds_and_a_gigabyte(unit, tmp_path):
    for number in range(300):
        column, method, seed = number // 50, number // 5 % 10, number % 5
        folder = tmp_path / "runs" / str(column) / str(method) / f"seed-{seed}"
        place(unit, folder, f"column {column}", f"method {method}", seed, 90 + method / 7 + seed / 10, epochs=50)
    out = tmp_path / "page.html"
    result = script("-c", MEASURED, "analysis/report.py", tmp_path / "runs", out)
    assert result.returncode == 0, result.stderr
    seconds, memory = map(
        float, result.stdout.splitlines()[-1].split()
    )  # CPU time, so that a busy machine does not matter
    assert seconds < 20 * slowdown() and memory < 1
    assert "300 of 300" in text_of(out.read_text(encoding="utf-8"))


# In a browser


@pytest.fixture(scope="module")
def page(table, tmp_path_factory):
    """The page of the table in a browser. The page must not write to the console or load other files."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    out = tmp_path_factory.mktemp("page") / "page.html"
    result = script_in_process("analysis/report.py", table, out)
    assert result.returncode == 0, result.stderr
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page, said = browser.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((out.as_uri(), "data:")) or said.append(asked.url))
        page.goto(out.as_uri())
        yield page
        browser.close()
    assert not said


def test_tabs_open_by_mouse_and_by_keyboard(page):
    def opened() -> list[str]:
        return [
            panel.get_attribute("id") for panel in page.query_selector_all('[role="tabpanel"]') if panel.is_visible()
        ]

    assert opened() == ["results"]
    page.click("#tab-cells")
    assert opened() == ["cells"] and page.url.endswith("#cells")
    for key, tab in (("ArrowLeft", "alpha"), ("Home", "results"), ("ArrowLeft", "runs")):
        page.keyboard.press(key)
        assert opened() == [tab]
    page.reload()
    assert opened() == ["runs"]


def test_tables_sort_by_mouse_and_by_keyboard(page):
    def values() -> list[float]:
        rows = page.query_selector_all("#results table >> nth=0 >> tbody tr")
        return [float(row.query_selector_all("th, td")[2].inner_text().split()[0]) for row in rows]

    page.click("#tab-results")
    assert values() == [91.0, 93.83, 92.0]
    heading = page.locator("#results table >> nth=0 >> thead th >> nth=2")
    heading.locator("button").click()
    assert values() == [91.0, 92.0, 93.83] and heading.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert values() == [93.83, 92.0, 91.0] and heading.get_attribute("aria-sort") == "descending"


def test_a_method_can_be_hidden_and_a_column_selected(page):
    page.click("#tab-curves")
    curve = page.locator("#curves svg .lambda-darts path").first
    page.focus('#curves .key[data-series="lambda-darts"]')
    page.keyboard.press("Space")
    assert not curve.is_visible() and page.locator("#curves svg .darts path").first.is_visible()
    page.keyboard.press("Space")
    assert curve.is_visible()
    all_columns = page.input_value("#column")
    page.select_option("#column", "s1")
    shown = [heading.inner_text() for heading in page.query_selector_all("#curves h2") if heading.is_visible()]
    assert len(shown) == 1 and shown[0].startswith("S2")
    page.select_option("#column", all_columns)


def test_every_picture_is_drawn(page):
    for tab in ("curves", "alpha", "cells"):
        page.click(f"#tab-{tab}")
        boxes = [picture.bounding_box() for picture in page.query_selector_all(f"#{tab} figure :is(svg, img)")]
        assert boxes and all(box["width"] > 200 and box["height"] > 20 for box in boxes), tab
