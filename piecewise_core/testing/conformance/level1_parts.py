"""L1, third part: what a compiler tells about itself, and what another process takes of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from piecewise_core.protocols import CompiledGraph
from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.fresh import ask_fresh
from piecewise_core.testing.conformance.level1 import INSIDE
from piecewise_core.testing.conformance.level1_runtime import differing
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import dispatched, rows, warmed
from piecewise_core.testing.conformance.verdicts import NotClaimed

__all__ = ["ORDINARY", "Parts"]

_LOADED = "test_a_loaded_artifact_is_as_the_compiled_one"
_KEPT = "test_kept_code_serves_a_second_model"
ORDINARY = (INSIDE, "test_inputs_are_left_as_they_are", _LOADED, _KEPT)
"""Fail where code is wrong about ordinary calls, or about its store; further tests rely on them."""


class Parts(Conformance):
    """Hash factors, and artifacts that are loaded."""

    # What else a compiler tells ---------------------------------------------------------

    @conformance("L1", "CompilerAdaptor.hash_factors")
    def test_hash_factors_are_short_strings(self, case: Case) -> None:
        """hash_factors gives a mapping of strings to strings, none longer than a line."""
        factors = dict(case.compiler.hash_factors())
        wrong = {
            name: value
            for name, value in factors.items()
            if not (isinstance(name, str) and isinstance(value, str) and len(value) <= 4096)
        }
        case.require(
            not wrong,
            "called hash_factors()",
            "a mapping from str to str, each at most 4096 characters",
            wrong,
            "give versions, flags and instruction sets as text; hash what is long",
        )

    @conformance("L1", "CompilerAdaptor.hash_factors")
    def test_hash_factors_are_the_same_every_time(self, case: Case) -> None:
        """hash_factors says the same at every call, and in another process."""
        first = dict(case.compiler.hash_factors())
        others = [dict(case.subject.make().compiler.hash_factors())]
        if case.has("entry point"):
            others.append(ask_fresh(case.subject, "hash_factors", PYTHONHASHSEED="7").found)
        differs = differing(first, *others)
        case.require(
            not differs,
            "called hash_factors() again, and in a fresh interpreter if the platform is installed",
            "the same factors",
            f"other values of: {', '.join(differs)}",
            "leave out ids, times, paths and hash() of strings: caches would never hit",
        )

    @conformance(
        "L1", "CompilerAdaptor.load", claims=("CompilerAdaptor.load",), relies_on=(INSIDE,)
    )
    def test_a_loaded_artifact_is_as_the_compiled_one(self, case: Case) -> None:
        """load() of what a handle gave computes what the compiled code did."""
        x = rows(case, 6)
        graph, fakes, context = _one_piece(x)
        with context:
            made = case.compiler.compile(graph, fakes, key="conformance", config=_config())
        case.require(
            made.handle is not None,
            "compiled one piece with a compiler that has load()",
            "a CompiledGraph with a handle: a callable that gives the artifact as bytes",
            made,
            "return CompiledGraph(run, handle), or leave load() out",
        )
        loaded = case.compiler.load(_bytes_of(made))
        expected = made.run(x)[0]
        case.equal(
            loaded.run(x)[0],
            expected,
            "loaded what the handle gave, and ran both",
            "put all that the artifact needs into the bytes",
        )

    @conformance(
        "L1",
        "CompilerAdaptor.load",
        claims=("CompilerAdaptor.load",),
        relies_on=(_LOADED,),
    )
    def test_kept_code_serves_a_second_model(self, case: Case) -> None:
        """What one model compiled, a second takes from the store, as eager at any size."""
        dispatched(case)
        model, fast, counted = warmed(case)
        for size in (0, 1, 4, 5, 6, 20, 32):
            x = rows(case, size)
            expected = model(x)
            change = "put all that the code needs into the bytes, for every size of its range"
            did = f"called a second model, its code from the store, with {size} rows"
            case.equal(fast(x), expected, did, change)
        case.require(
            not counted.keys,
            "compiled the same model twice, with one store",
            "no call of compile for the second",
            f"{len(counted.keys)} calls",
            "take in load() what handle() gave; raise only where the machine is another",
        )

    @conformance(
        "L1",
        "CompilerAdaptor.load",
        claims=("CompilerAdaptor.load",),
        relies_on=(_LOADED,),
    )
    def test_kept_code_serves_another_process(self, case: Case) -> None:
        """What handle() gave is all that another process needs to run the code."""
        subject = case.subject
        if not (subject.entry or (subject.brought and subject.brought.module)):
            raise NotClaimed("it was given as an object, which another process cannot make")
        graph, fakes, context = _one_piece(rows(case, 6))
        with context:
            made = case.compiler.compile(graph, fakes, key="conformance", config=_config())
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "handle")
            file.write_bytes(_bytes_of(made))
            found = ask_fresh(subject, "load", CONFORMANCE_HANDLE=str(file)).found
        case.equal(
            torch.tensor(found),
            (rows(case, 6) * 3)[0].cpu(),
            "gave the bytes to load() in a fresh interpreter, and ran what it made",
            "put all that the code needs into the bytes; keep no table in the process",
        )


def _bytes_of(made: CompiledGraph) -> Any:
    return made.handle() if callable(made.handle) else made.handle


def _config() -> Any:
    from piecewise_core.config import Config

    return Config()


def _one_piece(example: torch.Tensor) -> tuple[Any, list[Any], Any]:
    """A piece without sizes, its fake inputs like ``example``, and the context that compilers look
    them up in.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from piecewise_core.torch_compat.fakes import FakeTensorMode, TracingContext, tracing

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(torch.mul, (x, 3)),))
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fake = mode.from_tensor(example, static_shapes=True)
    x.meta["example_value"] = fake
    module = torch.fx.GraphModule(nn.Module(), graph)
    return module, [fake], tracing(TracingContext(mode))
