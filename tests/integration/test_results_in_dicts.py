"""Results in dicts of all kinds come back as those kinds; what a call would freeze is refused."""

from __future__ import annotations

from collections import OrderedDict, defaultdict

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import UnsupportedOutput
from piecewise_core.testing import SimulatedPlatform


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


class Named(dict):
    """Adds a method, and no state."""

    def first(self):
        return next(iter(self.values()))


class Ordered(OrderedDict):
    pass


class Grouped(defaultdict):
    pass


class Counted(dict):
    def __init__(self, *args):
        super().__init__(*args)
        self.made = len(self)


def zeros():
    return torch.zeros(2)


def in_order(kind):
    def fn(x):
        found = kind()
        found["b"] = x * 2
        found["a"] = {"rows": x.shape[0], "x": x}
        return found

    return fn


def grouped(kind, factory):
    def fn(x):
        found = kind(factory)
        found["sums"].append(x.sum(0))
        found["sums"].append(x + 1)
        return {"all": found, "none": kind(None)}

    return fn


def made_by(x):
    found = defaultdict(zeros)
    found["x"] = x + found["other"].sum()
    return found


FUNCTIONS = {
    "ordered": in_order(OrderedDict),
    "named": in_order(Named),
    "ordered subclass": in_order(Ordered),
    "lists by default": grouped(defaultdict, list),
    "by a function": made_by,
    "subclass": grouped(Grouped, list),
}


def alike(got, wanted):
    assert type(got) is type(wanted)
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        factories = [getattr(each, "default_factory", None) for each in (got, wanted)]
        assert factories[0] is factories[1]
        for key, value in wanted.items():
            alike(got[key], value)
    elif isinstance(wanted, list):
        for mine, theirs in zip(got, wanted, strict=True):
            alike(mine, theirs)
    elif isinstance(wanted, torch.Tensor):
        assert torch.equal(got, wanted)
    else:
        assert got == wanted


BOTH = [(make, name) for name in FUNCTIONS for make in (pw.record, pw.compile)]


@pytest.mark.parametrize(("make", "name"), BOTH[:-1])  # Dynamo follows no defaultdict subclass
def test_a_result_is_of_the_models_own_kind(make, name):
    fn = FUNCTIONS[name]
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 0, 8)}},
        compiler="eager",
        capture_sizes=(4,),
        capture_max=False,
        clone_outputs=True,
    )
    fast = make(fn, config, SimulatedPlatform())
    results = [(fast(x), fn(x)) for x in (torch.randn(rows, 2) for rows in (4, 4, 1, 0, 4))]
    for got, wanted in results:
        alike(got, wanted)
    assert results[0][0] is not results[1][0]
    assert fast.stats().calls["replayed"] >= 2


def of_a_call(x):
    last = x + 1
    return defaultdict(lambda: last, x=x)


def of_defaults(x):
    return defaultdict(lambda x=x: x + 1)


@pytest.mark.parametrize("fn", [of_a_call, of_defaults, lambda x: Counted(x=x)])
def test_a_dict_that_holds_more_than_its_entries_is_refused_by_its_kind(fn):
    with pytest.raises((UnsupportedOutput, pw.errors.TraceFailed), match=r"defaultdict|Counted|\n"):
        pw.compile(fn, pw.Config(compiler="eager"))(torch.ones(3))
