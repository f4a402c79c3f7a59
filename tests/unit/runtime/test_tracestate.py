"""What is asked again behind a reading: what the watch cannot have seen, and no more."""

import pytest
import torch

from piecewise_core.graph.assumptions import Assumptions
from piecewise_core.graph.facts import Evaluated, answer_of, scope_of
from piecewise_core.runtime import tracestate
from piecewise_core.runtime.tracestate import TraceState


def scaled(x, factor=2.0):
    return x * factor


@pytest.fixture
def fn():
    code = scaled.__code__
    yield scaled
    scaled.__code__ = code


def watched(fn, source="L['fn']"):
    value = Evaluated(scope_of(fn, (), {}, {}))[source]
    facts = ((source, None, answer_of(value, None)),)
    state = TraceState("cpu")
    state.add(Assumptions(facts, {}, (), {}, {}), fn, ())
    return state


def test_facts_are_read_once_where_nothing_was_written_meanwhile(fn, monkeypatch):
    readings, read = [], tracestate.Reading
    monkeypatch.setattr(tracestate, "Reading", lambda *given: readings.append(1) or read(*given))
    assert watched(fn).changed is None
    assert len(readings) == 1


def test_a_function_that_was_given_equal_code_before_it_was_watched_is_another(fn, monkeypatch):
    watch = tracestate.Watch

    def behind_a_write(containers):
        fn.__code__ = fn.__code__.replace()
        return watch(containers)

    monkeypatch.setattr(tracestate, "Watch", behind_a_write)
    assert watched(fn).changed == "function is another object"


@pytest.mark.parametrize("source", ["G['torch'].get_default_dtype()", "L['fn']"])
def test_a_switch_that_was_turned_before_it_was_watched_is_noticed(fn, monkeypatch, source):
    """Whether a fact is of it or the trace only went by it."""
    watch, before = tracestate.Watch, torch.get_default_dtype()

    def behind_a_write(containers):
        torch.set_default_dtype(torch.float64)
        return watch(containers)

    monkeypatch.setattr(tracestate, "Watch", behind_a_write)
    try:
        assert "get_default_dtype" in watched(fn, source).changed
    finally:
        torch.set_default_dtype(before)
