"""The page of a folder of runs, read as a person reads it: in a browser."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from html import unescape
from itertools import combinations
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from analysis.charts import Line, line_chart
from analysis.colors import METHODS, assign
from analysis.curves import leave_out_outliers
from analysis.page import build, published
from analysis.runs import load_entries
from search.settings import SearchSettings
from tests.helpers import ROOT, script, script_in_process, slower

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = {"DARTS": "darts", "Λ-DARTS": "lambda-darts", "FairDARTS": "fair-darts"}


@pytest.fixture(scope="module")
def unit(tmp_path_factory) -> Path:
    """A search and a retraining of a table, made by its scripts' main functions."""
    folder = tmp_path_factory.mktemp("unit")
    small = ["--dataset", "digits", "--init_channels", "2", "--batch_size", "256", "--epochs", "2"]
    search = script_in_process(
        "search/train_search.py",
        *small,
        "--space",
        "s2",
        "--layers",
        4,
        "--keep_checkpoints",
        2,
        "--save",
        folder / "search",
    )
    assert search.returncode == 0, search.stderr
    retrain = script_in_process(
        "train/train.py", *small, "--arch", folder / "search", "--layers", 3, "--save", folder / "retrain"
    )
    assert retrain.returncode == 0, retrain.stderr
    return folder


