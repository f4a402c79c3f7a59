"""The small models that are compiled on a platform under test."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import PieceDeclined
from piecewise_core.protocols import CompiledGraph, Platform
from piecewise_core.testing.conformance.case import Case

__all__ = [
    "BOUNDS",
    "ENDS",
    "EXACT",
    "Counted",
    "Layered",
    "compile_on",
    "dispatched",
    "rows",
    "warmed",
]

BOUNDS = (0, 32)
ENDS = (4, 8)
EXACT = 6
"""Sizes from 0 to 32 in ranges [0, 4], [5, 8], [9, 32], and 6 on its own."""

_WIDTH = 8


class Layered(nn.Module):
    """Three pieces, of which the first two are alike, around two splitting ops."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in range(3))
        for number, parameter in enumerate(self.parameters()):
            fixed = torch.arange(parameter.numel()).reshape(parameter.shape)
            parameter.data = torch.sin(fixed + number) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place, layer in enumerate(self.layers):
            x = layer(x).relu()
            if place < 2:
                x = torch.softmax(x, -1)
        return x * 2


class Counted:
    """A platform whose compiler's calls are counted: ``keys``, one per call.

    ``declined``: what it said of the pieces that it left alone.
    """

    def __init__(self, platform: Platform, device_type: str) -> None:
        self.keys: list[str] = []
        self.declined: list[str] = []
        self.device, self.graphs = platform.device, platform.graphs
        self.capabilities = platform.capabilities
        self.compiler = _Counting(platform.compiler, self.keys, self.declined)
        self.device_type = device_type
        self.name = str(getattr(platform, "name", type(platform).__name__.lower()))
        backend = getattr(platform, "piecewise_backend", None)
        if backend is not None:
            self.piecewise_backend = backend


class _Counting:
    """A CompilerAdaptor that notes the keys it is called with."""

    def __init__(self, compiler: Any, keys: list[str], declined: list[str]) -> None:
        self._compiler, self._keys, self._declined = compiler, keys, declined
        self.name = compiler.name
        for optional in ("load", "configure", "passes"):
            if hasattr(compiler, optional):
                setattr(self, optional, getattr(compiler, optional))

    def compile(
        self, graph: Any, example_inputs: Any, *, key: str, config: pw.Config
    ) -> CompiledGraph:
        """Note and pass on."""
        self._keys.append(key)
        try:
            made: CompiledGraph = self._compiler.compile(
                graph, example_inputs, key=key, config=config
            )
        except PieceDeclined as reason:
            self._declined.append(str(reason))
            raise
        return made

    def hash_factors(self) -> Any:
        """The compiler's own."""
        return self._compiler.hash_factors()


def rows(case: Case, size: int, start: float = 0.0) -> torch.Tensor:
    """``size`` rows on the device, no two alike."""
    count = size * _WIDTH
    values = torch.sin(torch.arange(count, dtype=torch.float32) * 0.7 + start)
    return values.reshape(size, _WIDTH).to(case.device_type)


def compile_on(case: Case, model: Any, platform: Any = None, **config: Any) -> Any:
    """``pw.compile`` of a model with input "x" of varying rows, on the platform under test."""
    low, high = config.pop("bounds", BOUNDS)
    settings = {"dynamic": {"x": {0: pw.Dim("n", low, high)}}, "cache_dir": store(case), **config}
    with _own_settings():
        return pw.compile(model, pw.Config(**settings), platform=platform or _named(case))


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """Without the variables of a user, which would choose another store, mode or compiler."""
    before = {n: os.environ.pop(n) for n in list(os.environ) if n.startswith("PIECEWISE_")}
    try:
        yield
    finally:
        os.environ.update(before)


def store(case: Case) -> str:
    """The compile store of this run, empty when it begins: what other code left is not used."""
    return case.once("store", _Store).path


class _Store:
    """A directory that goes with the run."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="piecewise-conformance-")
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _named(case: Case) -> Any:
    """The platform with its device type, which an object need not say."""
    return Counted(case.platform, case.device_type)


def dispatched(case: Case) -> tuple[Any, Any, Counted]:
    """(model, its compiled form, what counts its compilations), warmed up; made once a suite."""
    return case.once("dispatched", lambda: warmed(case))


def warmed(case: Case) -> tuple[Any, Any, Counted]:
    """The same, made anew; what the run's store has of it is loaded."""
    model = Layered().to(case.device_type).eval()
    counted = Counted(case.platform, case.device_type)
    fast = compile_on(
        case,
        model,
        counted,
        compile_ranges_endpoints=ENDS,
        compile_sizes=(EXACT,),
        splitting_ops=("torch.softmax",),
    )
    fast.warmup(rows(case, 3), progress=False)
    return model, fast, counted
