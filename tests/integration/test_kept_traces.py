"""A kept trace answers for the program that it was made of: pairs that differ in one fact."""

from __future__ import annotations

import collections
import functools
import types

import pytest
import torch
from torch import nn

import piecewise_core as pw

CONFIG = pw.Config(dynamic={"x": {0: pw.Dim("rows", 1, 16)}}, compiler="eager")


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    torch._dynamo.reset()
    with torch.inference_mode():
        yield


class Asks(nn.Module):
    """Multiplies by what ``ask`` finds out about ``held``."""

    def __init__(self, ask, held) -> None:
        super().__init__()
        self.ask = ask
        if isinstance(held, torch.Tensor) and not isinstance(held, nn.Parameter):
            self.register_buffer("held", held)
        else:
            self.held = held

    def forward(self, x):
        return x * self.ask(self.held)


def asked(ask, *held):
    return [Asks(ask, one) for one in held]


def functions(make):
    return [make(2.0), make(3.0)]


class Own(torch.Tensor):
    pass


@torch.inference_mode(False)
def tensors():
    leaf, plain = torch.ones(2, requires_grad=True), torch.ones(2)
    trained = torch.ones(2, requires_grad=True)
    trained.grad = torch.ones(2)
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    marked = torch.ones(2)
    marked.mark = 1
    return {
        "a parameter": asked(lambda w: 2.0 if isinstance(w, nn.Parameter) else 7.0, frozen, plain),
        "gradients": asked(lambda w: 2.0 if w.requires_grad else 7.0, leaf, plain),
        "a leaf": asked(lambda w: 2.0 if w.is_leaf else 7.0, leaf, leaf * 1),
        "a gradient": asked(lambda w: 2.0 if w.grad is None else 7.0, leaf, trained),
        "a subclass": asked(
            lambda w: 2.0 if isinstance(w, Own) else 7.0, torch.ones(2).as_subclass(Own), plain
        ),
        "a mark": asked(lambda w: 2.0 if hasattr(w, "mark") else 7.0, marked, plain),
    }


def executed(text, **scope):
    def make(factor):
        names = {**scope, "factor": factor}
        exec(text.replace("FACTOR", str(factor)), names)
        return names["model"]

    return functions(make)


@functools.cache
def shared_code():
    def base(x):
        return x * factor  # noqa: F821  # of the globals that are given

    return base.__code__


def rebuilt(factor):
    return types.FunctionType(shared_code(), {"factor": factor}, "model")


def graph_of(factor):
    def times(x):
        return x * factor

    graph = torch.fx.Graph()
    graph.output(graph.call_function(times, (graph.placeholder("x"),)))
    return torch.fx.GraphModule({}, graph)


def declared(factor):
    @torch._dynamo.assume_constant_result
    def constant():
        return factor

    return lambda x: x * constant()


def inner_of(made):
    inner = made
    return lambda x: inner(x)


class Holds(nn.Module):
    def __init__(self, one, other) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x):
        return x * (2.0 if self.one is self.other else 7.0)


class Lists(nn.Module):
    def forward(self, x):
        return x * (2.0 if "note" in self.__dict__ else 7.0)


def noted(*notes):
    found = [Lists() for _ in notes]
    for model, note in zip(found, notes, strict=True):
        if note:
            model.note = 1
    return found


class Chooses(nn.Module):
    """Goes by one of two submodules, or one of their weights, that lie in the tree elsewhere."""

    def __init__(self, which, way) -> None:
        super().__init__()
        self.way = way
        self.inner = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        chosen = self.inner["ab"[which]]
        if way == "attribute":
            self.active = chosen
        elif way == "list":
            self.listed = [chosen]
        else:
            self.weights = {"one": chosen.weight}

    def forward(self, x):
        if self.way == "attribute":
            return self.active(x)
        return self.listed[0](x) if self.way == "list" else x @ self.weights["one"]


def chosen(way):
    return [Chooses(which, way) for which in range(2)]


ORDERS = ({"a": 2.0, "b": 3.0}, {"b": 3.0, "a": 2.0})
OBJECT = types.SimpleNamespace()
PAIRS = {
    **tensors(),
    "globals of exec": executed("def model(x):\n    return x * factor\n"),
    "globals of exec, called": list(
        map(inner_of, executed("def model(x):\n    return x * factor\n"))
    ),
    "globals of exec under a real name": executed(
        "def model(x):\n    return x * factor\n", __name__=__name__
    ),
    "functions of exec": executed(
        "def inner(x):\n    return x * FACTOR\ndef model(x):\n    return inner(x)\n"
    ),
    "text of exec": executed("def model(x):\n    return x * FACTOR\n"),
    "graph modules": functions(graph_of),
    "declared constants": functions(declared),
    "the order of a dict": asked(lambda d: next(iter(d.values())), *ORDERS),
    "a list or a tuple": asked(lambda v: 2.0 if isinstance(v, list) else 7.0, [1, 2], (1, 2)),
    "a bool or an int": asked(lambda v: 2.0 if v is True else 7.0, True, 1),
    "an int or a float": asked(lambda v: 2.0 if isinstance(v, int) else 7.0, 1, 1.0),
    "the sign of zero": asked(lambda v: torch.copysign(torch.ones(()), torch.tensor(v)), 0.0, -0.0),
    "a set": asked(lambda v: 2.0 if 2 in v else 7.0, {1, 2}, {1, 3}),
    "a deque": asked(lambda v: v[0], collections.deque([2.0]), collections.deque([3.0])),
    "one object or two": [Holds(OBJECT, OBJECT), Holds(OBJECT, types.SimpleNamespace())],
    "all attributes": noted(False, True),
    "which submodule an attribute is": chosen("attribute"),
    "which submodule a list holds": chosen("list"),
    "whose weight a dict holds": chosen("dict"),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's
@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
@pytest.mark.parametrize("fact", PAIRS)
def test_a_program_is_told_from_one_that_differs_in_one_fact(fact, backwards):
    x = torch.arange(6.0).view(3, 2) + 1
    pair = PAIRS[fact][::-1] if backwards else PAIRS[fact]
    for model in (*pair, *pair):
        want = model(x)
        torch.testing.assert_close(pw.compile(model, CONFIG, "cpu")(x), want)


def test_what_can_be_asked_again_is_kept_all_the_same():
    x = torch.ones(3, 2)
    for traced in (1, 0):
        model = Asks(lambda w: 2.0 if w.requires_grad else 7.0, torch.ones(2))
        fast = pw.compile(model, CONFIG, "cpu")
        fast(x)
        assert fast.stats().graphs == traced


def test_inside_a_mode_of_the_program_s_own_no_trace_is_kept_or_found():
    class Doubling(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, kinds, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            return found * 2 if func is torch.sin else found

    def model(x):
        return torch.sin(x)

    x = torch.ones(3, 2)
    for inside in (False, True, False):
        fast = pw.compile(model, CONFIG, "cpu")
        with Doubling() if inside else torch.no_grad():
            try:
                got = fast(x)
            except pw.errors.PiecewiseError:
                assert inside
                continue
            torch.testing.assert_close(got, model(x))
