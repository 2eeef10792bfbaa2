"""The whole way with a service: trace, evaluate there, filter elsewhere; as without one.

    python -m packages.server.tests.test_flow --records 50000

does it with as many records, and prints what it found.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ml_debugger.server.settings import Settings

from .machines import S3, Postgres
from .serving import ROOT, Server, Worker, environment

PROGRAM = f"{__package__}.flow_programs"


@pytest.fixture
def site(postgres, s3, tmp_path):
    with Site(tmp_path / "service", postgres.new_database(), s3) as site:
        yield site


class Site:
    """A service with PostgreSQL and an object store, and one worker on another machine's folder."""

    def __init__(self, data, database, s3):
        told = {
            "database": database,
            "objects": f"{s3.new_bucket()}/records",
            "objects_options": s3.storage_options,
            "secret": "the same secret in all processes of it",
        }
        self.server = Server(Settings(data=data / "server", **told))
        self.worker = Worker(Settings(data=data / "worker", **told))

    def __enter__(self):
        self.server.start()
        self.worker.start()
        return self

    def __exit__(self, *exc):
        self.worker.close()
        self.server.close()


def run(what, n, home, site=None):
    """Run a program of a user, and return what it told, and how long it took."""
    more = {"MLD_HOME": home}
    if site is not None:
        more |= {"MLD_API_ENDPOINT": site.server.endpoint, "MLD_API_KEY": site.server.key}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", PROGRAM, what, str(n)],
        env=environment(**more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["told"], found["seconds"]


def compared(site, folder, records, pool):
    """Go the way with a service and without, compare, and return how long it took there."""
    traced, seconds = run("trace", records, folder / "first", site)
    picked, more = run("pick", pool, folder / "second", site)
    assert not (folder / "second" / "results" / "digits").exists()  # it is a copy of the service's
    # the very records, evaluated and filtered by without the service
    shutil.copytree(folder / "first", folder / "alone")
    shutil.rmtree(folder / "alone" / "remote")
    alone, _ = run("evaluate", 0, folder / "alone")
    assert alone["files"] == traced["files"]
    filtered, _ = run("pick", pool, folder / "alone")
    assert filtered == picked
    return traced, picked, seconds | more


def test_as_without_a_service(site, tmp_path):
    compared(site, tmp_path, 1000, 500)
    for process in (site.server, site.worker):
        assert '"ERROR"' not in process.log


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--pool", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Postgres() as postgres, S3() as s3:
        folder = Path(name)
        with Site(folder / "service", postgres.new_database(), s3) as site:
            traced, picked, there = compared(site, folder, options.records, options.pool)
        # all of it without a service, from the start
        anew, here = run("trace", options.records, folder / "anew")
        assert anew["outputs"] == traced["outputs"]
        filtered, also = run("pick", options.pool, folder / "anew")
        assert filtered == picked
        here |= also
    print(f"{options.records:,} records, {options.pool:,} to filter: all equal")  # noqa: T201
    for what in there:
        print(f"{what:10} {there[what]:7.1f} s with the service, {here[what]:7.1f} s without")  # noqa: T201


if __name__ == "__main__":
    main()
