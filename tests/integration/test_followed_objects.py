"""A call brings another object in the place of the former while the model changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


class Cache:
    """Memory that calls write to, made anew for each text."""

    def __init__(self) -> None:
        self.rows = torch.zeros(4, 8)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)

    def forward(self, x, cache):
        cache.rows.copy_(self.act(self.first(x)) + cache.rows)
        return self.last(cache.rows + x)

    def text(self, x):
        """Calls with a cache that nobody else knows."""
        cache = Cache()
        return torch.stack([self(x, cache) for _ in range(3)])


def _tie(model: Model) -> None:
    model.last.weight.data = model.first.weight.data


CHANGES: dict[str, Callable[[Model], object]] = {
    "nothing": lambda m: None,
    "hook": lambda m: m.first.register_forward_hook(lambda module, given, out: out * 3),
    "hook of what has no weights": lambda m: m.act.register_forward_pre_hook(
        lambda module, given: (given[0] + 1,)
    ),
    "mode": lambda m: m.train(),
    "module": lambda m: setattr(m, "act", nn.Tanh()),
    "module with weights": lambda m: setattr(m, "first", nn.Linear(8, 8)),
    "forward of a module": lambda m: setattr(m.first, "forward", lambda x: x * 2),
    "weight": lambda m: setattr(m.first, "weight", nn.Parameter(torch.randn(8, 8))),
    "weight in place": lambda m: m.first.weight.mul_(2),
    "weight elsewhere": lambda m: setattr(m.first.weight, "data", torch.randn(8, 8)),
    "weight otherwise": lambda m: setattr(m.first.weight, "data", m.first.weight.data.t()),
    "weight transposed": lambda m: m.first.weight.t_(),
    "weights tied": _tie,
    "no bias": lambda m: setattr(m.first, "bias", None),
}


class Calls:
    """Calls of the compiled model, each compared with its own copy as it is now."""

    def __init__(self, how: str, model: Model, mode: str) -> None:
        self.how, self.model = how, model
        config = pw.Config(compiler="eager", graph_mode=mode)
        self.fast = pw.compile(model, config, "cpu")
        self.cache = Cache()

    def check(self) -> None:
        x = torch.randn(4, 8)
        if self.how == "by a method":
            torch.testing.assert_close(self.fast.text(x), self.model.text(x))
            return
        if self.how == "another object":
            self.cache = Cache()
        elif self.how == "another tensor":
            self.cache.rows = torch.zeros(4, 8)
        for _ in range(3):
            other = copy.deepcopy(self.cache)
            torch.testing.assert_close(self.fast(x, self.cache), self.model(x, other))
            torch.testing.assert_close(self.cache.rows, other.rows)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["another object", "another tensor", "same object", "by a method"])
@pytest.mark.parametrize("mode", ["none", "full"])
def test_a_model_that_changed_between_two_objects_is_traced_anew(mode, how, change):
    calls = Calls(how, Model().eval(), mode)
    for _ in range(3):
        calls.check()
    CHANGES[change](calls.model)
    for _ in range(3):
        calls.check()
    CHANGES[change](calls.model)
    calls.check()


@pytest.mark.parametrize("mode", ["none", "full"])
def test_another_object_comes_where_nothing_is_checked(mode):
    model = Model().eval()
    fast = pw.compile(model, pw.Config(compiler="eager", graph_mode=mode, check="off"), "cpu")
    for _ in range(3):
        x, cache, other = torch.randn(4, 8), Cache(), Cache()
        for _ in range(2):
            torch.testing.assert_close(fast(x, cache), model(x, other))
            torch.testing.assert_close(cache.rows, other.rows)
    assert len(fast.explain().forms) == 1


class Projecting(Cache):
    """Brings a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 8)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)

    def forward(self, x, cache):
        cache.rows.copy_(self.first(x))
        return cache.last(cache.rows)


@pytest.mark.parametrize("mode", ["none", "full"])
def test_another_object_with_another_module_is_not_taken_for_it(mode):
    model = Projected().eval()
    fast = pw.compile(model, pw.Config(compiler="eager", graph_mode=mode), "cpu")
    caches = [Projecting() for _ in range(3)]
    for which in (0, 0, 1, 1, 2, 0):
        x = torch.randn(4, 8)
        torch.testing.assert_close(fast(x, caches[which]), model(x, caches[which]))


@pytest.mark.parametrize("mode", ["none", "full"])
def test_a_hook_that_goes_again_between_two_objects_is_seen(mode):
    calls = Calls("another object", Model().eval(), mode)
    for _ in range(3):
        handle = calls.model.first.register_forward_hook(lambda module, given, out: out * 3)
        calls.check()
        handle.remove()
        calls.check()
