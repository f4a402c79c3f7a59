"""Wheels and source archives of core and the platforms, as ``make wheels`` builds them."""

from __future__ import annotations

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PLATFORMS = ("cpu", "cuda", "rocm")
PROJECTS = {"core": ROOT, **{name: ROOT / "platforms" / name for name in PLATFORMS}}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory, wheel_builder) -> dict[str, Path]:
    """The four wheels, by the last part of their names."""
    folder = tmp_path_factory.mktemp("wheels")
    return {name: wheel_builder(project, folder) for name, project in PROJECTS.items()}


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def entry_points(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        return archive.read(name).decode()


def test_there_are_four_of_one_version(wheels):
    assert {w.name.split("-")[0] for w in wheels.values()} == {
        "piecewise_core", "piecewise_cpu", "piecewise_cuda", "piecewise_rocm",
    }  # fmt: skip
    assert len({metadata(w)["Version"] for w in wheels.values()}) == 1


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_platform_alone_pulls_core(wheels, name):
    version = metadata(wheels["core"])["Version"]
    major, minor = version.split(".")[:2]
    needs = metadata(wheels[name]).get_all("Requires-Dist")
    assert f"piecewise-core<{major}.{int(minor) + 1},>={major}.{minor}" in needs
    assert f"[piecewise]\n{name} = piecewise_{name}.plugin" in entry_points(wheels[name])


def test_core_requires_no_platform_and_brings_the_scaffold_s_templates(wheels):
    needs = " ".join(metadata(wheels["core"]).get_all("Requires-Dist"))
    assert "piecewise" not in needs
    with zipfile.ZipFile(wheels["core"]) as archive:
        names = set(archive.namelist())
    wanted = {
        str(p.relative_to(ROOT)) for p in (ROOT / "piecewise_core/cli/templates").rglob("*.j2")
    }
    assert wanted
    assert wanted <= names
    assert "piecewise_core/py.typed" in names
    assert not any(name.startswith(("tests/", "platforms/")) for name in names)


ORDERS = [tuple(PROJECTS)[n:] + tuple(PROJECTS)[:n] for n in range(len(PROJECTS))]
ORDERS.append(tuple(reversed(PROJECTS)))

INSTALLED = """
import json
from importlib.metadata import entry_points
from piecewise_core.plugins import discover
import piecewise_core
print(json.dumps({
    "core": piecewise_core.__file__,
    "found": sorted(e.name for e in discover()),
    "command": [p.value for p in entry_points(group="console_scripts", name="piecewise")],
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_they_install_in_any_order(wheels, bare_environment, order):
    for name in order:
        bare_environment.install([wheels[name]])
    found = bare_environment.json(INSTALLED)
    assert str(bare_environment.path) in found["core"]
    assert found["found"] == list(PLATFORMS)
    assert set(found["command"]) == {"piecewise_core.cli.main:main"}


def test_a_platform_installed_before_core_works_once_core_is_there(wheels, bare_environment):
    bare_environment.install([wheels["rocm"]])
    bare_environment.install([wheels["core"], wheels["cpu"]])
    found = bare_environment.json(INSTALLED)
    assert found["found"] == ["cpu", "rocm"]
    assert str(bare_environment.path) in found["core"]


@pytest.mark.slow
def test_wheels_and_source_archives_pass_twine(tmp_path):
    for project in PROJECTS.values():
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
        subprocess.run([*command, str(project)], check=True, capture_output=True)
    files = sorted(tmp_path.iterdir())
    assert [f.suffix for f in files].count(".whl") == 4
    assert [f.suffix for f in files].count(".gz") == 4
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 8
