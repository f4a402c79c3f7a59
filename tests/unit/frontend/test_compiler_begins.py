"""A compiler that has something to begin is told before a trace whose pieces it will compile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import piecewise_core as pw
from piecewise_core.protocols import CompiledGraph
from piecewise_core.testing import SimulatedPlatform


class Compiler:
    """Notes in ``told`` what is asked of it."""

    name = "noting"

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def begin(self) -> None:
        self.told.append("begin")

    def compile(self, graph: Any, example_inputs: Sequence[Any], **_: Any) -> CompiledGraph:
        self.told.append("compile")
        return self._made(graph.graph.python_code("self").src.encode())

    def load(self, handle: bytes) -> CompiledGraph:
        self.told.append("load")
        return self._made(handle)

    def _made(self, handle: bytes) -> CompiledGraph:
        scope: dict[str, Any] = {"torch": torch}
        exec(handle.decode(), scope)
        return CompiledGraph(lambda *args: scope["forward"](None, *args), lambda: handle)

    def hash_factors(self) -> Mapping[str, str]:
        return {}


def model(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) + 1


def live(**settings: Any) -> list[str]:
    """What was asked of the compiler until a call was answered."""
    told: list[str] = []
    platform = SimulatedPlatform()
    platform.compiler = Compiler(told)
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", min=2, max=8)}}, **settings)
    fast = pw.compile(model, config, platform=platform)
    told.append("call")
    with torch.inference_mode():
        assert torch.equal(fast(torch.ones(3, 4)), torch.full((3, 4), 2.0))
    return told


def test_it_begins_with_the_first_call_and_before_it_compiles() -> None:
    assert live() == ["call", "begin", "compile"]


def test_it_does_not_where_another_process_compiles() -> None:
    assert "begin" not in live(compile_mode="background")


def test_it_does_not_where_the_trace_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    assert live() == ["call", "begin", "compile"]
    assert live() == ["call", "load"]
