"""Ids, epochs, names and additional fields, as users pass them."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ml_debugger.core.errors import EpochError, InputError
from ml_debugger.core.inputs import FieldSet, as_epoch, as_input_ids, batch_size

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)


@given(st.lists(TEXT | st.integers() | TEXT.map(Path)))
def test_ids_become_their_text(ids: list[str | int | Path]) -> None:
    assert as_input_ids(ids, len(ids)) == [str(one) for one in ids]


@pytest.mark.parametrize(
    "ids",
    [
        [3, 1],
        (3, 1),
        range(3, 0, -2),
        ["3", "1"],
        np.array([3, 1]),
        np.array(["3", "1"]),
        torch.tensor([3, 1]),
        [torch.tensor(3), np.int64(1)],
        [np.str_("3"), Path("1")],
        iter([3, 1]),
        {3: "a", 1: "b"}.keys(),
    ],
)
def test_ids_of_every_kind(ids: object) -> None:
    assert as_input_ids(ids, 2) == ["3", "1"]


def test_one_id_may_be_a_tensor_without_dimensions() -> None:
    assert as_input_ids(torch.tensor(7), 1) == ["7"]


@pytest.mark.parametrize(
    "ids", [["a", 1.0], ["a", None], ["a", True], ["a", b"b"], ["a", ""], ["a", "x" * 5000]]
)
def test_the_bad_id_is_named(ids: list[object]) -> None:
    with pytest.raises(InputError, match=r"input_ids\[1\]"):
        as_input_ids(ids, 2)


def test_the_batch_is_the_length_of_the_first_tensor() -> None:
    assert batch_size(torch.zeros(3, 2)) == 3
    assert batch_size({"text": "x", "image": [torch.zeros(4, 1), torch.zeros(9)]}) == 4
    assert batch_size("no tensor") is None
    assert batch_size(torch.tensor(1)) is None


def test_epochs() -> None:
    assert as_epoch(None) is None
    assert as_epoch(np.int16(-2)) == -2
    for bad in (True, 1.0, "1", [1]):
        with pytest.raises(EpochError, match="int or None"):
            as_epoch(bad)
    with pytest.raises(InputError, match="64 bits"):
        as_epoch(2**63)


def fields(*declared: dict[str, object]) -> FieldSet:
    return FieldSet(declared, what="additional_fields", reserved=frozenset({"score"}))


def test_field_values_one_each_or_one_for_all() -> None:
    declared = fields(
        {"name": "camera", "type": "str"},
        {"name": "speed", "type": "float", "nullable": True},
        {"name": "lane", "type": "int", "default": 4},
        {"name": "night", "type": "bool"},
        {"name": "at", "type": "datetime"},
        {"name": "extra", "type": "json"},
    )
    given = {
        "camera": "front",
        "speed": [1, None, float("nan")],
        "night": np.array([True, False, True]),
        "at": datetime(2026, 1, 2, tzinfo=UTC),
        "extra": [{"b": 1, "a": [2]}, "text", 3],
        "other": "stays",
    }
    taken = declared.take(given, 3)
    assert given == {"other": "stays"}
    assert taken["camera"] == ["front"] * 3
    assert taken["speed"][:2] == [1.0, None]
    assert np.isnan(taken["speed"][2])
    assert taken["lane"] == [4, 4, 4]
    assert taken["night"] == [True, False, True]
    assert taken["at"] == [datetime(2026, 1, 2, tzinfo=UTC)] * 3
    assert taken["extra"] == ['{"a": [2], "b": 1}', '"text"', "3"]


def test_a_list_is_one_json_value_an_input() -> None:
    declared = fields({"name": "tags", "type": "json"})
    assert declared.take({"tags": [[1], [2]]}, 2)["tags"] == ["[1]", "[2]"]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("str", 1),
        ("int", 1.0),
        ("int", True),
        ("int", 2**63),
        ("float", "1"),
        ("float", float("-inf")),
        ("bool", 1),
        ("datetime", "yesterday"),
        ("json", {1, 2}),
        ("json", float("nan")),
        ("str", None),
        ("str", "bad\ud800"),
        ("json", {"deep": ["bad\ud800"]}),
        ("datetime", np.datetime64("NaT", "ns")),
        ("int", np.datetime64(1, "ns")),
    ],
)
def test_values_of_the_wrong_type(type_: str, value: object) -> None:
    with pytest.raises(InputError, match="'a'"):
        fields({"name": "a", "type": type_}).take({"a": value}, 2)


@pytest.mark.parametrize(
    "declared",
    [
        {"name": "a"},
        {"name": "a b", "type": "int"},
        {"name": "", "type": "int"},
        {"name": "score", "type": "int"},
        {"name": "a", "type": "tensor"},
        {"name": "a", "type": "int", "default": "x"},
        {"name": "a", "type": "str", "default": "bad\ud800"},
        {"name": "a", "type": "int", "unit": "m"},
        "a",
    ],
)
def test_bad_declarations(declared: object) -> None:
    with pytest.raises(InputError, match=r"additional_fields\[0\]"):
        fields(declared)  # type: ignore[arg-type]


def test_text_that_cannot_be_stored_is_named_by_its_row() -> None:
    for type_ in ("str", "json"):
        declared = fields({"name": "camera", "type": type_})
        words = r"field 'camera'\[1\] is not valid Unicode text: surrogates not allowed"
        with pytest.raises(InputError, match=words):
            declared.take({"camera": ["good", "bad\ud800"]}, 2)
        declared.take({"camera": ["good", "😀"]}, 2)


def test_times_of_every_kind() -> None:
    declared = fields({"name": "at", "type": "datetime", "nullable": True})
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    for one in (
        datetime(2026, 1, 2, 12),
        "2026-01-02T12:00",
        "2026-01-02T13:00+01:00",
        pd.Timestamp("2026-01-02T12:00:00.000000001"),
        pd.Timestamp("2026-01-02T13:00", tz="Europe/Berlin"),
        np.datetime64("2026-01-02T12:00", "ns"),
        [noon, pd.Timestamp(noon)],
        np.array(["2026-01-02T12:00"] * 2, "datetime64[ns]"),
    ):
        taken = declared.take({"at": one}, 2)["at"]
        assert taken == [noon] * 2, one
        assert [type(one) for one in taken] == [datetime] * 2
    missing = np.array(["NaT", "2026-01-02T12:00"], "datetime64[ns]")
    assert declared.take({"at": missing}, 2)["at"] == [None, noon]
    assert declared.take({"at": pd.NaT}, 1)["at"] == [None]


def test_tensors_as_field_values() -> None:
    declared = fields({"name": "n", "type": "int"})
    assert declared.take({"n": torch.arange(3)}, 3) == {"n": [0, 1, 2]}
    values: Tensor = torch.arange(2)
    with pytest.raises(InputError, match="2 values for 3 inputs"):
        declared.take({"n": values}, 3)
