"""Processes of ours import nothing from the current directory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from piecewise_core import interpreter
from piecewise_core.compile.messages import read_message
from piecewise_core.compile.pool import WorkerPool

SHADOW = "open('imported', 'w').close()\nraise ImportError('not mine')\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with files that are called like modules."""
    for name in ("struct", "pickle", "json", "runpy", "click", "torch", "piecewise_cpu"):
        (tmp_path / f"{name}.py").write_text(SHADOW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command, environ):
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("path", [None, "", os.pathsep])
def test_a_module_of_ours_is_run_without_the_directory(here, path):
    before = os.environ.get("PYTHONPATH", "")
    environ = {**os.environ, "PYTHONPATH": before if path is None else f"{before}{path}"}
    command = interpreter.command("piecewise_core.cli.main", "--version")
    done = run(command, interpreter.environment(environ))
    assert done.stdout.startswith("piecewise, version"), done.stderr
    assert not (here / "imported").exists()


def test_what_is_named_on_the_path_stays_there():
    given = {"PYTHONPATH": os.pathsep.join(["/a", "", "."]), "B": "c"}
    assert interpreter.environment(given) == {
        "PYTHONPATH": f"/a{os.pathsep}.",
        "B": "c",
        "PYTHONSAFEPATH": "1",
    }
    assert "PYTHONPATH" not in interpreter.environment({"PYTHONPATH": os.pathsep})


def test_the_command_run_as_a_module_leaves_the_directory(here):
    done = run([sys.executable, "-m", "piecewise_core.cli.main", "--version"], dict(os.environ))
    assert done.stdout.startswith("piecewise, version"), done.stderr
    assert not (here / "imported").exists()


def test_a_compile_worker_starts_without_the_directory(here):
    pool = WorkerPool()
    with pool._workers[0]._running() as process:
        process.stdin.close()
        assert read_message(process.stdout) is None
    assert process.returncode == 0
    assert not (here / "imported").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no such setting")
def test_what_others_start_meanwhile_leaves_the_directory_too(here, monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with interpreter.careful_children():
        done = run([sys.executable, "-c", "import struct, json"], None)
    assert done.returncode == 0, done.stderr
    assert "PYTHONSAFEPATH" not in os.environ
