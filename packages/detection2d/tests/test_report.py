"""The report of a detector: what is drawn is what the tables say, and nothing of it can do harm."""

import html
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from ml_debugger.core.detection.figures import IGNORED, RIGHT, STYLES, TRUE
from ml_debugger.core.evaluation.report import render_report
from ml_debugger.core.evaluation.report_page.samples import sample_groups
from ml_debugger.core.evaluation.report_page.thumbnail import Thumbnails
from ml_debugger.object_detection.analysis import error_types, image_table
from ml_debugger.object_detection.average_precision import mean_average_precision
from ml_debugger.object_detection.report import sections
from ml_debugger.object_detection.task import ObjectDetectionTask

from .made_result import Image, make_result

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"
NAMES = ["background", "disc", HOSTILE]


def box(x, y, width=20.0, height=20.0):
    return (float(x), float(y), float(x + width), float(y + height))


IMAGES = {
    "good": Image([(box(0, 0), 1, 0.9), (box(40, 0), 2, 0.8)], [(box(0, 0), 1), (box(40, 0), 2)]),
    "bad": Image(
        [(box(0, 0), 2, 0.85), (box(1, 0), 2, 0.6), (box(80, 60), 1, 0.7), (box(50, 0), 2, 0.5)],
        [(box(0, 0), 1), (box(40, 0), 2), (box(0, 60), 2)],
        [box(60, 60, 15)],
    ),
    HOSTILE: Image([], [(box(0, 0), 2)]),
}


