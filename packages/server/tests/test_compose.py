"""The Compose file is one, and says what the service understands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ml_debugger.server.cli import app
from ml_debugger.server.settings import Settings

FOLDER = Path(__file__).parents[1]
FILE = FOLDER / "compose.yaml"
SECRETS = {
    name: f"{name.lower()} that nobody guesses, made of many words"
    for name in re.findall(r"^([A-Z_]+)=$", (FOLDER / "compose.env.example").read_text(), re.M)
}


def filled() -> str:
    """Return the file as Compose reads it, with everything filled in that must be."""
    return re.sub(r"\$\{(\w+):\?\}", lambda found: SECRETS[found[1]], FILE.read_text())


def test_it_is_a_compose_file() -> None:
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema"]
    done = subprocess.run(
        [*command, "vendor.compose-spec", str(FILE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_settings_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load(filled())["services"]
    for name in list(os.environ):
        if name.startswith("MLD_"):
            monkeypatch.delenv(name)
    for name, value in services["service"]["environment"].items():
        assert name.removeprefix("MLD_SERVER_").lower() in Settings.model_fields
        monkeypatch.setenv(name, str(value))
    settings = Settings()
    assert settings.database == (
        f"postgresql+psycopg://ml_debugger:{SECRETS['POSTGRES_PASSWORD']}@database/ml_debugger"
    )
    assert settings.objects_options["secret"] == SECRETS["OBJECTS_SECRET"]
    assert settings.key == SECRETS["SERVICE_SECRET"].encode()
    assert services["worker"]["environment"] == services["service"]["environment"]


def test_the_object_store_knows_the_key() -> None:
    config = yaml.safe_load(filled())["configs"]["s3"]["content"]
    (identity,) = json.loads(config)["identities"]
    assert identity["credentials"] == [
        {"accessKey": "ml-debugger", "secretKey": SECRETS["OBJECTS_SECRET"]}
    ]


@pytest.mark.parametrize("service", ["migrate", "service", "worker"])
def test_the_commands_are_commands(service: str) -> None:
    command = yaml.safe_load(filled())["services"][service]["command"]
    assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0


def test_nothing_starts_before_what_it_needs() -> None:
    services = yaml.safe_load(filled())["services"]
    needs = {
        name: {one: how["condition"] for one, how in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }
    tables = {"migrate": "service_completed_successfully"}
    machines = {"database": "service_healthy", "objects": "service_healthy"}
    assert needs["service"] == needs["worker"] == tables
    assert needs["migrate"] == machines
    assert all("healthcheck" in services[name] for name in machines)
    assert services["migrate"]["restart"] == "no"  # or it never completes


def test_the_image_can_back_up_its_database() -> None:
    """Dumps are read again by a server and by programs of the version that wrote them."""
    image = yaml.safe_load(filled())["services"]["database"]["image"]
    text = (FOLDER / "Dockerfile").read_text()
    client = re.search(r"postgresql-client-(\d+)", text)
    assert client is not None
    assert image == f"postgres:{client[1]}"
    (debian,) = re.findall(r"^FROM python:[0-9.]+-slim-(\w+)$", text, re.MULTILINE)
    assert {"bookworm": "15", "trixie": "17"}[debian] == client[1]  # what Debian has


def test_the_image_copies_what_it_installs() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    installed = re.findall(r"/packages/(\w+)", text)
    assert sorted(installed) == sorted(one.name for one in FOLDER.parent.iterdir())
