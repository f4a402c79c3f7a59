"""Compilers that raise, hang, return no tensors or keep what they were given: each is named."""

from __future__ import annotations

import time

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import CompileFailed, OpContractBroken
from piecewise_core.protocols import CompiledGraph
from piecewise_core.testing import SimulatedPlatform
from piecewise_core.testing.conformance.running import run_suite, suite_for
from piecewise_core.testing.conformance.timelimit import TookTooLong, time_limit

INSIDE = "test_sizes_inside_a_range_are_as_eager"


class Plain:
    name = "plain"

    def compile(self, graph, example_inputs, *, key, config):
        return CompiledGraph(self.around(graph.forward))

    def around(self, run):
        return run

    def hash_factors(self):
        return {}


class Raises(Plain):
    def compile(self, graph, example_inputs, *, key, config):
        raise KeyError("opcode 7")


class Hangs(Plain):
    def compile(self, graph, example_inputs, *, key, config):
        while True:
            time.sleep(0.01)


class HangsStubbornly(Plain):
    def compile(self, graph, example_inputs, *, key, config):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                time.sleep(1)
            except Exception:  # as code does that means to try again
                if getattr(self, "tried", False):
                    raise
                self.tried = True


class CodeHangs(Plain):
    def around(self, run):
        def hang(*args):
            time.sleep(60)

        return hang


class Keeps(Plain):
    """Computes with the tensors of its first call."""

    def around(self, run):
        kept = []

        def of_the_first(*args):
            kept.extend(args if not kept else ())
            return run(*kept)

        return of_the_first


def garbage(value):
    class Garbage(Plain):
        def around(self, run):
            return lambda *args: value(run(*args))

    return Garbage


GARBAGE = {
    "nothing": lambda out: None,
    "a number": lambda out: 3,
    "a bare tensor": lambda out: out[0],
    "a text": lambda out: "result",
    "arrays of NumPy": lambda out: [value.numpy() for value in out],
    "numbers": lambda out: [1.0 for _ in out],
    "one too many": lambda out: [*out, out[0]],
    "none at all": lambda out: [],
    "a generator": lambda out: (value for value in out),
    "by name": lambda out: dict(enumerate(out)),
}


def place(compiler):
    class Place(SimulatedPlatform):
        def __init__(self):
            super().__init__()
            self.compiler = compiler

    return Place


def said_of(compiler, seconds=600.0):
    """What the kit says of sizes inside a range, where everything begins."""
    suite = suite_for(place(compiler), level="L1")
    suite.seconds = seconds
    results = run_suite(suite, chosen=lambda spec: spec.name == INSIDE or spec.level == "L0")
    (found,) = [result for result in results if result.name == INSIDE]
    assert found.outcome == "failed"
    return found.reason


def test_one_that_raises_is_shown_with_its_own_error():
    reason = said_of(Raises())
    assert "KeyError: 'opcode 7'" in reason
    assert "in compile: raise KeyError" in reason


@pytest.mark.parametrize("compiler", [Hangs, HangsStubbornly, CodeHangs])
def test_one_that_hangs_is_stopped_and_shown_where(compiler, monkeypatch):
    monkeypatch.setattr("piecewise_core.testing.conformance.timelimit._AGAIN", 0.3)
    begun = time.monotonic()
    reason = said_of(compiler(), seconds=1.5)
    assert time.monotonic() - begun < 15
    assert "no answer within 1.5 s; the trace shows where it stood" in reason
    assert "time.sleep" in reason


@pytest.mark.parametrize("what", GARBAGE)
def test_what_is_no_list_of_tensors_is_refused_and_the_compiler_named(what):
    compiler = garbage(GARBAGE[what])()
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", 0, 8)}})
    fast = pw.compile(lambda x: (torch.relu(x) + 1, x * 2), config, platform=place(compiler)())
    with torch.inference_mode(), pytest.raises(OpContractBroken, match="compiler 'plain'"):
        fast(torch.ones(3, 4))
    assert "compiler 'plain'" in said_of(compiler)


@pytest.mark.parametrize("made", [None, 3, lambda *args: args, (lambda *args: args, None)])
def test_what_compile_gives_must_be_a_compiled_graph(made):
    class Odd(Plain):
        def compile(self, graph, example_inputs, *, key, config):
            return made

    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", 0, 8)}})
    fast = pw.compile(lambda x: torch.relu(x) + 1, config, platform=place(Odd())())
    with torch.inference_mode(), pytest.raises(CompileFailed, match="CompiledGraph"):
        fast(torch.ones(3, 4))


def test_one_that_keeps_its_first_inputs_is_found():
    assert "got:" in said_of(Keeps())


def test_a_limit_that_is_not_reached_changes_nothing():
    with time_limit(60):
        pass
    with pytest.raises(TookTooLong), time_limit(0.05):
        time.sleep(5)
    time.sleep(0.1)  # its timer is off
