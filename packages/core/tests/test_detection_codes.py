"""Error codes of boxes: the grammar, and which box gets which."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_debugger.core.detection.codes import (
    CODE_KINDS,
    NO_PREDICTION,
    BoxCode,
    box_codes,
    parse_code,
)
from ml_debugger.core.errors import InputError

classes = st.integers(0, 2000)


@st.composite
def codes(draw):
    kind = draw(st.sampled_from(CODE_KINDS))
    truth = None if kind in ("ON", "N", "U") else draw(st.none() | classes)
    prediction = None if kind == NO_PREDICTION else draw(classes)
    return BoxCode(kind, draw(st.booleans()), truth, prediction)


def formatted(some):
    """Let box_codes write codes that are taken apart."""
    return box_codes(
        np.array([CODE_KINDS.index(code.kind) for code in some], np.int8),
        np.array([0.1 if code.uncertain else 0.9 for code in some], np.float32),
        np.array([-1 if code.truth is None else code.truth for code in some], np.int64),
        np.array([-1 if code.prediction is None else code.prediction for code in some], np.int32),
    )


@given(st.lists(codes(), max_size=8))
def test_parsing_is_the_inverse_of_formatting(some):
    texts = formatted(some)
    assert texts == [str(code) for code in some]
    assert [parse_code(text) for text in texts] == some


def test_parts_of_a_grammar_are_all_or_nothing():
    """Of all texts of the pieces below, those that parse are formatted the same."""
    parsed = 0
    for kind in (*CODE_KINDS, "", "B", "a", "NP"):
        for star in ("", "*", "**"):
            for truth in ("-", "0", "17", "01", "+1", "-1", "", "\N{ARABIC-INDIC DIGIT ONE}"):
                for prediction in ("-", "3", "30\n", "3|4", " 3"):
                    text = f"DET:{kind}{star}:CLS{truth}->{prediction}"
                    try:
                        code = parse_code(text)
                    except InputError:
                        continue
                    assert str(code) == text
                    parsed += 1
    # with and without a star: five kinds with 3 truths, three with none, and the missed one
    assert parsed == 2 * (5 * 3 + 3 + 3)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("DET:A:CLS3->3", ("A", False, 3, 3)),
        ("DET:SG*:CLS3->7", ("SG", True, 3, 7)),
        ("DET:ON:CLS-->7", ("ON", False, None, 7)),
        ("DET:A:CLS-->7", ("A", False, None, 7)),  # the class of the true box is not known
        ("DET:no_prediction:CLS5->-", ("no_prediction", False, 5, None)),
    ],
)
def test_documented_forms(text, code):
    assert parse_code(text) == code


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a form such as DET:A:CLS3->3"),
        ("CLS3->7", "expected a form"),
        ("DET:A:CLS3->3 ", "expected a form"),
        ("DET:A:3->3", "expected a form"),
        ("DET:X:CLS3->3", "one of A, M, SP, SG, D, ON, N, U, no_prediction"),
        ("DET:A:CLS3->-", "only it, comes without a predicted class"),
        ("DET:no_prediction:CLS3->3", "only it, comes without a predicted class"),
        ("DET:N:CLS3->3", "N means that there is no true box"),
    ],
)
def test_malformed_code_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_code(text)


def test_mark_is_for_a_probability_below_one_minus_the_threshold():
    proba = [0.0, 0.19, 0.2, 0.21, 1.0, np.nan]
    marked = ["*" in text for text in box_codes([0] * 6, proba, [1] * 6, [1] * 6)]
    assert marked == [True, True, False, False, False, False]
    marked = ["*" in text for text in box_codes([0] * 6, proba, [1] * 6, [1] * 6, threshold=0.0)]
    assert marked == [True, True, True, True, False, False]


def test_no_box_has_no_code():
    assert box_codes([], [], [], []) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0], [1], [1], [1]), "give one value of each a box"),
        ((0, 1, 1, 1), "give one value of each a box"),
        (([9], [1], [1], [1]), "0 to 8"),
        (([-1], [1], [1], [1]), "0 to 8"),
        (([0], [1], [1], [1], 1.5), r"threshold is 1.5; it must be in \[0, 1\]"),
        (([0], [1], [1], [-1]), "DET:A:CLS1->-: no_prediction, and only it"),
        (([8], [1], [1], [1]), "DET:no_prediction:CLS1->1: no_prediction, and only it"),
        (([5], [1], [1], [1]), "DET:ON:CLS1->1: ON means"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        box_codes(*arguments)