def place(unit: Path, folder: Path, column: str, method: str, seed: int, accuracy: float, epochs: int = 2) -> None:
    """A copy of the unit as another entry, with other figures and so many epochs."""
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
        search = folder / "search"
        with open(search / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        random = np.random.default_rng(seed)
        with open(search / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for epoch in range(1, epochs + 1):
                writer.writerow(
                    {**rows[-1], "epoch": epoch, "valid_accuracy": random.random(), "skip_connect_normal": 3}
                )
        with np.load(search / "alphas.npz") as alphas:
            grown = {name: random.normal(size=(epochs + 1, *a.shape[1:])).astype("f4") for name, a in alphas.items()}
        np.savez(search / "alphas.npz", **grown)


@pytest.fixture(scope="module")
def table(unit, tmp_path_factory) -> Path:
    """Two columns, three methods, two or three seeds; one entry begun, one waiting."""
    out = tmp_path_factory.mktemp("table")
    values = {"DARTS": (90.0, 91.0, 92.0), "Λ-DARTS": (92.0, 93.5, 96.0), "FairDARTS": (95.0, 89.0)}
    for column in ("S5 CIFAR-10", "S2"):
        for number, (method, figures) in enumerate(values.items()):
            for seed, figure in enumerate(figures):
                place(
                    unit,
                    out / column.lower().replace(" ", "-") / str(number) / f"seed-{seed}",
                    column,
                    method,
                    seed,
                    figure,
                )
    begun = out / "s2" / "0" / "seed-2"
    for name in ("score.json", "retrain"):
        shutil.rmtree(begun / name) if (begun / name).is_dir() else (begun / name).unlink()
    (begun / "search" / "genotype.json").unlink()
    shutil.rmtree(out / "s2" / "1" / "seed-2" / "search")
    shutil.rmtree(out / "s2" / "1" / "seed-2" / "retrain")
    (out / "s2" / "1" / "seed-2" / "score.json").unlink()
    axes = {"columns": {"S5 CIFAR-10": {}, "S2": {}}, "methods": {key: {} for key in values}}
    about = {"scale": "tiny", "table": {"title": "S1 to S4", "source": "RobustDARTS", **axes}}
    (out / "table.yaml").write_text(yaml.safe_dump(about, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return out


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))


def test_the_entries_of_a_table_are_read_with_their_figures(table):
    entries, problems = load_entries([table])
    assert len(entries) == 16 and not problems
    finished = [entry for entry in entries if entry.finished]
    assert len(finished) == 14
    entry = next(e for e in finished if (e.column, e.method, e.seed) == ("S2", "Λ-DARTS", 1))
    assert entry.scores["test accuracy"] == pytest.approx(93.5)
    assert entry.progress == {"search": (2, 2), "retrain": (2, 2)}
    assert [command.split()[1] for command in entry.commands] == [
        "search/train_search.py",
        "train/train.py",
        "train/test.py",
    ]
    assert set(entry.pictures) == {"normal", "reduce"}


def test_the_page_sets_measured_beside_published_with_all_seeds(table):
    page, problems, finished = build([table], "python analysis/report.py x y.html")
    text = text_of(page)
    assert not problems and not finished
    assert "14 of 16 entries finished" in text
    assert "91.00 ± 1.00" in text  # DARTS, 90 91 92
    assert "90.00 – 92.00" in text  # its interval: 1/27 = 3.7 % for either end
    assert "90.00, 91.00, 92.00" in text
    # differences 2, 2.5, 4: all signs alike, 2 of 8
    assert "+2.83 p = 0.25, 3 pairs" in text
    assert "97.46 ± 0.049 (mean of seven runs; FairDARTS's repository)" in text
    assert text.count("not available") >= 4
    assert "python analysis/report.py x y.html" in text
    assert "search 2 of 2 epochs" in text and "waiting" in text


def test_only_figures_of_the_same_method_space_and_data_are_set_beside():
    figures = [{"space": "s5", "dataset": "cifar10", "method": "darts", "metric": "a", "value": 1, "source": "x"}]
    same = {"space": "s5", "dataset": "cifar10", "method": "darts"}
    assert published(figures, same, "a") == "1.00 (x)"
    for other in ({**same, "space": "s1"}, {**same, "method": "idarts"}, {**same, "lambda_": 3}, {}):
        assert published(figures, other, "a") == "not available"
    assert published(figures, same, "b") == "not available"


def test_every_published_figure_is_one_that_was_read_in_its_source():
    figures = json.loads((ROOT / "published_results.json").read_text(encoding="utf-8"))
    for figure in figures:
        assert {"space", "metric", "value", "source"} <= set(figure)
        assert ("reference" in figure) != ("method" in figure)


def test_a_run_that_stands_alone_is_reported_too_and_one_that_goes_on(unit, tmp_path):
    shutil.copytree(unit / "search", tmp_path / "run", ignore=shutil.ignore_patterns("genotype.json"))
    page, _, finished = build([tmp_path / "run"], "c", refresh=5)
    assert "S2 on digits" in page and "location.reload(), 5000" in page and not finished
    page, _, finished = build([unit / "retrain"], "c")
    assert "Retraining on digits" in page and "location.reload" not in page and finished


def test_folders_of_others_and_damaged_runs_are_named_and_not_read(table, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(table / "s2", runs / "s2")
    (runs / "other").mkdir()
    (runs / "other" / "config.yaml").write_text("a: !!python/object/apply:os.system ['touch /tmp/hacked']\n")
    (runs / "third").mkdir()
    (runs / "third" / "config.yaml").write_text("seed: 1\nepochs: 3\n")
    damaged = runs / "s2" / "0" / "seed-1" / "search" / "metrics.csv"
    damaged.write_text("epoch,train_loss\n1,x\n")
    _, problems, _ = build([runs], "c")
    named = [Path(problem.partition(": not read")[0]).name for problem in problems]
    assert named == ["other", "seed-1", "third"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("unit.json", '{"seed": 1e999}'),
        ("score.json", '{"accuracy": "high", "command": ""}'),
        ("score.json", "null"),
        ("search/hessian.csv", "a,b\n1,2\n"),
        ("search/landscape.csv", "epoch,x,y,loss,accuracy\n1,0,0,1,1\n"),  # and no .json beside it
        ("search/genotype.json", "{}"),
        ("search/config.yaml", "[" * 5_000),
        ("retrain/result.json", '{"accuracy": 1}'),
    ],
)
def test_a_damaged_file_costs_its_own_run_and_no_other(table, tmp_path, file, content):
    runs = tmp_path / "r"
    shutil.copytree(table / "s2" / "0" / "seed-0", runs / "s2" / "0" / "seed-0")
    shutil.copytree(table / "s2" / "0" / "seed-1", runs / "s2" / "0" / "seed-1")
    (runs / "table.yaml").write_text("- 1\n")  # nor does the table's own
    (runs / "s2" / "0" / "seed-1" / file).write_text(content)
    page, problems, _ = build([runs], "c")
    assert len(problems) == 1 and "seed-1: not read" in problems[0]
    assert "1 of 1 entries" in text_of(page)


def test_runs_of_two_sizes_of_a_table_do_not_share_a_row(unit, tmp_path):
    for size, accuracy in (("small", 50), ("large", 90)):
        place(unit, tmp_path / size / "s2" / "darts" / "seed-0", "S2", "DARTS", 0, accuracy)
    page, _, _ = build([tmp_path], "c")
    text = text_of(page)
    assert "50.00" in text and "90.00" in text and text.count("1 of 1") == 2


def test_what_a_run_says_is_shown_and_never_executed(unit, tmp_path):
    place(unit, tmp_path / "runs" / "a", r"<img src=x onerror=alert(1)>\d", r"<script>hacked = 1</script>\d", 0, 90)
    page, _, _ = build([tmp_path / "runs"], "c & d")
    assert "<script>hacked" not in page and "<img src=x" not in page and "c &amp; d" in page


#: how a run with a link is made: a part of it moves away, and a link to it takes its place
LINKS = ["search/cells/normal.svg", "search/metrics.csv", "search/config.yaml", "search/cells", "search", "score.json"]


@pytest.mark.parametrize("part", LINKS)
def test_a_link_in_a_run_folder_is_named_and_brings_nothing_onto_the_page(table, tmp_path, part):
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    for seed in (0, 1):
        shutil.copytree(table / "s2" / "0" / f"seed-{seed}", runs / "s2" / "0" / f"seed-{seed}")
    place = runs / "s2" / "0" / "seed-1" / part
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    if part.endswith(".svg"):
        elsewhere.write_text("<svg>root:x:0:0</svg>")
    page, problems, _ = build([runs], "c")
    assert len(problems) == 1 and f"{part} is a link" in problems[0] and "seed-1" in problems[0]
    assert "1 of 1 entries" in text_of(page) and "root:x" not in page


def test_a_pipe_in_the_place_of_a_drawing_is_not_read(table, tmp_path):
    shutil.copytree(table / "s2" / "0" / "seed-0", tmp_path / "r" / "seed-0")
    (tmp_path / "r/seed-0/search/cells/normal.svg").unlink()
    os.mkfifo(tmp_path / "r/seed-0/search/cells/normal.svg")
    with pytest.raises(ValueError, match=r"normal\.svg is a link or a special file"):
        build([tmp_path / "r"], "c")


def test_a_section_without_an_epoch_says_so(unit, tmp_path):
    page, _, _ = build([unit / "retrain"], "c")
    assert text_of(page).count("No search here has finished an epoch.") == 2
    shutil.copytree(unit / "retrain", tmp_path / "run", ignore=shutil.ignore_patterns("cells"))
    assert "No cell here is drawn yet." in text_of(build([tmp_path / "run"], "c")[0])


def test_each_method_has_one_color_that_any_color_vision_tells_apart():
    """Against all others in OKLab, as seen with each kind of dichromacy (Machado et al., 2009), and on the page."""
    assert list(METHODS) == list(get_args(get_type_hints(SearchSettings)["method"]))

    def rgb(color: str) -> np.ndarray:  # linear
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
            # Okabe and Ito's eight colors are 0.076 apart
            assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 0.1
        luminances = [np.dot((0.2126, 0.7152, 0.0722), color) + 0.05 for color in (rgb(background), *colors)]
        assert all(max(own / luminances[0], luminances[0] / own) >= 3 for own in luminances[1:])


def test_a_row_has_its_methods_color_and_no_other_row_has_it():
    assert assign({"A": "idarts", "B": "darts"}) == {"A": "idarts", "B": "darts"}
    ablation = assign({f"λ {number}": "lambda-darts" for number in range(8)})
    assert ablation["λ 0"] == "lambda-darts" and sorted(ablation.values()) == sorted(METHODS)
    assert assign({"none": "", "Λ-DARTS": "lambda-darts"})["Λ-DARTS"] == "lambda-darts"


def labels_of(drawing: str) -> list[str]:
    """The tick labels of the axis of y, which stand left of it."""
    return re.findall(r"text-anchor: end[^>]*>([^<]*)</text>", drawing)


@pytest.mark.parametrize(
    ("low", "high", "integer"),
    [(0.0012, 0.0028, False), (-0.0004, 0.0001, False), (0, 1, True), (93.001, 93.004, False)],
)
def test_no_tick_label_is_repeated_and_minus_signs_are_typographic(low, high, integer):
    drawing = line_chart([Line(np.arange(3), np.array([low, high, low]), "darts", "a")], "chart", integer)
    labels = labels_of(drawing)
    assert len(labels) == len(set(labels)) >= 2
    assert not any("-" in label for label in labels)
    assert not integer or all(re.fullmatch("−?[0-9]+", label) for label in labels)
    assert low >= 0 or any(label.startswith("−") for label in labels)


def test_an_accuracy_far_below_the_others_is_a_triangle_at_the_foot_of_the_axis():
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot(np.arange(12), [10, *range(85, 96)])
    leave_out_outliers(axes)
    assert 80 < axes.get_ylim()[0] < 85
    line, triangles = axes.lines
    np.testing.assert_array_equal(triangles.get_xydata(), [[0, axes.get_ylim()[0]]])
    assert line.get_color() == triangles.get_color()
    leave_out_outliers(axes := figure.add_subplot())  # a chart without curves stays as it is


def test_a_chart_follows_the_pages_colors_and_names_its_curves():
    values = np.array([0.1, 0.25, 0.5])
    drawing = line_chart([Line(np.arange(3), values, "idarts", "a <b> & c")], "alignment")
    assert "var(--idarts)" in drawing and "var(--grid)" in drawing and "<title>a &lt;b&gt; &amp; c</title>" in drawing
    assert 'class="idarts"' in drawing and 'aria-label="alignment"' in drawing
    assert "#01010" not in drawing and "#02020" not in drawing and "#00001" not in drawing
    identifiers = re.findall(r' id="([^"]+)"', drawing)
    assert len(set(identifiers)) == len(identifiers)
    # the curve itself: three points, equally far apart, rising (y falls)
    path = re.search(r'class="idarts"><title>.*?</title>\s*<path d="([^"]+)"', drawing)[1]
    x, y = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), dtype=float).T
    assert np.diff(x)[0] == pytest.approx(np.diff(x)[1], abs=0.02) and (np.diff(y) < 0).all()
    assert np.diff(y)[1] / np.diff(y)[0] == pytest.approx(0.25 / 0.15, rel=1e-2)


