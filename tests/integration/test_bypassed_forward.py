"""Methods of a compiled module that run parts of the model past its forward say so, once."""

from __future__ import annotations

import inspect
import sys
import threading

import pytest
import torch
from torch import nn

import piecewise_core as pw


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x)

    def generate(self, x, steps=3):
        for _ in range(steps):
            x = self(x)
        return x

    def features(self, x):
        return self.linear(x).relu()

    def tokenize(self, number):
        return torch.tensor([number])

    def begin_and_run(self, x):
        return self(self.linear(x))


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x)

    def generate(self, x):
        return self.inner.generate(x)


class HandsOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def said(caplog):
    return [r.message for r in caplog.records if "ran as written: it does not call" in r.message]


def compiled(model):
    return pw.compile(model.eval(), pw.Config(compiler="eager"))


def run(model, name, *args):
    """Twice, compared with the original."""
    fast = compiled(model)
    for _ in range(2):
        torch.testing.assert_close(getattr(fast, name)(*args), getattr(model, name)(*args))
    return fast


@pytest.mark.parametrize("kind", [Around, HandsOn])
def test_generate_of_a_model_inside_names_the_part_to_compile(kind, caplog):
    x = torch.randn(2, 8)
    fast = run(kind(), "generate", x)
    (text,) = said(caplog)
    assert f"{kind.__name__}.generate() ran as written" in text
    assert 'its part "inner"' in text
    assert "pw.compile(model.inner, config), and call its generate()" in text
    assert not sum(fast.stats().calls.values())


def test_a_method_that_runs_parts_names_itself(caplog):
    run(Inner(), "features", torch.randn(2, 8))
    (text,) = said(caplog)
    assert "pw.compile(model.features, config)" in text


@pytest.mark.parametrize(
    ("name", "args"),
    [("generate", (torch.ones(2, 8),)), ("tokenize", (3,)), ("begin_and_run", (torch.ones(2, 8),))],
)
def test_a_method_that_calls_the_compiled_forward_or_no_forward_says_nothing(name, args, caplog):
    run(Inner(), name, *args)
    assert not said(caplog)


def test_a_part_that_was_told_of_is_served_when_compiled(caplog):
    model = Around().eval()
    fast = compiled(model.inner)
    x = torch.randn(2, 8)
    torch.testing.assert_close(fast.generate(x), model.generate(x))
    assert fast.stats().calls["compiled_range"] == 3
    assert not said(caplog)


def test_it_is_said_once_whatever_thread_calls(caplog):
    fast, x = compiled(Around()), torch.randn(2, 8)
    fast.generate(x)
    thread = threading.Thread(target=fast.generate, args=(x,))
    thread.start()
    thread.join()
    assert len(said(caplog)) == 1
    assert sys.getprofile() is None


def test_a_method_that_raises_leaves_nothing_behind(caplog):
    fast = compiled(Around())
    with pytest.raises(TypeError):
        fast.generate(None, None)
    assert sys.getprofile() is None
    fast.generate(torch.randn(2, 8))
    assert len(said(caplog)) == 1


def test_another_profiler_is_left_alone():
    fast, seen = compiled(Around()), []

    def look(frame, event, _argument):
        seen.append(event)

    sys.setprofile(look)
    try:
        fast.generate(torch.randn(2, 8))
        assert sys.getprofile() is look
    finally:
        sys.setprofile(None)
    assert seen


def test_methods_keep_their_names_and_signatures():
    fast = compiled(Around())
    assert inspect.signature(fast.generate) == inspect.signature(Around().generate)
    assert type(fast).generate.__qualname__ == "Around.generate"


def test_a_compiled_model_whose_method_another_compiler_traces_is_traced(caplog):
    fast, x = compiled(Inner()), torch.randn(2, 8)
    outer = torch.compile(lambda x: fast.features(x) + 1, backend="eager")
    torch.testing.assert_close(outer(x), fast.features(x) + 1)
