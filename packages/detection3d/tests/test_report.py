"""The report of a 3D detector: what is drawn is what the tables say, and nothing can do harm."""

import html
import json
import re
from html.parser import HTMLParser
from math import pi

import numpy as np
import pytest

from ml_debugger.core.detection.figures import IGNORED, STYLES, TRUE
from ml_debugger.core.evaluation.report import render_report
from ml_debugger.core.evaluation.report_page.thumbnail import Thumbnails
from ml_debugger.object_detection_3d.analysis import error_types, frame_table
from ml_debugger.object_detection_3d.average_precision import average_precision
from ml_debugger.object_detection_3d.report import sections
from ml_debugger.object_detection_3d.task import ObjectDetection3DTask

from .made_result import Frame, car, make_result

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"
NAMES = ["pedestrian", "car", HOSTILE]
NOTHING = Thumbnails(None)

FRAMES = {
    "good": Frame(
        [(car(5, 0, pi), 1, 0.9), (car(15, 3), 2, 0.8)], [(car(5, 0), 1), (car(15, 3), 2)]
    ),
    "bad": Frame(
        [
            (car(20, 4), 2, 0.85),
            (car(20.2, 4), 2, 0.6),
            (car(-8, 12), 1, 0.7),
            (car(5, 2, pi / 2), 2, 0.5),
        ],
        [(car(20, 4), 1), (car(5, 0, pi / 2), 2), (car(30, 0), 2)],
        [(car(0, -15), 1)],
    ),
    HOSTILE: Frame([], [(car(12, 0), 2)]),
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
    return make_result(tmp_path_factory.mktemp("home"), FRAMES, class_names=NAMES)


def test_its_task_gives_the_sections_and_the_page_has_them(result):
    given = ObjectDetection3DTask.sections(result, NOTHING)
    assert [one.title for one in given] == ["Average precision", "Error types", "Frames"]
    page = Page(render_report(result))
    ids = {attributes.get("id") for _, attributes in page.elements}
    links = {one["href"].removeprefix("#") for one in page.all("a")}
    assert {"section-1", "section-2", "section-3"} <= ids & links
    for words in ("Each class", *(f"By {one}" for one in ("distance", "points", "size"))):
        assert words in page.text
    for words in ("By heading", "By score", "By class"):
        assert words in page.text


def test_the_tables_say_what_the_frames_say(result):
    precision, types, images = sections(result, NOTHING)
    means = [average_precision(result, one).ap for one in ("bev", "3d", "distance")]
    assert [row[-1] for row in precision.table.rows] == means
    at = average_precision(result).at
    assert precision.table.rows[0][1] == f"0.5: {at[0.5]:.3f}, 0.7: {at[0.7]:.3f}"
    assert precision.parts[0].table.header[7:9] == ["AP 0.5", "AP 0.7"]
    frame = error_types(result)
    assert [row[2] for row in types.table.rows] == frame["n"].tolist()
    assert [row[-1] for row in types.table.rows] == frame["ap_cost"].tolist()
    assert [list(one.x) for one in types.figure.data] == [
        frame["n"].tolist(),
        frame["ap_cost"].tolist(),
    ]
    table = frame_table(result)
    wrong = table[table["wrong"] + table["missed"] > 0]
    assert [one.name for one in images.pictures] == wrong["input_id"].tolist()


def test_the_words_are_those_of_the_overlap(home):
    frames = {"a": FRAMES["bad"]}
    by_centre = sections(make_result(home / "a", frames, overlap="distance"), NOTHING)
    assert "well placed (centres within 2 m)" in by_centre[1].hint
    assert "distance of centres" in by_centre[0].hint
    assert by_centre[0].parts[0].table.header[7:11] == ["AP 0.5 m", "AP 1 m", "AP 2 m", "AP 4 m"]
    titles = [one.title for one in by_centre[2].pictures[0].boxes]
    assert any("(D, true 1, 0.20 m off)" in one for one in titles)
    volumes = sections(make_result(home / "b", frames, overlap="3d", aligned_iou=0.7), NOTHING)
    assert "well placed (IoU of 0.7 or more)" in volumes[1].hint


def ends(box):
    """Return the middle of a drawn box, and where its front is, in metres: x, then y."""
    x1, y1, x2, y2 = box.corners
    middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    turn = np.radians(box.turn)
    front = middle + (x2 - x1) / 2 * np.array([np.cos(turn), np.sin(turn)])
    return [tuple(float(round(-one, 3)) + 0.0 for one in point[::-1]) for point in (middle, front)]


def test_boxes_are_drawn_as_what_they_are_and_where(result):
    bad = sections(result, NOTHING)[2].pictures[0]
    assert bad.name == "bad"
    found = {}
    for one in bad.boxes:
        found.setdefault(one.style, []).append(ends(one))
    assert found == {
        TRUE: [[(20, 4), (22, 4)], [(5, 0), (5, 2)]],
        STYLES["missed"]: [[(30, 0), (32, 0)]],
        IGNORED: [[(0, -15), (2, -15)]],
        STYLES["class"]: [[(20, 4), (22, 4)]],
        STYLES["duplicate"]: [[(20.2, 4), (22.2, 4)]],
        STYLES["place"]: [[(5, 2), (5, 4)]],
        STYLES["background"]: [[(-8, 12), (-6, 12)]],
    }
    assert all(one.front > (one.corners[2] - one.corners[0]) / 2 for one in bad.boxes)
    titles = [one.title for one in bad.boxes if one.style == STYLES["class"]]
    assert titles[0].startswith(f"{HOSTILE}, score 0.85: wrong class (A, true car, IoU 1.00)")
    assert titles[0].endswith("; heading off by 0\u00b0")
    assert "4 boxes, 4 wrong" in bad.caption
    assert "1 of 3 true boxes missed" in bad.caption


def test_the_view_holds_the_boxes_and_the_sensor(result):
    for picture in sections(result, NOTHING)[2].pictures:
        view = picture.view
        points = [(0, 0), *((-y, -x) for one in picture.boxes for x, y in ends(one))]
        for across, down in points:
            assert view.left < across < view.left + view.width
            assert view.top < down < view.top + view.height
        sensor, *rings = picture.circles
        assert (sensor.x, sensor.y, sensor.label) == (0, 0, "")
        assert [one.radius for one in rings[:3]] == [10, 20, 30][: len(rings)]
        assert {(one.x, one.y) for one in rings} == {(0, 0)}


def test_what_is_very_far_does_not_shrink_the_rest(home):
    far = Frame([(car(5, 0), 1, 0.9), (car(1e5, 0), 1, 0.8)], [(car(5, 0), 1)])
    (picture,) = sections(make_result(home, {"a": far}), NOTHING)[2].pictures
    assert picture.view.top == -100
    assert len(picture.circles) < 15


@pytest.mark.parametrize("where", ["lidar", "global"])
def test_a_frame_of_boxes_without_a_volume_is_drawn_empty(home, where):
    frame = Frame([(car(5, 0, length=0.0), 1, 0.9)], [])
    (picture,) = sections(make_result(home, {"a": frame}, where), NOTHING)[2].pictures
    assert not picture.boxes
    assert picture.view[1:5] == (-10, -10, 20, 20)


def test_on_a_map_there_is_no_sensor_to_draw(home):
    frame = Frame([(car(1000, 500), 1, 0.9)], [(car(1000, 530), 1)])
    (picture,) = sections(make_result(home, {"a": frame}, "global"), NOTHING)[2].pictures
    assert not picture.circles
    assert -1011 < picture.view.top < picture.view.top + picture.view.height < -989


def test_the_page_turns_boxes_and_hostile_names_stay_text(result):
    text = render_report(result)
    page = Page(text)
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith("#"), (tag, name, value)
    assert not page.all("img")
    assert HOSTILE in "".join(page.texts)
    turned = [one["transform"] for one in page.all("g") if "transform" in one]
    pictures = sections(result, NOTHING)[2].pictures
    assert len(turned) == sum(len(one.boxes) for one in pictures) == 9
    assert "rotate(-90.0 -4.0 -20.0)" in turned
    assert "rotate(-180.0 0.0 -5.0)" in turned
    circles = page.all("circle")
    assert len(circles) == sum(len(one.circles) for one in pictures)
    figures = dict(re.findall(r'id="figure-(\w+)">(.*?)</script>', text, re.S))
    assert html.escape(HOSTILE) in json.loads(figures["section_1_6"])["data"][0]["y"]


def test_labels_end_within_the_picture(home):
    frame = Frame([(car(9, 0), 0, 0.5)], [(car(5, 9), 1), (car(5, -9), 2)])
    page = Page(render_report(make_result(home, {"a": frame}, class_names=["a", "b", "c"])))
    texts = [one for one in page.all("text") if "fill" in one]
    assert [(one["x"], one.get("text-anchor")) for one in texts] == [
        ("-11.0", None), ("11.0", "end"), ("-2.0", None)
    ]  # fmt: skip


def test_pictures_of_the_user_are_those_of_the_samples(result):
    page = Page(render_report(result, images=lambda _id: np.zeros((8, 8, 3), np.uint8)))
    assert len([one for one in page.all("img") if one["src"].startswith("data:image/png")]) >= 4


def test_a_detector_that_is_never_wrong(home):
    page = Page(render_report(make_result(home, {"good": FRAMES["good"]})))
    assert "No box is wrong, and none was missed." in page.text