def test_watching_ends_with_the_runs(unit, tmp_path):
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


#: runs a script and says what its process used: seconds of computing, GiB. Memory is Linux's own count, for that of
#: rusage begins with the parent's.
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
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by Linux")
def test_three_hundred_runs_take_less_than_20_seconds_and_a_gigabyte(unit, tmp_path):
    for number in range(300):
        column, method, seed = number // 50, number // 5 % 10, number % 5
        folder = tmp_path / "runs" / str(column) / str(method) / f"seed-{seed}"
        place(unit, folder, f"column {column}", f"method {method}", seed, 90 + method / 7 + seed / 10, epochs=50)
    out = tmp_path / "page.html"
    begin = time.perf_counter()
    result = script("-c", MEASURED, "analysis/report.py", tmp_path / "runs", out)
    assert result.returncode == 0, result.stderr
    seconds, memory = map(float, result.stdout.splitlines()[-1].split())  # seconds: a busy machine does not count
    passed, size = time.perf_counter() - begin, out.stat().st_size / 2**20
    print(f"300 run folders: {seconds:.1f} s of computing in {passed:.1f} s, {memory:.2f} GiB, page of {size:.1f} MiB")
    assert seconds < 20 * slower() and memory < 1
    assert "300 of 300" in text_of(out.read_text(encoding="utf-8"))


