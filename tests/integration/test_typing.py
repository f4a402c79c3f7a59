"""What type checkers know of piecewise: its marker is py.typed, and users check strictly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

RIGHT = '''
from typing import TYPE_CHECKING

import torch
import piecewise_core as pw

if TYPE_CHECKING:
    from typing_extensions import assert_type


class Model(torch.nn.Module):
    """A model with an attribute and a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.names = ["a"]

    def width(self) -> int:
        return 8


def takes_the_class(model: Model) -> int:
    return model.width()


config = pw.Config(dynamic={"x": {0: pw.Dim("rows", max=64)}})
fast = pw.compile(Model(), config)
report: pw.WarmupReport = fast.warmup(torch.randn(2, 8), progress=False)
explanation: pw.Explanation = fast.explain()
stats: pw.Stats = fast.stats()
saved: pw.SaveReport = fast.save("model.pwb")
again: pw.CompiledModule = fast.seal().release().restore().retrace()
module: torch.nn.Module = fast.eval()
model: Model = fast
width: int = takes_the_class(fast) + fast.width()
names: list[str] = fast.names
out: torch.Tensor = fast(torch.randn(2, 8))
torch.nn.Sequential(fast, torch.nn.ReLU())
if TYPE_CHECKING:
    assert_type(fast, pw.CompiledModule)
    assert_type(pw.load("model.pwb", Model()), pw.CompiledModule)
    assert_type(pw.compile(config=config)(Model()), pw.CompiledModule)


@pw.compile
def function(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@pw.compile(config=config)
def other(x: torch.Tensor) -> torch.Tensor:
    return x + 1


class Uses:
    @pw.compile
    def method(self, x: torch.Tensor) -> torch.Tensor:
        return x


compilations: int = function.warmup(torch.ones(2)).compilations
other.seal("warn")
Uses().method.warmup(torch.ones(2))
pw.record(Model(), config).warmup(torch.randn(2, 8))
'''
WRONG = """
import torch
import piecewise_core as pw

fast = pw.compile(torch.nn.Linear(8, 8))
text: str = fast.warmup(torch.randn(2, 8))
fast.seal("never")
fast.save(3)
pw.compile(torch.nn.Linear(8, 8), {"dynamic": {}})
"""
FAULTS = [6, 7, 8, 9]
"""The lines of WRONG that are."""


@pytest.fixture
def users(tmp_path):
    """Two programs of a user's: one that uses everything rightly, one that has four faults."""
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    return tmp_path


def _run(*command: str) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500)
    return done.stdout + done.stderr


def test_mypy_knows_compiled_models_and_their_misuse(users):
    pytest.importorskip("mypy")
    # What `make lint` left there is used: torch's types need not be read again.
    cache = REPOSITORY / ".mypy_cache"
    files = (str(users / "right.py"), str(users / "wrong.py"))
    strict = (sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache))
    lines = [line for line in _run(*strict, *files).splitlines() if ": error:" in line]
    assert [int(line.split(":")[1]) for line in lines] == FAULTS, lines
    assert all("wrong.py" in line for line in lines)


def test_pyright_knows_compiled_models_and_their_misuse(users):
    pytest.importorskip("pyright", reason="pyright is not among the tools that make setup installs")
    if shutil.which("node") is None:
        pytest.skip("pyright needs node")
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(REPOSITORY)]}
    (users / "pyrightconfig.json").write_text(json.dumps(settings))
    command = (sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable)
    said = _run(*command, "-p", str(users))
    found = json.loads(said[said.index("{") :])["generalDiagnostics"]
    assert all(each["file"].endswith("wrong.py") for each in found), found
    lines = {each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"}
    assert sorted(lines) == FAULTS
