"""A compiler may leave pieces alone, or serve fewer sizes than asked: never without a word."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import CompileFailed, PieceDeclined
from piecewise_core.protocols import Box, Capabilities, CompiledGraph, Range
from piecewise_core.testing import SimulatedPlatform


class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream):
        return nullcontext()

    def synchronize(self): ...


LOW = Box((Range(0, 16),))


class Partial:
    """Declines pieces with tanh, and makes code for up to 16 rows of those with relu.

    Code is NaN where it is not meant to be used.
    """

    name = "partial"

    def __init__(self, serves=LOW):
        self.serves = serves
        self.calls = []

    def compile(self, graph, example_inputs, *, key, config):
        source = graph.graph.python_code("self").src
        self.calls.append(source)
        if "tanh" in source:
            raise PieceDeclined("tanh is not in its table")
        serves = self.serves if "relu" in source else None
        return CompiledGraph(self._run(source, serves), lambda: source.encode(), serves)

    def load(self, handle):
        source = handle.decode()
        return CompiledGraph(self._run(source, self.serves if "relu" in source else None))

    def hash_factors(self):
        return {"partial": "1"}

    def _run(self, source, serves):
        scope = {"torch": torch}
        exec(source, scope)

        def run(*args):
            out = scope["forward"](None, *args)
            wrong = serves is not None and args[0] not in serves.ranges[0]
            return [o * torch.nan for o in out] if wrong else out

        return run


def model(x):
    x = torch.softmax(torch.relu(x) + 1, -1)
    x = torch.softmax(torch.tanh(x) * 2, -1)
    return x * 3


def compiled(compiler, **config):
    place = SimpleNamespace(
        name="partial",
        device=Runtime(),
        graphs=None,
        compiler=compiler,
        capabilities=Capabilities(),
    )
    settings = {"dynamic": {"x": {0: pw.Dim("rows", 0, 64)}}, "splitting_ops": ("torch.softmax",)}
    return pw.compile(model, pw.Config(**settings, **config), place)


def as_eager(fast, sizes=(0, 1, 16, 17, 64)):
    with torch.inference_mode():
        for size in sizes:
            x = torch.randn(size, 4)
            torch.testing.assert_close(fast(x), model(x), msg=lambda m, n=size: f"{n}: {m}")


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.WARNING, "piecewise_core")
    return caplog


def test_what_is_declined_or_served_in_part_runs_as_written_is_counted_and_shown(log):
    fast = compiled(Partial())
    as_eager(fast)
    assert fast.stats().declined == 2
    shown = str(fast.explain())
    for text in ("tanh is not in its table; it runs as written", "other sizes run as written"):
        assert text in shown
        assert text in log.text
    assert "declined 2" in shown


@pytest.mark.parametrize("mode", ["lazy", "warmup"])
def test_a_warm_start_says_the_same_and_asks_the_compiler_nothing(log, tmp_path, mode, monkeypatch):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    first, second = Partial(), Partial()
    as_eager(compiled(first, cache_dir=tmp_path, compile_mode=mode))
    assert first.calls
    log.clear()
    fast = compiled(second, cache_dir=tmp_path, compile_mode=mode)
    as_eager(fast)
    assert second.calls == []
    assert (fast.stats().declined, fast.stats().compilations) == (2, 0)
    assert "tanh is not in its table" in log.text
    assert "tanh is not in its table" in str(fast.explain())
    assert "made code for" in log.text


def test_ranges_and_sizes_are_declined_by_themselves(log):
    fast = compiled(Partial(), compile_ranges_endpoints=(8, 32), compile_sizes=(20,))
    with torch.inference_mode():
        report = fast.warmup(torch.randn(3, 4), progress=False)
    as_eager(fast)
    # tanh in three ranges and one size; relu from [9, 32] on, and at 20.
    assert fast.stats().declined == 4 + 3
    assert sum("tanh" in note for note in report.as_written) >= 1


def test_a_declined_piece_is_captured_as_written():
    class Device(SimulatedPlatform):
        def __init__(self):
            super().__init__()
            self.compiler = Partial()

    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 0, 64)}},
        splitting_ops=("torch.softmax",),
        capture_sizes=(4, 32),
        padding="capture_sizes",
    )
    fast = pw.compile(model, config, Device())
    with torch.inference_mode():
        assert fast.warmup(torch.randn(3, 4), progress=False).dropped == ()
    as_eager(fast, (1, 4, 20, 32, 40))
    assert fast.stats().calls["replayed"] == 5


@pytest.mark.parametrize(
    ("serves", "complaint"),
    [
        (Box((Range(0, 16), Range(0, 3))), "one whole Range for each of the piece's 1 sizes"),
        (Box((Range(0, 16, 2, 1),)), "one whole Range for each"),
        ((0, 16), "expected a Box, or None, as serves"),
    ],
)
def test_a_malformed_serves_is_an_error_of_the_compiler_s(serves, complaint):
    fast = compiled(Partial(serves))
    with torch.inference_mode(), pytest.raises(CompileFailed) as caught:
        fast(torch.randn(3, 4))
    assert complaint in str(caught.value)
    assert "'partial'" in str(caught.value)


def test_code_for_no_size_that_was_asked_for_runs_as_written(log):
    fast = compiled(Partial(Box((Range(100, 200),))))
    as_eager(fast)
    assert fast.stats().declined == 2
    assert "only; it runs as written" in log.text


def test_serves_of_two_sizes_is_read_by_their_order():
    class Two(Partial):
        def _run(self, source, serves):
            scope = {"torch": torch}
            exec(source, scope)

            def run(*args):
                out = scope["forward"](None, *args)
                inside = all(n in r for n, r in zip(args, serves.ranges, strict=False))
                return out if inside else [o * torch.nan for o in out]

            return run

    place = SimpleNamespace(
        device=Runtime(),
        graphs=None,
        compiler=Two(Box((Range(0, 64), Range(3, 5)))),
        capabilities=Capabilities(),
    )
    dims = {0: pw.Dim("rows", 0, 64), 1: pw.Dim("cols", 1, 8)}
    fast = pw.compile(lambda x: torch.relu(x) + x.shape[1], pw.Config(dynamic={"x": dims}), place)
    with torch.inference_mode():
        for shape in ((2, 2), (3, 3), (64, 5), (1, 6), (0, 1)):
            x = torch.randn(shape)
            torch.testing.assert_close(fast(x), torch.relu(x) + shape[1])
    assert fast.stats().declined == 1
