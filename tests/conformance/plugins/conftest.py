"""Plugins as users get them: wheels, installed into an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fresh_process import FreshProcesses

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees all that this one has, and wheels of its own besides."""

    path: Path

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    def install(self, wheels: Iterable[Path]) -> None:
        """Install wheels without their dependencies, which are here already.

        As ``pip install .`` does, in place of the same version too.
        """
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "-q"]
        options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
        options += ["--force-reinstall"]
        _run([*command, *options, *map(str, wheels)])

    def run(
        self, *arguments: str | Path, cwd: Path | None = None, status: int = 0, **variables: str
    ) -> str:
        """What ``python ...`` prints on stdout; fails unless it exits with ``status``.

        Runs in the environment's own directory by default: Python looks there first.
        """
        command = [str(self.python), *map(str, arguments)]
        return _run(command, cwd or self.path, self.variables(**variables), status)

    def variables(self, **more: str) -> dict[str, str]:
        """The variables that programs run with."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PIECEWISE_")}
        own = {"PIECEWISE_CACHE_DIR": str(self.path / "cache")}
        return {**kept, **own, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **more}

    def forked(
        self, processes: FreshProcesses, *arguments: str | Path, cwd: Path
    ) -> subprocess.CompletedProcess[str]:
        """``python ...`` as by ``run``, in a process that has imported torch and nothing of ours.

        It has the path of this environment's interpreter, so that distributions, entry points and
        modules are found as there; starting that interpreter itself is for ``run`` to show.
        """
        (site,) = self.path.glob("lib/python*/site-packages")
        words = (site, sysconfig.get_paths()["purelib"], cwd, *arguments)
        return processes.run(_AS_THERE, *map(str, words), env=self.variables())

    def json(self, script: str, **variables: str) -> dict:
        """What a script prints last, as JSON."""
        return json.loads(self.run("-c", script, **variables).splitlines()[-1])


_AS_THERE = """
import importlib, os, runpy, sys

site, base, cwd, *sys.argv = sys.argv[1:]
os.chdir(cwd)
sys.path[0] = cwd
sys.path.insert(sys.path.index(base), site)
importlib.invalidate_caches()
if sys.argv[0] == "-m":
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _run(command, cwd=None, environment=None, status=0) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )
    if done.returncode != status:
        pytest.fail(f"{' '.join(command)}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def build(project: Path, into: Path) -> Path:
    """The wheel of a project, built by its own backend."""
    into.mkdir(parents=True, exist_ok=True)
    script = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    name = _run([sys.executable, "-c", script, str(into)], project).splitlines()[-1]
    return into / name


def make_environment(path: Path, *, editable: bool = True) -> Environment:
    """An empty environment over this one's packages, the ones that are edited in place included."""
    _run([sys.executable, "-m", "venv", "--without-pip", str(path)])
    purelib = sysconfig.get_paths()["purelib"]
    (site,) = path.glob("lib/python*/site-packages")
    base = site / "base.pth"
    if editable:
        base.write_text(f"import site; site.addsitedir({purelib!r})\n")
        return Environment(path)
    # A directory named in a .pth is on the path, and its own .pth files are not read; piecewise's
    # metadata there would count as installed, so all but that is linked.
    linked = path / "linked"
    linked.mkdir()
    for entry in Path(purelib).iterdir():
        if "piecewise" not in entry.name:
            (linked / entry.name).symlink_to(entry)
    base.write_text(f"{linked}\n")
    return Environment(path)


@pytest.fixture(scope="session")
def plugin_builder():
    """Makes an environment at a path, with projects installed as wheels."""

    def make(path: Path, projects: Iterable[Path]) -> Environment:
        made = make_environment(path)
        made.install([build(project, path.with_name(f"{path.name}-dist")) for project in projects])
        return made

    return make


@pytest.fixture(scope="session")
def wheel_builder():
    """Builds a project's wheel into a directory."""
    return build


@pytest.fixture(scope="session")
def environment(tmp_path_factory, plugin_builder) -> Environment:
    """An environment with every project under ``projects/`` installed."""
    projects = sorted(p.parent for p in (HERE / "projects").glob("*/pyproject.toml"))
    return plugin_builder(tmp_path_factory.mktemp("plugins") / "venv", projects)


@pytest.fixture
def fresh_environment(tmp_path) -> Environment:
    """An environment with nothing of its own yet."""
    return make_environment(tmp_path / "venv")


@pytest.fixture
def bare_environment(tmp_path) -> Environment:
    """An environment with all that piecewise needs and without piecewise."""
    return make_environment(tmp_path / "bare", editable=False)