class Page(HTMLParser):
    """The elements of a page, its attributes, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
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


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return make_result(tmp_path_factory.mktemp("home"), IMAGES, class_names=NAMES)


def picture(_id):
    return np.zeros((100, 120, 3), np.uint8)


def test_its_task_gives_the_sections(result):
    given = ObjectDetectionTask.sections(result, Thumbnails(None))
    assert [one.title for one in given] == ["Average precision", "Error types", "Images"]


def test_the_page_has_them_and_leads_to_them(result):
    text = render_report(result)
    page = Page(text)
    ids = {attributes.get("id") for _, attributes in page.elements}
    links = {one["href"].removeprefix("#") for one in page.all("a")}
    assert {"section-1", "section-2", "section-3"} <= ids & links
    for words in ("Average precision", "Each class", "By size", "By score", "By class"):
        assert words in page.text
    assert "<span>Precision</span>" in text
    assert "<span>Accuracy</span>" not in text
    assert f"{len(result.truths(missed=True))} true units without a prediction" in page.text
    assert "ends in **" not in page.text  # which is a code of classes only


def test_the_tables_say_what_the_frames_say(result):
    precision, types, images = sections(result, Thumbnails(None))
    found = mean_average_precision(result)
    assert list(precision.table.rows[0])[:3] == [found.ap, found.ap50, found.ap75]
    frame = error_types(result)
    assert [row[2] for row in types.table.rows] == frame["n"].tolist()
    assert [row[-1] for row in types.table.rows] == frame["ap50_cost"].tolist()
    drawn = [list(one.x) for one in types.figure.data]
    assert drawn == [frame["n"].tolist(), frame["ap50_cost"].tolist()]
    table = image_table(result)
    wrong = table[table["wrong"] + table["missed"] > 0]
    assert [one.name for one in images.pictures] == wrong["input_id"].tolist()


def test_boxes_are_drawn_as_what_they_are(result):
    images = sections(result, Thumbnails(picture))[2]
    bad = images.pictures[0]
    assert bad.name == "bad"
    assert bad.view.uri.startswith("data:image/png;base64,")
    assert bad.view[1:] == (0, 0, 120, 100, False)
    found = {}
    for one in bad.boxes:
        found.setdefault(one.style, []).append(one.corners)
    assert found == {
        TRUE: [box(0, 0), box(40, 0)],
        STYLES["missed"]: [box(0, 60)],
        IGNORED: [box(60, 60, 15)],
        STYLES["class"]: [box(0, 0)],
        STYLES["duplicate"]: [box(1, 0)],
        STYLES["place"]: [box(50, 0)],
        STYLES["background"]: [box(80, 60)],
    }
    assert set(images.legend) == set(found)  # nothing right is in these pictures
    assert "4 boxes, 4 wrong" in bad.caption
    assert "1 of 3 true boxes missed" in bad.caption
    titles = [one.title for one in bad.boxes if one.style == STYLES["class"]]
    assert titles[0].startswith(f"{HOSTILE}, score 0.85: wrong class (A, true disc, IoU 1.00)")


def test_without_pictures_boxes_are_drawn_alone(result):
    images = sections(result, Thumbnails(None))[2]
    assert {one.view for one in images.pictures} == {(None, 0, 0, 120, 100, False)}
    assert "images=" in images.hint
    assert len(images.pictures[0].boxes) == 8
    page = Page(render_report(result))
    assert len([one for one in page.all("svg") if one.get("role") == "img"]) == 2
    assert not page.all("image")


def test_an_image_of_unknown_size_ends_where_its_boxes_do(home):
    result = make_result(home, {"a": Image([(box(10, 20), 1, 0.5)], [(box(0, 0, 9), 1)])}, None)
    drawn = sections(result, Thumbnails(None))[2].pictures
    assert drawn[0].view[1:5] == (0, 0, 30, 40)


def test_a_picture_of_another_size_is_drawn_to_scale(result):
    large = sections(result, Thumbnails(lambda _id: np.zeros((200, 240))))[2]
    assert large.pictures[0].view[1:] == (0, 0, 120, 100, False)
    assert "shape" not in large.hint
    wide = sections(result, Thumbnails(lambda _id: np.zeros((100, 300))))[2]
    assert wide.pictures[0].view[1:] == (0, 0, 120, 100, True)
    assert "2 of these pictures are not of the shape" in wide.hint


def test_a_picture_that_fails_leaves_its_boxes(result):
    images = sections(result, Thumbnails({"bad": picture(0)}))[2]
    assert [one.view.uri is None for one in images.pictures] == [False, True]


def test_samples_show_what_lies_around_each_box(result):
    thumbnails = Thumbnails(lambda _id: np.zeros((200, 240)))
    rows = sample_groups(result, thumbnails)[0].rows
    assert len(rows) == 4
    for row in rows:
        (one,) = row["boxes"]
        assert one.corners == tuple(row[name] for name in ("x1", "y1", "x2", "y2"))
        view = row["picture"]
        assert view.left <= one.corners[0]
        assert view.top <= one.corners[1]
        assert view.left + view.width >= one.corners[2]
        assert view.top + view.height >= one.corners[3]
        assert max(view.width, view.height) <= 41
    assert thumbnails.failed == 0


def test_nothing_is_fetched_and_hostile_names_stay_text(result):
    for images in (None, picture):
        text = render_report(result, images=images)
        page = Page(text)
        for tag, attributes in page.elements:
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href", "xlink:href", "data", "action"):
                value = attributes.get(name) or "#"
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
        assert not page.all("img")
        assert HOSTILE in "".join(page.texts)
        figures = re.findall(r'id="figure-(\w+)">(.*?)</script>', text, re.S)
        assert len(page.all("script")) == len(figures) + 2
        drawn = dict(figures)
        assert html.escape(HOSTILE) in json.loads(drawn["section_1_3"])["data"][0]["y"]


def test_without_the_library_the_page_says_what_to_install(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    page = Page(render_report(result))
    assert "pip install 'ml-debugger-detection2d[map]'" in page.text
    assert "AP medium" not in page.text
    precision = sections(result, Thumbnails(None))[0]
    assert precision.table.header == ("AP50",)


def test_a_detector_that_is_never_wrong(home):
    result = make_result(home, {"good": IMAGES["good"]})
    page = Page(render_report(result, images=picture))
    assert "No box is wrong, and none was missed." in page.text
    assert "No unit is wrong." in page.text


def test_many_classes_are_cut_to_those_that_matter(home):
    one = [(box(5 * k, 0, 5), k, 0.5 + k / 100) for k in range(24)]
    result = make_result(home, {"a": Image(one, [(box(0, 50), 23)])})
    precision, types, _ = sections(result, Thumbnails(None))
    assert len(precision.parts[0].table.rows) == 20
    assert precision.parts[0].table.rows[0][0] == "23"  # the only one with a true box
    assert "20 of 24 classes" in precision.parts[0].hint
    assert len(types.parts[2].table.rows) == 20


def test_types_of_error_are_told_apart():
    styles = [RIGHT, *STYLES.values(), TRUE, IGNORED]
    assert len({one.colour for one in styles}) == len({one.name for one in styles}) == len(styles)
