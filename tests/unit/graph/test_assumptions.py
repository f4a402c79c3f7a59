"""What a trace took for granted, and how it is told that it no longer holds."""

from __future__ import annotations

import functools
import types

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.graph.codedigests import code_digest
from piecewise_core.graph.codefacts import CodeFact, changed, code_facts

SCALE = 2.0


class Settings:
    def __init__(self) -> None:
        self.bias = True
        self.act = "relu"


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-5

    def forward(self, x):
        return x / (x.std() + self.eps)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()
        self.inner = Inner()
        self.order = [1, 2]
        self.linear = nn.Linear(4, 4)

    def forward(self, x, flag=True):
        y = self.linear(x) * SCALE
        if hasattr(self, "extra"):
            y = y + 1
        if self.settings.bias:
            y = y + 1
        for power in self.order:
            y = y**power
        return self.inner(torch.relu(y) if self.settings.act == "relu" else y)


def traced(model):
    fast = pw.compile(model, pw.Config(dynamic={"x": {0: pw.Dim("n", 1, 8)}}, compiler="eager"))
    with torch.inference_mode():
        fast(torch.randn(3, 4))
    session = fast._pw_session
    return session.regions[0].program.traced.assumptions, session.fn


def broken(assumptions, model):
    return list(assumptions.broken(model.forward, [True]))


def test_an_equal_model_breaks_nothing():
    assumptions, _ = traced(Model())
    assert broken(assumptions, Model()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda m: setattr(m.settings, "act", "gelu"),
            "model.settings.act is 'gelu', and was 'relu'",
        ),
        (
            lambda m: setattr(m.settings, "bias", False),
            "model.settings.bias is False, and was True",
        ),
        (lambda m: setattr(m.inner, "eps", 1e-6), "model.inner.eps is 1e-06, and was 1e-05"),
        (lambda m: m.order.append(3), "len(model.order) is 3, and was 2"),
        (lambda m: setattr(m, "inner", nn.Identity()), "model.inner is type"),
        (lambda m: setattr(m, "extra", 1), "hasattr(model, 'extra') is True, and was False"),
        (lambda m: delattr(m.settings, "bias"), "model.settings.bias is not there"),
        (lambda m: m.inner.register_forward_hook(print), "len(model.inner._forward_hooks) is 1"),
    ],
)
def test_every_change_that_the_trace_saw_is_told_by_name(change, said):
    assumptions, _ = traced(Model())
    model = Model()
    change(model)
    assert any(said in line for line in broken(assumptions, model)), broken(assumptions, model)


def test_a_changed_global_is_told(monkeypatch):
    assumptions, _ = traced(Model())
    monkeypatch.setattr(f"{__name__}.SCALE", 3.0)
    assert any("SCALE is 3.0, and was 2.0" in line for line in broken(assumptions, Model()))


def test_a_changed_method_is_told(monkeypatch):
    assumptions, _ = traced(Model())
    monkeypatch.setattr(Inner, "forward", lambda self, x: x)
    assert any("Inner.forward" in line for line in broken(assumptions, Model()))


def test_a_setting_of_torch_that_changed_is_told():
    assumptions, _ = traced(Model())
    torch.set_float32_matmul_precision("high")
    try:
        assert any("matmul_precision is high" in line for line in broken(assumptions, Model()))
    finally:
        torch.set_float32_matmul_precision("highest")


# Code ---------------------------------------------------------------------------------


def first(x, scale=2):
    return [x * scale for _ in range(3)]


def test_a_digest_does_not_depend_on_where_the_code_stands():
    moved = first.__code__.replace(co_filename="elsewhere.py", co_firstlineno=99)
    assert code_digest(moved) == code_digest(first.__code__)


def test_a_digest_depends_on_what_the_code_does():
    texts = ["x * 2", "x * 3", "x * 2.0", "x + 2", "y * 2", "x in {1, 2}", "x in {1, 3}"]
    codes = [compile(f"def f(x, y):\n return {t}", "a", "exec").co_consts[0] for t in texts]
    assert len({code_digest(c) for c in codes}) == len(texts)


def decorated(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return fn(*args)

    return wrapper


@decorated
def second(x):
    return x + 1


def test_functions_are_found_again_behind_decorators_and_inside_functions():
    codes = [second.__wrapped__.__code__, second.__code__, first.__code__]
    codes += [c for c in first.__code__.co_consts if isinstance(c, types.CodeType)]
    facts = code_facts(codes).facts
    assert {f.name for f in facts} >= {"first", "second", "decorated.<locals>.wrapper"}
    assert list(changed(facts)) == []


def test_code_that_changed_or_went_is_told():
    (fact,) = code_facts([first.__code__]).facts
    other = CodeFact(fact.module, fact.name, "0" * 32, fact.file)
    assert list(changed([other])) == [f"the code of {__name__}.first changed"]
    gone = CodeFact(fact.module, "nothing", fact.digest, "0" * 32)
    assert list(changed([gone])) == [f"the code of {__name__}.nothing is not there"]
    module = CodeFact("no_such_module", "f", fact.digest, "")
    assert "cannot be imported" in next(iter(changed([module])))


def test_torch_itself_counts_by_its_version():
    assert code_facts([torch.nn.Linear.forward.__code__]).facts == ()
