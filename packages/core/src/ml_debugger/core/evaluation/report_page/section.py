"""What a task adds to a report: tables, a figure, and pictures with boxes drawn into them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import plotly.graph_objects as go

Cell = str | int | float | None


class View(NamedTuple):
    """A picture, or a part of one, and where it lies in the whole.

    Attributes:
        uri: The picture as a PNG data URI; None for an empty canvas.
        left: Left edge in pixels of the whole picture.
        top: Upper edge.
        width: Width in pixels of the whole picture, above 0.
        height: Height.
        distorted: Whether the whole picture has another shape than it was said to have.
    """

    uri: str | None
    left: float
    top: float
    width: float
    height: float
    distorted: bool = False


class Style(NamedTuple):
    """How a box is drawn, and what that means.

    Attributes:
        name: Its meaning, as the legend says it.
        colour: A colour of CSS.
        dashed: Whether its line is.
    """

    name: str
    colour: str
    dashed: bool = False


class Box(NamedTuple):
    """A box in a picture.

    Attributes:
        corners: x1, y1, x2, y2 in pixels of the whole picture; finite.
        style: How it is drawn.
        title: What is said when the pointer is on it.
        label: A word or two beside it.
        turn: By how many degrees it is turned about its middle, clockwise.
        front: How far a line goes from its middle towards its right edge, before it is turned, to
            show where its front is; 0 for no line.
    """

    corners: tuple[float, float, float, float]
    style: Style
    title: str = ""
    label: str = ""
    turn: float = 0.0
    front: float = 0.0


class Circle(NamedTuple):
    """A circle behind the boxes of a picture, to measure by; all in pixels of the whole picture.

    Attributes:
        x: Of its centre.
        y: Likewise.
        radius: Above 0.
        label: What is written where it is highest.
    """

    x: float
    y: float
    radius: float
    label: str = ""


class Picture(NamedTuple):
    """A picture with boxes and a caption.

    Attributes:
        name: Whose picture it is, an id.
        caption: What there is to say of it.
        view: The picture.
        boxes: What is drawn into it, in this order.
        circles: What is drawn before.
    """

    name: str
    caption: str
    view: View
    boxes: Sequence[Box] = ()
    circles: Sequence[Circle] = ()


class Table(NamedTuple):
    """A table; whole numbers are counts, None is shown as a dash.

    Attributes:
        header: A name a column.
        rows: As many cells each.
        words: How many columns, from the left, hold words; the others hold figures.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: int = 1


@dataclass(frozen=True)
class Section:
    """A part of a report; whatever is given is shown, in this order.

    All texts are escaped, those within a figure excepted: plotly reads markup in them.

    Attributes:
        title: The heading.
        hint: How to read it, in a sentence or two.
        figure: A figure.
        table: A table.
        legend: What the boxes in the pictures mean.
        pictures: Pictures side by side.
        parts: More of it, each under a smaller heading; parts have none themselves.
    """

    title: str
    hint: str = ""
    figure: "go.Figure | None" = None
    table: Table | None = None
    legend: Sequence[Style] = ()
    pictures: Sequence[Picture] = ()
    parts: Sequence["Section"] = ()
