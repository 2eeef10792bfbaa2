"""The report: complete in itself, safe with hostile names, and equal to the result's frames."""

import base64
import html
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
import torch

from ml_debugger.core import task as tasks
from ml_debugger.core.errors import InputError, StoreError, TaskNotInstalledError
from ml_debugger.core.evaluation import report
from ml_debugger.core.evaluation.report_page import maps, plots
from ml_debugger.core.evaluation.report_page.section import (
    Box,
    Picture,
    Section,
    Style,
    Table,
    View,
)
from ml_debugger.core.evaluation.report_page.thumbnail import Thumbnails, data_uri, picture_view
from ml_debugger.core.evaluation.result import Result

Image = pytest.importorskip("PIL.Image")

HOSTILE = "</script><img src=x onerror=alert(1)><!--{{ 7*7 }}\"'&"


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def figures_of(text):
    found = re.findall(r'id="figure-(\w+)">(.*?)</script>', text, re.S)
    return {name: json.loads(content) for name, content in found}


@pytest.fixture(scope="module")
def result(evaluated) -> Result:
    return evaluated[1]


@pytest.fixture(scope="module")
def text(result) -> str:
    return report.render_report(result)


@pytest.fixture
def hostile(result, tmp_path) -> Result:
    """The same result with every text that a user can choose made hostile."""
    copy = tmp_path / "hostile"
    shutil.copytree(result.folder, copy)
    content = json.loads((copy / "result.json").read_text())
    content |= {
        "model_name": HOSTILE,
        "version_name": HOSTILE,
        "result_name": HOSTILE,
        "class_names": [HOSTILE] * 4,
        "notes": [HOSTILE],
        "layers": {HOSTILE: HOSTILE},
        "dataset_types": [HOSTILE],
        "runs": [HOSTILE],
        "options": {HOSTILE: HOSTILE},
        "fields": [HOSTILE],
    }
    (copy / "result.json").write_text(json.dumps(content))
    table = result.to_arrow()
    n = len(table)
    for name in ("input_id", "dataset_type", "run"):
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array([HOSTILE] * n))
    at = table.column_names.index("camera")
    table = table.set_column(at, HOSTILE, pa.array([HOSTILE] * n))
    import pyarrow.parquet as pq

    pq.write_table(table, copy / "units.parquet")
    return Result.load(copy)


def test_nothing_is_fetched(text):
    page = Page(text)
    for tag, attributes in page.elements:
        for name in ("src", "href", "data", "action", "poster", "srcset", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name, value)
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
    styles = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    assert "url(" not in styles
    assert "@import" not in styles
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "connect" not in policy


def test_plotly_is_inlined_once(text):
    assert len(re.findall(r"<script>", text)) == 2  # plotly itself, and the loop that draws
    assert text.count("plotly.js v") <= 2


def test_hostile_names_stay_text(hostile):
    page = Page(report.render_report(hostile, title=HOSTILE))
    assert not page.all("img")
    assert len(page.all("script")) == len(figures_of(report.render_report(hostile))) + 2
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
    assert HOSTILE in "".join(page.texts)
    assert "49" not in page.all("title")
    drawn = figures_of(report.render_report(hostile))["confusion"]
    for label in drawn["layout"]["xaxis"]["ticktext"]:
        assert "<" not in label


def test_hostile_ids_with_pictures(hostile):
    page = Page(report.render_report(hostile, images=lambda _id: np.zeros((4, 4))))
    assert {attributes["src"][:22] for attributes in page.all("img")} == {"data:image/png;base64,"}


def test_the_page_says_what_the_frames_say(result, text):
    said = Page(text).text
    summary = result.summary()
    assert report.percent(summary.accuracy) in said
    assert f"{summary.auroc:.3f}" in said
    for row in result.zones().itertuples():
        assert row.zone in said
        if row.rule:
            assert row.rule in said
    for note in result.notes:
        assert note in said
    for code in result.error_codes()["code"][:12]:
        assert code in said
    for name in result.errors()["input_id"][:5]:
        assert name in said
    for row in result.baselines().itertuples():
        assert report.figure(row.auroc) in said
        assert f"{report.figure(row.auroc_low)} to {report.figure(row.auroc_high)}" in said
        if row.name != "error_proba":
            gain = f"{report.figure(row.auroc_gain_low)} to {report.figure(row.auroc_gain_high)}"
            assert gain in said


