"""Error codes: the grammar, and which unit gets which form."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_debugger.core.evaluation.codes import ClassCode, class_codes, parse_code
from ml_debugger.core.evaluation.estimator import Estimates
from ml_debugger.core.evaluation.zones import ZONES, Zone

STABLE, OPERATIONAL, HOT, RECESSIVE, CRITICAL, ALEATORIC = range(6)
classes = st.integers(0, 2000)


@st.composite
def codes(draw):
    target = draw(st.none() | classes)
    predicted = draw(st.lists(classes, unique=True, max_size=4))
    predicted = [*predicted[:1], *(c for c in predicted[1:] if c != target)]
    certain = draw(st.booleans()) and target is not None and len(predicted) == 1
    return ClassCode(target, tuple(predicted), certain and predicted != [target])


@given(codes())
def test_parsing_is_the_inverse_of_formatting(code):
    assert parse_code(str(code)) == code


@given(st.text(alphabet="CLS->0123|*", max_size=12).map(lambda text: f"CLS{text}"))
def test_what_parses_is_formatted_the_same(text):
    try:
        code = parse_code(text)
    except ValueError:
        return
    assert str(code) == text


@pytest.mark.parametrize(
    ("text", "target", "predicted", "certain"),
    [
        ("CLS3->7", 3, (7,), False),
        ("CLS3->3", 3, (3,), False),
        ("CLS3->7|1", 3, (7, 1), False),
        ("CLS5->7|1|9", 5, (7, 1, 9), False),
        ("CLS3->7**", 3, (7,), True),
        ("CLS-->7", None, (7,), False),
        ("CLS3->-", 3, (), False),
    ],
)
def test_documented_forms(text, target, predicted, certain):
    code = parse_code(text)
    assert (code.target, code.predicted, code.certain) == (target, predicted, certain)
    assert code.correct == (text == "CLS3->3")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "CLS",
        "CLS3",
        "CLS3->",
        "3->7",
        "CLS3->7 ",
        "CLS03->7",
        "CLS3->7||1",
        "CLS3->7|",
        "CLS-1->7",
        "CLS3->7*",
        "CLS3->7|1**",
        "CLS3->3**",
        "CLS-->7**",
        "CLS3->-**",
        "CLS3->7|7",
        "CLS3->7|3",
        "CLS3->7\n",
        "cls3->7",
        "CLS٣->7",
        "CLS3->-|7",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"code|confused|certain"):
        parse_code(text)


def estimates(shares, unstable, plausible):
    n = len(shares)
    return Estimates(
        np.full(n, 0.9, np.float32),
        np.ones(n, np.float32),
        np.array(unstable),
        np.array(shares, np.float32),
        np.array(plausible, np.int32),
        np.full(n, 0.9, np.float32),
    )


def one(prediction, target, zone, share, *, unstable=True, plausible=0, **options):
    row = np.zeros(10)
    for label, value in share.items():
        row[label] = value
    given_target = None if target is None else np.array([target])
    [code] = class_codes(
        np.array([prediction]),
        given_target,
        np.array([zone], np.int8),
        estimates([row], [unstable], [plausible]),
        **options,
    )
    return code


def test_the_documented_sample():
    assert one(7, 3, HOT, {3: 0.5, 1: 0.3, 9: 0.1}) == "CLS3->7|1"


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ("CLS3->7", {"unstable": False}),
        ("CLS3->7|1|9", {"share": {9: 0.3, 1: 0.4}}),
        ("CLS3->7|1|9", {"share": {9: 0.3, 1: 0.3, 0: 0.25}}),
        ("CLS3->7|0|1", {"share": {9: 0.25, 1: 0.25, 0: 0.25}}),
        ("CLS3->7|0|1|9", {"share": {9: 0.25, 1: 0.25, 0: 0.25}, "most": 4}),
        ("CLS3->7", {"most": 1}),
        ("CLS3->7", {"share": {1: 0.19, 9: 0.19}}),
        ("CLS3->7|1", {"share": {1: 0.15}, "min_share": 0.1}),
        ("CLS3->7|1", {"share": {1: 0.25}, "min_share": 0.25}),
        ("CLS3->7|1", {"zone": OPERATIONAL}),
        ("CLS7->7|1", {"target": 7}),
        ("CLS7->7", {"target": 7, "zone": OPERATIONAL}),
        ("CLS-->7|1", {"target": 999}),
        ("CLS-->7|1", {"target": -1}),
        ("CLS3->7**", {"zone": CRITICAL, "plausible": 3}),
        ("CLS3->7**", {"zone": ALEATORIC, "plausible": 3}),
        ("CLS3->7", {"zone": CRITICAL, "plausible": 7}),
        ("CLS7->7", {"zone": CRITICAL, "plausible": 7, "target": 7}),
        ("CLS3->7", {"zone": RECESSIVE, "plausible": 3, "unstable": False}),
        ("CLS-->7", {"zone": CRITICAL, "plausible": 3, "target": -1}),
        ("CLS1->7", {"target": None, "unstable": False}),
        ("CLS1->7|9", {"target": None, "share": {1: 0.5, 9: 0.4}}),
        ("CLS7->7", {"target": None, "zone": STABLE}),
        ("CLS1->7", {"target": None, "zone": CRITICAL, "plausible": 1}),
        ("CLS3->-", {"prediction": -1}),
    ],
)
def test_which_form_a_unit_gets(expected, arguments):
    plain = {"prediction": 7, "target": 3, "zone": HOT, "share": {1: 0.4}}
    assert one(**(plain | arguments)) == expected


@given(st.integers(0, 2**32 - 1))
def test_every_code_parses_and_names_its_unit(seed):
    rng = np.random.default_rng(seed)
    n, k = 40, int(rng.integers(1, 6))
    prediction, target = rng.integers(0, k, n), rng.integers(-1, k + 1, n)
    shares = rng.dirichlet(np.full(k, 0.5), n)
    shares[np.arange(n), prediction] = 0
    zones = rng.integers(0, len(ZONES), n).astype(np.int8)
    some = estimates(shares, rng.random(n) < 0.5, rng.integers(0, k, n))
    parsed = [parse_code(text) for text in class_codes(prediction, target, zones, some)]
    assert [code.predicted[0] for code in parsed] == prediction.tolist()
    assert [code.target for code in parsed] == [t if 0 <= t < k else None for t in target]
    assert max(len(code.predicted) for code in parsed) <= 3
    for code, zone in zip(parsed, zones, strict=True):
        sure = ZONES[zone] in (Zone.CRITICAL_HOTSPOT, Zone.ALEATORIC_HOTSPOT)
        assert not (code.certain and not sure)
        assert not (len(code.predicted) > 1 and sure)
    unlabelled = class_codes(prediction, None, zones, some)
    assert all(re.fullmatch(r"CLS\d+->\d+(\|\d+)*", text) for text in unlabelled)


def test_no_units_no_codes():
    none = np.zeros(0, np.int64)
    empty = estimates(np.zeros((0, 3)), np.zeros(0, bool), [])
    assert class_codes(none, none, none.astype(np.int8), empty) == []
