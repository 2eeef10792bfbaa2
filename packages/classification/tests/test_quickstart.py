"""The demonstration leaves the process as it was; `tests/test_cli.py` runs it."""

import inspect

import pytest
import torch

from ml_debugger.classification import quickstart
from ml_debugger.core import cli


def test_the_number_of_threads_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def load(seed: int) -> None:
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "load", load)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            quickstart.quickstart()
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_it_repeats_as_often_from_python_as_from_a_terminal() -> None:
    def default(function: object) -> int:
        return inspect.signature(function).parameters["seeds"].default  # type: ignore[arg-type,no-any-return]

    assert default(quickstart.quickstart) == default(cli.quickstart)