def test_figures_show_the_numbers_of_the_frames(result, text):
    drawn = figures_of(text)
    zones = result.zones()
    bars, points = drawn["zones"]["data"]
    assert np.allclose(bars["x"], zones["share"])
    assert [x for x in points["x"] if x is not None] == pytest.approx(
        zones["error_rate"].dropna().tolist()
    )
    cells = result.heatmap(maps.PROBA_EDGES, maps.SCORE_EDGES)
    hovers = [one for row in drawn["counts"]["data"][0]["customdata"] for one in row]
    counts = [int(re.search(r"([\d,]+) units", one).group(1).replace(",", "")) for one in hovers]
    wrong = [int(re.search(r"([\d,]+) wrong", one).group(1).replace(",", "")) for one in hovers]
    assert sum(counts) == cells["n"].sum() == len(result)
    assert sum(wrong) == cells["errors"].sum()
    bins = result.reliability(10, "width")
    curve = drawn["reliability"]["data"][1]
    assert np.allclose(curve["x"], bins["error_proba"])
    assert np.allclose(curve["y"], bins["error_rate"])
    risk = drawn["risk_coverage"]["data"][0]
    assert risk["y"][-1] == pytest.approx(1 - result.summary().accuracy)
    matrix = drawn["confusion"]["data"][0]
    shown = sum(int(one) for row in matrix["text"] for one in row if one)
    assert shown == len(result)


def test_zone_borders_are_where_the_rules_say(result):
    rules = result.rules
    cells = result.heatmap(10, 10, as_="arrow").to_pylist()
    figure = maps.heatmap_figure(cells, rules, rates=False)
    drawn = [round(shape.y0 / 10, 6) for shape in figure.layout.shapes]
    for rule in rules.rules:
        if rule.error_proba is not None:
            assert round(rule.error_proba[0], 6) in drawn


def with_sections(monkeypatch, *sections):
    """Let the task of the results show some sections of its own."""

    class Own(tasks.Task):
        @staticmethod
        def sections(result, pictures):
            return sections

    monkeypatch.setattr(tasks, "task_named", lambda _name: Own)


def test_a_task_adds_nothing_unless_it_says_so(monkeypatch, result, text):
    assert tasks.Task.sections(result, Thumbnails(None)) == ()

    def missing(name):
        raise TaskNotInstalledError(name)

    monkeypatch.setattr(tasks, "task_named", missing)
    assert report.render_report(result) == text


def test_sections_of_a_task_are_shown(monkeypatch, result):
    style = Style(HOSTILE, "#D55E00", dashed=True)
    picture = Picture(
        HOSTILE, HOSTILE, View(None, 0, 0, 50, 40), [Box((1, 2, 11, 22), style, HOSTILE, HOSTILE)]
    )
    figure = plots.risk_coverage_figure({})
    below = Section("Below", "so", figure, legend=[style], pictures=[picture])
    table = Table(("Name", "n", "AP"), [(HOSTILE, 12345, 0.5), ("b", None, 0.0012)])
    with_sections(
        monkeypatch, Section("First", figure=figure), Section(HOSTILE, table=table, parts=[below])
    )
    text = report.render_report(result)
    page = Page(text)
    assert {"section_0_0", "section_1_1"} <= set(figures_of(text))
    assert [one["href"] for one in page.all("a")].count("#section-2") == 1
    for words in ("First", "Below", "12,345", "0.500", "0.0012"):
        assert words in page.text
    assert not page.all("img")
    assert "".join(page.texts).count(HOSTILE) >= 7
    drawn = [one for one in page.all("rect") if one.get("x") == "1"]
    assert [(one["y"], one["width"], one["height"]) for one in drawn] == [("2", "10", "20")] * 2
    assert drawn[1]["stroke"] == "#D55E00"
    assert "stroke-dasharray" in drawn[1]


def with_entropy(result, folder, error_model=None, **figures):
    """The same result, had entropy done so well."""
    shutil.copytree(result.folder, folder)
    content = json.loads((folder / "result.json").read_text())
    content["baselines"]["entropy"] |= {"auroc": 0.9999, **figures}
    content["error_model"] |= error_model or {}
    (folder / "result.json").write_text(json.dumps(content))
    return Result.load(folder)


GAIN = {"auroc_gain": -0.05, "auroc_gain_low": -0.08, "auroc_gain_high": -0.02}
NO_GAIN = dict.fromkeys(GAIN)


