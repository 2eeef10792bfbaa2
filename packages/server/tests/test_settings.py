"""What can be set is in the guide, and what is set wrongly is told in a line."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ml_debugger.core.errors import InputError
from ml_debugger.server.cli import app
from ml_debugger.server.settings import COMPOSED, Settings, read_settings

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "service.md"
SECRET = "a secret of more than thirty-two characters"


def test_the_guide_has_all_settings_and_their_defaults(monkeypatch):
    monkeypatch.delenv("MLD_HOME")
    rows = re.findall(
        r"^\| `MLD_SERVER_(\w+)` \| (.*?) \| (.+) \|$", GUIDE.read_text(), re.MULTILINE
    )
    told = {name.lower(): default.strip("`") for name, default, _ in rows}
    assert len(told) == len(rows)
    known = dict(Settings.model_construct())
    known["data"] = "~" + str(known["data"]).removeprefix(str(Path.home()))
    assert told == {name: _written(one) for name, one in known.items()}


def _written(value):
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("port", "many", "MLD_SERVER_PORT 'many' is wrong: Input should be a valid integer"),
        ("port", "70000", "MLD_SERVER_PORT '70000' is wrong: Input should be less than 65536"),
        ("login_rate", "ten", "MLD_SERVER_LOGIN_RATE 'ten' is wrong: expected rates such as"),
        ("key_rate", "", "MLD_SERVER_KEY_RATE '' is wrong: expected rates such as 10/minute"),
        ("trusted_proxies", "10.0.0.0/8", "'10.0.0.0/8' is wrong: expected JSON such as"),
        ("trusted_proxies", '["ten"]', "MLD_SERVER_TRUSTED_PROXIES 'ten' is wrong"),
        ("objects_options", "{'secret': 'no'}", "MLD_SERVER_OBJECTS_OPTIONS is wrong: expected"),
        ("secret", "hidden", "MLD_SERVER_SECRET is wrong: .* at least 32"),
    ],
)
def test_what_is_wrong_is_named(name, value, told, monkeypatch):
    monkeypatch.setenv(f"MLD_SERVER_{name.upper()}", value)
    with pytest.raises(InputError, match=told) as caught:
        read_settings()
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_an_option_is_named_as_one():
    command = ["serve", "--root-path", "no/path"]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, InputError)
    assert "--root-path 'no/path' is wrong" in str(error)


def test_the_examples_of_json_are_right(monkeypatch):
    for name, example in COMPOSED.items():
        monkeypatch.setenv(f"MLD_SERVER_{name.upper()}", example)
    settings = read_settings(secret=SECRET)
    assert settings.objects_options
    assert settings.trusted_proxies
