"""Intervals of shares of boxes, where the boxes of an image are right or wrong together."""

import pytest

from ml_debugger.core.evaluation.drift import Evaluated
from ml_debugger.core.evaluation.metrics import wilson_interval

from .made_result import Image, make_result


def boxes(n):
    return [(30.0 * at, 0.0, 30.0 * at + 20, 20.0) for at in range(n)]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Thirty images of four boxes: right in two of three, else wrong, all four of them."""
    images = {
        str(at): Image(
            [(box, 1, 0.5 + at / 100) for box in boxes(4)],
            [(box, 1 if at % 3 else 2) for box in boxes(4)],
        )
        for at in range(30)
    }
    return make_result(tmp_path_factory.mktemp("home"), images, size=(100, 120))


def test_they_are_those_of_images(result):
    summary = result.summary()
    assert (summary.n, summary.errors) == (120, 40)
    low, high = wilson_interval(20, 30)
    alone = wilson_interval(80, 120)
    assert summary.accuracy_low == pytest.approx(low, abs=0.03)
    assert summary.accuracy_high == pytest.approx(high, abs=0.03)
    assert summary.accuracy_high - summary.accuracy_low > 1.7 * (alone[1] - alone[0])


@pytest.mark.parametrize(
    "table",
    [
        lambda result: result.zones().query("n > 20"),
        lambda result: result.reliability(2),
        lambda result: result.reliability(2, "width"),
    ],
)
def test_every_table_knows_it(result, table):
    rows = table(result)
    assert len(rows)
    for row in rows.itertuples():
        low, high = wilson_interval(row.error_rate * row.n, row.n)
        assert row.high - row.low > 1.2 * (high - low)


def test_so_does_the_interval_of_boxes_in_use(result):
    assert Evaluated.of(result).together > 0.5