@pytest.mark.parametrize("gain", [GAIN, NO_GAIN])  # of this version, and of an earlier one
def test_a_baseline_that_wins_is_said_to_win(result, tmp_path, gain):
    lost = with_entropy(result, tmp_path / "lost", **gain)
    said = Page(report.render_report(lost)).text
    assert "entropy finds errors better than the error probability" in said
    assert ("-0.050, 95% interval -0.080 to -0.020" in said) == (gain is GAIN)
    rows = report.baseline_rows(lost)
    assert [row["name"] for row in rows if row["cells"][0]["best"]] == ["entropy"]
    assert lost.check(beats_max_softmax=True)  # not to entropy, but to max softmax it does not lose


def test_a_difference_that_may_be_chance_is_no_win(result, tmp_path):
    even = with_entropy(result, tmp_path / "even", **GAIN | {"auroc_gain_high": 0.01})
    assert "about as well as entropy" in Page(report.render_report(even)).text


def test_a_baseline_that_is_used_is_said_to_be(result, tmp_path):
    used = with_entropy(
        result, tmp_path / "used", error_model={"substitute": {"name": "entropy"}}, **GAIN
    )
    said = Page(report.render_report(used)).text
    assert "entropy finds errors better than all evidence together" in said
    assert "by entropy, used in place of ours" in said
    rows = report.baseline_rows(used)
    assert [row["name"] for row in rows if row["replaces"]] == ["entropy"]


def test_many_classes_are_listed_instead_of_drawn(result, tmp_path):
    copy = tmp_path / "many"
    shutil.copytree(result.folder, copy)
    content = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(content | {"n_class": 1000, "class_names": None}))
    many = Result.load(copy)
    text = report.render_report(many)
    assert "confusion" not in figures_of(text)
    listed = report.confusions(many)
    assert listed[0]["n"] == max(row["n"] for row in listed)
    errors = many.errors()
    pairs = errors.groupby(["label", "prediction"], dropna=False).size()
    assert listed[0]["n"] == pairs.max()


def test_a_model_that_is_never_wrong(recorder):
    recorder(200, perfect=True)
    said = Page(report.render_report(recorder.evaluate())).text
    assert "Every unit is right" in said
    assert "No unit is wrong" in said


def test_few_units(recorder):
    recorder(5)
    assert "5 units" in Page(report.render_report(recorder.evaluate())).text


