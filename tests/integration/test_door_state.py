"""Python state at torch.compile's door that no guard of Dynamo's asks about."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict

import pytest
import torch
from torch.nn.modules import module as of_all_modules

import piecewise_core as pw


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x):
        return x * self.weight


class Outer(torch.nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.inner, self.noted = Inner(), {}

    def forward(self, x):
        return torch.softmax(self.inner(x), -1) + 1


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    with torch.inference_mode():
        yield
    torch._dynamo.reset()


def compiled(fn):
    return torch.compile(fn, backend="piecewise", options={"compiler": "eager"})


def agree(fast, fn, rows=3):
    x = torch.randn(rows, 2)
    torch.testing.assert_close(fast(x), fn(x))


def triples(part, args, output):
    return output * 3


def test_hooks_of_all_modules_run_from_the_next_call_on():
    inner = Inner()

    def fn(x):
        return inner(x) + 1

    fast = compiled(fn)
    agree(fast, fn)
    handle = of_all_modules.register_module_forward_hook(triples)
    try:
        agree(fast, fn)
    finally:
        handle.remove()
    agree(fast, fn)


def test_what_comes_back_has_its_graph_still():
    model = Outer()
    fast = compiled(model)
    agree(fast, model)
    for _ in range(20):  # more often than Dynamo compiles a frame anew
        handle = model.inner.register_forward_hook(triples)
        handle.remove()
        agree(fast, model)
    assert len(pw.dynamo_graphs()) == 1


def test_what_no_graph_rests_on_may_change_at_every_call(monkeypatch):
    model, other = Outer(), torch.nn.Linear(2, 2)
    monkeypatch.setattr(Outer, "calls", 0)
    fast = compiled(model)
    agree(fast, model)
    for count in range(20):
        Outer.calls = count
        model.noted[count] = count
        other.register_forward_hook(triples)
        agree(fast, model)
    assert len(pw.dynamo_graphs()) == 1


def test_a_hook_that_holds_its_model_does_not_keep_it():
    def served():
        model = Outer()

        def hook(part, args, output):
            return output * (2 + len(model.noted))

        model.inner.register_forward_hook(hook)
        agree(compiled(model), model)
        return weakref.ref(model)

    gone = served()
    gc.collect()
    assert gone() is None


def test_a_class_that_let_go_of_its_model_does_not_keep_it(monkeypatch):
    monkeypatch.setattr(Outer, "last", Outer(), raising=False)
    agree(compiled(Outer.last), Outer.last)
    gone = weakref.ref(Outer.last)
    Outer.last = None
    gc.collect()
    assert gone() is None


def test_a_switch_of_torchs_compiles_again():
    fast = compiled(torch.sin)
    agree(fast, torch.sin)
    first = len(pw.dynamo_graphs())
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        agree(fast, torch.sin)
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
    assert len(pw.dynamo_graphs()) == first + 1
    agree(fast, torch.sin)
    assert len(pw.dynamo_graphs()) == first + 1


def test_code_behind_a_graph_break_is_asked_about_too(monkeypatch):
    model = Outer()

    def fn(x):
        y = x + 1
        torch._dynamo.graph_break()
        return model(y)

    fast = compiled(fn)
    agree(fast, fn)
    monkeypatch.setattr(Inner, "forward", lambda self, x: x * self.weight * 7)
    agree(fast, fn)


class Undecorated(torch.nn.Module):
    """Its forward goes through a decorator that closes over a bound method, and catches a miss."""

    @torch.no_grad()
    def forward(self, x):
        try:
            return x * self.absent
        except AttributeError:
            return x * 2


def test_what_is_looked_for_in_vain_is_asked_of_objects_with_attributes_alone():
    model = torch.nn.Sequential(Undecorated())
    fast = compiled(model)
    agree(fast, model)
    model[0].absent = 5.0
    agree(fast, model)


def test_a_variable_that_no_code_names_compiles_nothing_again(monkeypatch):
    import os

    def fn(x):
        return x * float(os.environ.get("PIECEWISE_TEST_FACTOR", "2"))

    fast = compiled(fn)
    agree(fast, fn)
    first = len(pw.dynamo_graphs())
    monkeypatch.setenv("PIECEWISE_TEST_OTHER", "5")
    agree(fast, fn)
    assert len(pw.dynamo_graphs()) == first
    monkeypatch.setenv("PIECEWISE_TEST_FACTOR", "5")
    agree(fast, fn)
    assert len(pw.dynamo_graphs()) == first + 1


def test_hooks_of_another_module_that_shares_the_graph():
    layers = [Outer() for _ in range(3)]
    for layer in layers:
        layer.compile(backend="piecewise", options={"compiler": "eager"})
        agree(layer, layer.forward)
    assert len(pw.dynamo_graphs()) == 1
    layers[1].inner.register_forward_hook(triples)
    agree(layers[1], layers[1].forward)
    agree(layers[2], layers[2].forward)
    assert len(pw.dynamo_graphs()) == 2


def test_a_hook_put_on_anew_at_every_call_has_its_graph_still():
    model = Outer()
    fast = compiled(model)
    for _ in range(20):
        handle = model.inner.register_forward_hook(triples)
        agree(fast, model)
        handle.remove()
    assert len(pw.dynamo_graphs()) == 1


def last_of(held):
    return list(held.values())[-1]


def test_an_ordered_dict_made_anew_at_every_call_has_its_graph_still():
    def fn(x, held):
        return x * last_of(held)

    fast, x = compiled(fn), torch.randn(3, 2)
    for _ in range(3):
        held = OrderedDict(a=x + 1, b=x + 2)
        torch.testing.assert_close(fast(x, held), fn(x, held))
    assert len(pw.dynamo_graphs()) == 1
    held.move_to_end("a")
    torch.testing.assert_close(fast(x, held), fn(x, held))


def test_an_attribute_that_a_bound_method_lacks():
    inner = Inner()

    def through(method):
        def call(x):
            try:
                return method(x) * method.factor
            except AttributeError:
                return method(x)

        return call

    fn = through(inner.forward)
    agree(compiled(fn), fn)


TABLE = torch.ones(2)
KEPT = {"table": TABLE}
BY_PLACE = {object(): 1, "table": TABLE}


class Kept:
    table = TABLE


KEEPER = Kept()
KEEPER.own = TABLE


def bind_global(tensor):
    global TABLE
    TABLE = tensor


TIED = {
    "global": (lambda: TABLE, bind_global),
    "dict by place": (
        lambda: BY_PLACE["table"],
        lambda tensor: BY_PLACE.update(table=tensor),
    ),
    "dict": (lambda: KEPT["table"], lambda tensor: KEPT.update(table=tensor)),
    "class": (lambda: Kept.table, lambda tensor: setattr(Kept, "table", tensor)),
    "class of an object": (lambda: KEEPER.table, lambda tensor: setattr(Kept, "table", tensor)),
    "object": (lambda: KEEPER.own, lambda tensor: setattr(KEEPER, "own", tensor)),
}


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="torch does not say what was read twice")
@pytest.mark.parametrize("before", ["weight", "argument"])
@pytest.mark.parametrize("where", TIED)
def test_a_global_that_was_a_weight_or_an_argument_is_asked_for_again(where, before):
    get, put = TIED[where]
    first = torch.randn(2)
    layer = Inner()
    layer.weight = torch.nn.Parameter(first, requires_grad=False)

    def of_weight(x, of):
        return layer(x) + of * 0 + get()

    def of_argument(x, of):
        return x * of + get()

    fn = of_weight if before == "weight" else of_argument
    fast = compiled(fn)
    x, other = torch.randn(3, 2), torch.randn(2)

    def check(of):
        for _ in range(2):
            torch.testing.assert_close(fast(x, of), fn(x, of))

    put(first)
    check(first if before == "argument" else other)
    check(other)
    put(torch.randn(2))
    check(first)
    check(other)
    put(first)
    check(first)
    layer.weight = torch.nn.Parameter(torch.randn(2), requires_grad=False)
    check(other)