# --- in a browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(table, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("page") / "page.html"
    result = script_in_process("analysis/report.py", table, out)
    assert result.returncode == 0, result.stderr
    return out.as_uri()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1440, 900, "light"), id="wide"),
        pytest.param((390, 844, "dark"), id="phone", marks=pytest.mark.slow),
    ],
)
def opened(browser, address, request):
    """The page, wide or on a phone, and all that it says to the console or asks for. Loading it costs a second."""
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda asked: None if asked.url == address or asked.url.startswith("data:") else said.append(asked.url),
    )
    page.goto(address)
    yield page, said
    context.close()


@pytest.fixture
def page(opened):
    """The open page, on its first tab; it must say nothing to the console and ask for nothing."""
    page, said = opened
    page.click("#tab-results")
    yield page
    assert not said


def selected(page) -> str:
    (tab,) = page.query_selector_all('[role="tab"][aria-selected="true"]')
    (panel,) = [p for p in page.query_selector_all('[role="tabpanel"]') if p.is_visible()]
    assert tab.get_attribute("aria-controls") == panel.get_attribute("id")
    return panel.get_attribute("id")


def test_tabs_open_by_mouse_and_by_keyboard(page):
    assert selected(page) == "results"
    page.click("#tab-cells")
    assert selected(page) == "cells" and page.url.endswith("#cells")
    page.focus("#tab-cells")
    for key, tab in (
        ("ArrowLeft", "alpha"),
        ("Home", "results"),
        ("ArrowLeft", "runs"),
        ("ArrowRight", "results"),
        ("End", "runs"),
    ):
        page.keyboard.press(key)
        assert selected(page) == tab
        assert page.evaluate("document.activeElement.id") == f"tab-{tab}"
    page.reload()
    assert selected(page) == "runs"
    # One stop for all tabs, then on into the page.
    assert page.evaluate("[...document.querySelectorAll('[role=tab]')].filter((tab) => tab.tabIndex === 0).length") == 1