def test_it_is_written_where_it_was_asked_for(result, tmp_path):
    path = result.report(tmp_path / "deep" / "mine.html", title="Mine & yours")
    assert path == tmp_path / "deep" / "mine.html"
    assert "<title>Mine &amp; yours" in path.read_text(encoding="utf-8")
    assert result.report(tmp_path) == tmp_path / f"{result.folder.name}.html"
    assert result.report(str(path)) == path  # replaces it
    assert sorted(file.name for file in path.parent.iterdir()) == ["mine.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        result.report(tmp_path / "file" / "report.html")


def test_pictures_come_in_many_shapes(result):
    ids = result.to_pandas()["input_id"].tolist()
    array = np.zeros((12, 10, 3), np.uint8)
    sources = [
        dict.fromkeys(ids, array),
        {int(name): array for name in ids},
        lambda _id: Image.new("RGB", (300, 20)),
        [(torch.rand(3, 12, 10), 1)] * 400,
    ]
    for images in sources:
        text = report.render_report(result, images=images)
        assert "could not be shown" not in text
        assert text.count("data:image/png") > 10
    with pytest.raises(InputError, match="images"):
        report.render_report(result, images=3)


def test_a_picture_that_fails_does_not_cost_the_report(result):
    def broken(input_id):
        raise RuntimeError(f"<no {input_id}>")

    text = report.render_report(result, images=broken)
    assert "pictures could not be shown" in text
    assert "RuntimeError: &lt;no" in text
    assert "no picture" in text
    half = {name: np.zeros((2, 2)) for name in result.errors()["input_id"][:3]}
    text = report.render_report(result, images=half)
    assert "data:image/png" in text
    assert "KeyError" in text


def decoded(uri):
    assert uri.startswith("data:image/png;base64,")
    return Image.open(BytesIO(base64.b64decode(uri.split(",", 1)[1])))


@pytest.mark.parametrize(
    ("picture", "mode", "size", "first"),
    [
        (np.full((4, 6), 7, np.uint8), "L", (6, 4), 7),
        (np.full((4, 6, 1), 0.5), "L", (6, 4), 128),
        (np.full((3, 20, 40), 0.2, np.float32), "RGB", (40, 20), (51, 51, 51)),
        (np.full((5, 6, 4), 9, np.uint8), "RGB", (6, 5), (9, 9, 9)),
        (np.ones((8, 8), bool), "L", (8, 8), 255),
        (np.array([[0, 300]], np.int64), "L", (2, 1), 0),
        (np.array([[-1.0, 1.0]]), "L", (2, 1), 0),
        (np.array([[np.nan, 1.0]]), "L", (2, 1), 0),
        (torch.full((1, 4, 6), 1.0).half(), "L", (6, 4), 255),
        (torch.zeros(1, 3, 8, 8, requires_grad=True), "RGB", (8, 8), (0, 0, 0)),
        (np.zeros((400, 200, 3), np.uint8), "RGB", (48, 96), (0, 0, 0)),
        (Image.new("RGBA", (10, 5), (1, 2, 3, 4)), "RGB", (10, 5), (1, 2, 3)),
        ((Image.new("L", (3, 3), 8), 1), "RGB", (3, 3), (8, 8, 8)),
        ({"image": np.full((2, 2), 3, np.uint8), "label": 1}, "L", (2, 2), 3),
    ],
)
def test_pictures_keep_their_colours_and_shape(picture, mode, size, first):
    image = decoded(data_uri(picture))
    assert (image.mode, image.size, image.getpixel((0, 0))) == (mode, size, first)


def test_pictures_are_read_from_files(tmp_path):
    Image.new("RGB", (1000, 500), (10, 200, 30)).save(tmp_path / "a.png")
    image = decoded(data_uri(tmp_path / "a.png"))
    assert image.size == (96, 48)
    assert image.getpixel((5, 5)) == (10, 200, 30)


def test_a_part_of_a_picture_is_cut_out_of_the_whole(tmp_path):
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[20:40, 50:90] = 255
    view = picture_view(pixels, 96, window=(50, 20, 90, 40))
    assert (view.left, view.top, view.width, view.height) == (50, 20, 40, 20)
    image = decoded(view.uri)
    assert (image.size, image.getextrema()) == ((40, 20), ((255, 255),) * 3)
    outside = picture_view(pixels, 96, window=(-10, 90, 30, 500))
    assert outside[1:5] == (0, 90, 30, 10)
    assert picture_view(pixels, 96, window=(300, 300, 310, 310))[1:5] == (0, 0, 200, 100)


def test_a_part_may_be_given_in_the_pixels_of_another_size():
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[20:40, 50:90] = 255
    view = picture_view(pixels, 96, window=(25, 10, 45, 20), extent=(100, 50))
    assert view[1:] == (25, 10, 20, 10, False)
    assert decoded(view.uri).getextrema() == ((255, 255),) * 3
    assert picture_view(pixels, 96, extent=(100, 100)).distorted


def test_a_file_is_as_large_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # it lies on its side
    Image.new("RGB", (4000, 1000)).save(tmp_path / "a.jpg", exif=exif)
    view = picture_view(tmp_path / "a.jpg", 96)
    assert view[1:5] == (0, 0, 1000, 4000)
    assert decoded(view.uri).size == (24, 96)
    assert picture_view(tmp_path / "a.jpg", 96, window=(0, 0, 10, 30))[1:5] == (0, 0, 10, 30)


@pytest.mark.parametrize(
    "bad", [None, "missing.png", np.zeros((0, 3)), np.zeros(4), np.zeros((9, 9, 9)), object()]
)
def test_what_is_no_picture_is_none(bad):
    thumbnails = Thumbnails(lambda _id: bad)
    assert thumbnails["1"] is None
    assert thumbnails.failed == 1
    assert thumbnails.problem.startswith("1: ")


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0, "0.0%"),
        (1, "100.0%"),
        (0.5, "50.0%"),
        (0.0004, "0.04%"),
        (0.000001, "0.01%"),
        (0.99996, "99.99%"),
        (None, "\N{EN DASH}"),
        (float("nan"), "\N{EN DASH}"),
    ],
)
def test_percent(share, said):
    assert report.percent(share) == said


def test_zones_are_told_apart_without_colour():
    from ml_debugger.core.evaluation.report_page.marks import MARKS
    from ml_debugger.core.evaluation.zones import ZONES

    assert list(MARKS) == [zone.value for zone in ZONES]
    assert len({mark.symbol for mark in MARKS.values()}) == len(ZONES)
    assert len({mark.colour for mark in MARKS.values()}) == len(ZONES)


def test_a_risk_coverage_figure_without_curves_is_empty():
    assert not plots.risk_coverage_figure({}).data


def test_class_names_are_escaped_in_figures():
    figure = maps.confusion_figure(np.eye(3, 2, dtype=np.int64), ["<b>a</b>", "b"])
    assert figure.layout.xaxis.ticktext[0] == html.escape("<b>a</b>")
