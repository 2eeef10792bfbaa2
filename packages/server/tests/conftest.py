"""What the tests of this package share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .machines import S3, Postgres, find_postgres


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Record in a folder of the test's own, and know of no service."""
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
    monkeypatch.delenv("MLD_API_KEY", raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Share a PostgreSQL server, without fsync; take a `new_database()` for each test."""
    if find_postgres() is None:
        pytest.skip("no PostgreSQL: neither pg_config, PATH nor /usr/lib/postgresql has an initdb")
    with Postgres(fsync=False) as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """Share an S3 server; take a `new_bucket()` for each test."""
    with S3() as server:
        yield server


@pytest.fixture(autouse=True)
def up_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start what a test stopped, whatever became of the test."""
    shared = [name for name in ("postgres", "s3") if name in request.fixturenames]
    machines = [request.getfixturevalue(name) for name in shared]
    yield
    for machine in machines:
        machine.start()