def column_of(page, number: int) -> list[str]:
    rows = page.query_selector_all("#results table >> nth=0 >> tbody tr")
    return [row.query_selector_all("th, td")[number].inner_text().strip() for row in rows]


def test_tables_sort_by_mouse_and_by_keyboard(page):
    assert [name.strip() for name in column_of(page, 0)] == ["DARTS", "Λ-DARTS", "FairDARTS"]
    heading = page.locator("#results table >> nth=0 >> thead th >> nth=2")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text.split()[0]) for text in column_of(page, 2)] == [91.0, 92.0, 93.83]
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(text.split()[0]) for text in column_of(page, 2)] == [93.83, 92.0, 91.0]
    page.locator("#results table >> nth=0 >> thead th >> nth=0 >> button").click()
    assert heading.get_attribute("aria-sort") == "none"
    assert column_of(page, 0) == sorted(column_of(page, 0), key=str.lower)


def test_a_method_is_hidden_and_shown_and_a_column_picked(page):
    page.click("#tab-curves")
    curve = page.locator("#curves svg .lambda-darts path").first
    assert curve.is_visible()
    page.focus('#curves .key[data-series="lambda-darts"]')
    page.keyboard.press("Space")
    assert not curve.is_visible() and page.locator("#curves svg .darts path").first.is_visible()
    page.keyboard.press("Space")
    assert curve.is_visible()
    all_columns = page.input_value("#column")
    page.select_option("#column", "s1")
    shown = [h.inner_text() for h in page.query_selector_all("#curves h2") if h.is_visible()]
    assert len(shown) == 1 and shown[0].startswith("S2")
    page.select_option("#column", all_columns)


def test_the_theme_follows_the_system_and_the_button(page):
    def paper() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    first = paper()
    assert (sum(map(int, re.findall(r"\d+", first)[:3])) < 200) == dark
    page.click("#theme")
    assert paper() != first


def test_nothing_is_wider_than_the_screen_and_every_picture_is_drawn(page):
    for tab in ("results", "curves", "alpha", "cells", "cost", "runs"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        for picture in page.query_selector_all(f"#{tab} figure svg, #{tab} figure img"):
            box = picture.bounding_box()
            assert box["width"] > 200 and box["height"] > 20, tab
    page.click("#tab-cells")
    page.wait_for_function("document.querySelector('#cells img').complete")
    assert page.evaluate("document.querySelector('#cells img').naturalWidth") > 50


def test_buttons_and_regions_have_names(page):
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, select, [role=img], [role=region], img')].filter((element) =>
            !(element.textContent.trim() || element.ariaLabel || element.alt || element.labels?.length)).length"""
    )
    assert nameless == 0
    assert page.evaluate("document.documentElement.lang") == "en"
