"""Compiled code is used only for sizes that it holds for, whatever the compiler assumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

import piecewise_core as pw
from piecewise_core.compile.examples import make_job
from piecewise_core.compile.valid_range import valid_range
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.names import Matcher
from piecewise_core.graph.split import Piece, split
from piecewise_core.graph.trace import trace
from piecewise_core.protocols import Capabilities, CompiledGraph
from piecewise_core.ranges import Box, Range

ROWS = pw.Dim("rows", 0, 64)
COLS = pw.Dim("cols", 1, 32)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream):
        return nullcontext()

    def synchronize(self): ...


class Assuming:
    """Assumes something of the sizes, and makes code that is wrong wherever that fails."""

    name = "assuming"

    def __init__(self, assume: Callable[..., bool]) -> None:
        self.assume = assume

    def compile(self, graph, example_inputs, *, key, config):
        sizes = [v for v in example_inputs if not isinstance(v, torch.Tensor)]
        assumed = bool(self.assume(*sizes))  # leaves a guard behind when it depends on a symbol

        def run(*args):
            real = [v for v in args if not isinstance(v, torch.Tensor)]
            right = bool(self.assume(*real)) == assumed
            results = graph.forward(*args)
            return results if right else tuple(torch.full_like(r, torch.nan) for r in results)

        return CompiledGraph(run)

    def hash_factors(self):
        return {}


def compiled(fn, assume, dynamic, **config):
    place = SimpleNamespace(
        device=Runtime(), graphs=None, compiler=Assuming(assume), capabilities=Capabilities()
    )
    return pw.compile(fn, pw.Config(dynamic=dynamic, **config), place)


@pytest.mark.parametrize(
    "assume",
    [
        lambda n: n > 16,
        lambda n: n <= 40,
        lambda n: n % 8 == 0,
        lambda n: n * n > 100,
        lambda n: n != 1,
        lambda n: n == 32,
        lambda n: (n + 7) // 8 > 3,
    ],
    ids=["above", "below", "divisible", "square", "not one", "one size", "blocks"],
)
def test_sizes_that_break_an_assumption_run_as_written(assume):
    fast = compiled(lambda x: x * 2 + x.shape[0], assume, {"x": {0: ROWS}})
    for size in range(65):
        x = torch.randn(size, 3)
        torch.testing.assert_close(fast(x), x * 2 + size, msg=lambda m, n=size: f"size {n}: {m}")
    assert fast.stats().compilations == 1


def test_the_explanation_and_the_log_name_the_assumption(caplog):
    fast = compiled(lambda x: x * 2, lambda n: n > 16, {"x": {0: ROWS}})
    with caplog.at_level(logging.WARNING, "piecewise_core"):
        report = fast.warmup(torch.randn(3, 3), progress=False)
    assert "the compiler fixed" in caplog.text
    assert "test_valid_range.py" in caplog.text
    (note,) = report.as_written
    assert "other sizes run as written" in note
    assert note.removeprefix("region 0 piece 0: ") in str(fast.explain(verbose=True))


def test_an_assumption_that_holds_in_the_whole_range_costs_nothing(caplog):
    fast = compiled(
        lambda x: x * 2, lambda n: n >= 0, {"x": {0: ROWS}}, compile_ranges_endpoints=(16,)
    )
    report = fast.warmup(torch.randn(3, 3), progress=False)
    assert report.as_written == ()
    for size in (0, 1, 16, 17, 64):
        x = torch.randn(size, 3)
        torch.testing.assert_close(fast(x), x * 2)


def test_an_assumption_about_two_dims_runs_the_whole_box_as_written():
    dynamic = {"x": {0: ROWS, 1: COLS}}
    fast = compiled(lambda x: x * 2, lambda rows, cols: rows < cols, dynamic)
    for shape in ((3, 8), (8, 3), (5, 5), (0, 1), (64, 32)):
        x = torch.randn(shape)
        torch.testing.assert_close(fast(x), x * 2)


def test_an_assumption_about_one_of_two_dims_cuts_that_dim():
    dynamic = {"x": {0: ROWS, 1: COLS}}
    fast = compiled(lambda x: x * 2, lambda rows, cols: cols > 8, dynamic)
    for rows in (0, 1, 30, 64):
        for cols in (1, 8, 9, 32):
            x = torch.randn(rows, cols)
            torch.testing.assert_close(fast(x), x * 2)


@pytest.fixture(scope="module")
def vector() -> tuple[Piece, dict[sympy.Symbol, int]]:
    """A piece over one vector, of which only the size varies."""
    config = pw.Config(dynamic={0: {0: pw.Dim("n", 0, 80)}})
    structure = describe_call(lambda x: x * x.shape[0], (torch.randn(3),), {}, config)
    traced = trace(lambda x: x * x.shape[0], structure, config, config.bounds, lambda tensor: 0)
    return split(traced, Matcher(())).compilable[0], dict(traced.symbols)


@given(
    low=st.integers(0, 30),
    width=st.integers(1, 40),
    threshold=st.integers(-2, 75),
    above=st.booleans(),
)
def test_the_served_part_is_where_the_guard_holds(vector, low, width, threshold, above):
    job = make_job(*vector, Box((Range(low, low + width),)))
    size = job.inputs[0]
    held = bool(size > threshold if above else size <= threshold)
    right = [n for n in range(low, low + width + 1) if ((n > threshold) == above) == held]
    assert valid_range(job)[0] == Box((Range(right[0], right[-1]),))
