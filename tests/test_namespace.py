"""The distributions share one namespace, and nothing else."""

import tomllib
from itertools import combinations
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = sorted((ROOT / "packages").iterdir())
CODE = [
    "ml-debugger-core",
    "ml-debugger-classification",
    "ml-debugger-detection2d",
    "ml-debugger-detection3d",
    "ml-debugger-server",
]


def contents(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_portions_leave_the_namespace_native(package):
    assert (package / "src" / "ml_debugger").is_dir()
    assert not (package / "src" / "ml_debugger" / "__init__.py").exists()


def test_every_distribution_has_a_wheel(wheels):
    names = {tomllib.loads((p / "pyproject.toml").read_text())["project"]["name"] for p in PACKAGES}
    assert names == set(CODE)
    assert set(wheels) == {*CODE, "ml-debugger", "acme-ml-debugger-segmentation"}


def test_wheels_leave_the_namespace_native(wheels):
    for wheel in wheels.values():
        assert "ml_debugger/__init__.py" not in contents(wheel), wheel.name


def test_wheels_overlap_nowhere(wheels):
    for one, other in combinations(wheels.values(), 2):
        assert not contents(one) & contents(other), (one.name, other.name)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_wheels_hold_the_whole_source(package, wheels):
    source = package / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    wheel = wheels[f"ml-debugger-{package.name}"]
    assert files == {name for name in contents(wheel) if ".dist-info/" not in name}


@pytest.mark.parametrize("name", CODE)
def test_every_package_is_typed(name, wheels):
    """A marker speaks for the packages below it, as far as the same wheel holds them."""
    inside = contents(wheels[name])
    packages = {PurePosixPath(one).parent for one in inside if one.endswith("/__init__.py")}
    for package in packages:
        own = [one for one in (package, *package.parents) if one in packages]
        assert any(f"{one}/py.typed" in inside for one in own), package


def test_every_wheel_has_its_licence(wheels):
    text = (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in text
    for name in [*CODE, "ml-debugger"]:
        with ZipFile(wheels[name]) as archive:
            (found,) = [one for one in archive.namelist() if one.endswith("licenses/LICENSE")]
            assert archive.read(found) == text


def test_the_meta_distribution_has_no_code(wheels):
    assert all(".dist-info/" in name for name in contents(wheels["ml-debugger"]))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_changelog_begins_with_the_version(package):
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    lines = (package / "CHANGELOG.md").read_text().splitlines()
    versions = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert versions[0] == project["version"]
    assert lines[0] == f"# Changelog of {project['name']}"
