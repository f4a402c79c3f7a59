"""Python state that a model reads and somebody changes is seen at the next call (FAULTS 54)."""

from __future__ import annotations

import dataclasses
import functools
import os
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import Sealed
from piecewise_core.testing import SimulatedPlatform
from tests.integration.state_doors import DOORS, OWN, ROWS, captured, plain

FACTOR = 3.0


def helper(x):
    return x * FACTOR


@dataclasses.dataclass
class Settings:
    scale: float = 2.0
    act: str = "relu"
    sub: Any = None


class Slots:
    __slots__ = ("v",)

    def __init__(self) -> None:
        self.v = 1.5


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k = 1.0
        self.lin = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.lin(x) * self.k


def model_class() -> type[torch.nn.Module]:
    """A class of the test's own, which it may change."""

    class Model(torch.nn.Module):
        shared = 4.0
        inner_kind = type("Inner", (Inner,), {})

        def __init__(self) -> None:
            super().__init__()
            self.number, self.flag, self.fn = 2.0, False, torch.relu
            self.config = Settings(sub=types.SimpleNamespace(t=1))
            self.table = {"k": 1.0, "n": {"m": 2.0}}
            self.items = [1.0, 2.0]
            self.pair = (1.0, [2.0])
            self.names = {1, 2}
            self.slots = Slots()
            self.inner = self.inner_kind()
            self.parts = torch.nn.ModuleList([Inner()])

        @property
        def derived(self):
            return self.number * 2

        def forward(self, x):
            y = x * self.number + (1 if self.flag else 0) + self.config.scale * self.config.sub.t
            y = y + self.table["k"] + self.table["n"]["m"] + sum(self.items) + self.pair[1][0]
            y = y + self.shared + self.derived + helper(x) + self.slots.v + len(self.table)
            y = y + 100 if 3 in self.names else y
            y = y * 3 if self.config.act == "gelu" else y
            for part in self.parts:
                x = part(x)
            return self.fn(y) + self.inner(x)

    return Model


def doubled(module, args, output):
    return output * 2


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a number": lambda m: setattr(m, "number", 5.0),
    "a flag": lambda m: setattr(m, "flag", True),
    "a field of a config": lambda m: setattr(m.config, "act", "gelu"),
    "an attribute two objects deep": lambda m: setattr(m.config.sub, "t", 9),
    "a replaced object": lambda m: setattr(m, "config", Settings(1.0, "relu", m.config.sub)),
    "an entry of a dict": lambda m: m.table.__setitem__("k", 8.0),
    "an entry of a dict in a dict": lambda m: m.table["n"].__setitem__("m", 8.0),
    "a new entry": lambda m: m.table.__setitem__("new", 8.0),
    "a longer list": lambda m: m.items.append(4.0),
    "an item of a list": lambda m: m.items.__setitem__(0, 4.0),
    "a list in a tuple": lambda m: m.pair[1].__setitem__(0, 6.0),
    "a set": lambda m: m.names.add(3),
    "a slot": lambda m: setattr(m.slots, "v", 9.0),
    "a submodule's number": lambda m: setattr(m.inner, "k", 3.0),
    "a longer module list": lambda m: m.parts.append(Inner()),
    "a function": lambda m: setattr(m, "fn", torch.tanh),
    "a class attribute": lambda m: setattr(type(m), "shared", 11.0),
    "a property": lambda m: setattr(type(m), "derived", property(lambda s: 70.0)),
    "a method of an inner class": lambda m: setattr(
        type(m.inner), "forward", lambda s, x: s.lin(x) + 50
    ),
    "an inner hook": lambda m: m.inner.register_forward_hook(doubled),
    "an instance's forward": lambda m: vars(m.inner).__setitem__("forward", lambda x: x * 77),
}


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def agree(fast, model) -> None:
    x = torch.randn(4, 2)
    torch.testing.assert_close(fast(x), model(x))


@DOORS
@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_changes_after_the_first_call_is_seen_at_the_next(door, change):
    model = model_class()().eval()
    fast = door(model)
    for _ in range(2):
        agree(fast, model)
    CHANGES[change](model)
    for _ in range(3):
        agree(fast, model)


@DOORS
def test_a_global_and_a_closure_are_seen(door, monkeypatch):
    bias = 1.0

    def fn(x):
        return helper(x) + bias

    fast = door(fn)
    agree(fast, fn)
    monkeypatch.setattr(f"{__name__}.FACTOR", 13.0)
    agree(fast, fn)
    bias = 5.0
    agree(fast, fn)
    monkeypatch.setattr(f"{__name__}.helper", lambda x: x * 4)
    agree(fast, fn)


TOTAL = {"objects": 2.0, "rows": 3.0}


@DOORS
@pytest.mark.parametrize("key", TOTAL)
def test_an_entry_of_a_global_whose_name_ends_as_what_a_frame_calls_its_locals_is_seen(
    door, key, monkeypatch
):
    class Model(torch.nn.Module):
        def forward(self, x):
            return x * TOTAL[key]

    model = Model().eval()
    fast = door(model)
    agree(fast, model)
    for number in (5.0, 7.0):
        monkeypatch.setitem(TOTAL, key, number)
        agree(fast, model)


KINDS = {Inner: 2.0, "rows": 3.0}
"""A key that has no text: Dynamo names the entries by where they lie."""


@DOORS
def test_an_entry_of_a_global_dict_that_is_named_by_its_place_is_seen(door, monkeypatch):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(2))

        def forward(self, x):
            return (x * self.weight).sin() + KINDS["rows"] * KINDS.get(Inner)

    model = Model().eval()
    fast = door(model)
    agree(fast, model)
    for key in ("rows", Inner, "rows"):
        for value in (model.weight, torch.randn(2), 5.0, 7.0):
            monkeypatch.setitem(KINDS, key, value)
            agree(fast, model)


class Switches(torch.nn.Module):
    """Calls one of two submodules, which all hold, by each of the ways to say which."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.aside = *(torch.nn.Linear(2, 2) for _ in range(2)), {}
        self.parts = torch.nn.ModuleList([torch.nn.Identity()])
        self.put(self.a)

    def put(self, layer, way="all"):
        if way in ("all", "attribute"):
            self.active = layer
        if way in ("all", "module list"):
            self.parts[0] = layer
        if way in ("all", "list"):
            self.listed = [layer]
        if way in ("all", "dict"):
            self.aside["layer"] = layer
        if way in ("all", "tuple"):
            self.pair = (layer, 1)
        if way in ("all", "partial"):
            self.partial = functools.partial(layer)

    def forward(self, x):
        x = self.parts[0](self.active(x)).sin()
        x = self.aside["layer"](self.listed[0](x)).sin()
        return self.partial(self.pair[0](x))


WAYS_TO_SAY = ("attribute", "module list", "list", "dict", "tuple", "partial")


@DOORS
@pytest.mark.parametrize("way", WAYS_TO_SAY)
@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_another_module_of_the_same_kind_is_seen(door, way, known):
    model = Switches().eval()
    fast = door(model)
    agree(fast, model)
    for layer in (model.b, model.a, model.b):
        model.put(layer if known else torch.nn.Linear(2, 2), way)
        for _ in range(2):
            agree(fast, model)


@OWN
def test_a_change_counts_as_one_retrace_and_what_nobody_reads_as_none(door):
    model = model_class()().eval()
    fast = door(model)
    agree(fast, model)
    model.number = 2.0  # what it was
    agree(fast, model)
    assert fast.stats().retraces == 0
    model.number = 7.0
    for _ in range(3):
        agree(fast, model)
    assert fast.stats().retraces == 1


@pytest.mark.parametrize("door", [plain, captured])
def test_an_attribute_that_no_trace_read_may_change_at_every_call(door):
    model = model_class()().eval()
    fast, graphs = door(model), 0
    for count in range(30):
        model.calls = count
        agree(fast, model)
        graphs = graphs or fast.stats().graphs
    assert fast.stats().retraces == 0
    assert fast.stats().graphs == graphs
    model.number = 9.0
    agree(fast, model)
    assert fast.stats().retraces == 1


@OWN
def test_after_seal_a_change_is_an_error_that_names_it(door):
    model = model_class()().eval()
    fast = door(model)
    fast.warmup(torch.randn(4, 2), progress=False)
    agree(fast, model)
    fast.seal()
    model.number = 9.0
    with pytest.raises(Sealed, match="number"):
        fast(torch.randn(4, 2))


@OWN
def test_retrace_traces_anew_by_hand(door):
    model = model_class()().eval()
    fast = door(model)
    agree(fast, model)
    fast.retrace()
    agree(fast, model)
    assert fast.stats().retraces == 1


class Adapter(torch.nn.Module):
    """A low-rank adapter as libraries write them: merged into the weight, switched, disabled."""

    def __init__(self) -> None:
        super().__init__()
        self.base = torch.nn.Linear(4, 4)
        names = ("first", "second")
        self.a = torch.nn.ModuleDict({n: torch.nn.Linear(4, 2, bias=False) for n in names})
        self.b = torch.nn.ModuleDict({n: torch.nn.Linear(2, 4, bias=False) for n in names})
        self.scaling = {"first": 2.0, "second": 0.5}
        self.active = ["first"]
        self.merged: list[str] = []
        self.disabled = False

    def merge(self) -> None:
        for name in self.active:
            self.base.weight += self.scaling[name] * self.b[name].weight @ self.a[name].weight
            self.merged.append(name)

    def unmerge(self) -> None:
        for name in self.merged:
            self.base.weight -= self.scaling[name] * self.b[name].weight @ self.a[name].weight
        self.merged.clear()

    def forward(self, x):
        y = self.base(x)
        if self.disabled or self.merged:
            return y
        for name in self.active:
            y = y + self.b[name](self.a[name](x)) * self.scaling[name]
        return y


@DOORS
def test_an_adapter_is_merged_switched_disabled_and_scaled_unmodified(door):
    with torch.inference_mode(False):
        model = Adapter().eval().requires_grad_(False)
    fast = door(model)

    def both():
        x = torch.randn(4, 4)
        torch.testing.assert_close(fast(x), model(x))

    both()
    for change in (
        model.merge,
        model.unmerge,
        lambda: setattr(model, "disabled", True),
        lambda: setattr(model, "disabled", False),
        lambda: setattr(model, "active", ["second"]),
        lambda: model.active.append("first"),
        lambda: model.scaling.update(first=7.0),
    ):
        with torch.no_grad():
            change()
        both()
        both()


def _scaled():
    def fn(x, scale=2.0, *, offset=1.0):
        return x * scale + offset

    return fn


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (
            _scaled,
            [
                lambda fn: setattr(fn, "__defaults__", (7.0,)),
                lambda fn: setattr(fn, "__kwdefaults__", {"offset": 3.0}),
                lambda fn: fn.__kwdefaults__.update(offset=9.0),
            ],
        ),
        (
            lambda: functools.partial(lambda x, scale: x * scale, scale=2.0),
            [lambda fn: fn.keywords.update(scale=9.0)],
        ),
        (
            type("Own", (), {"__call__": lambda self, x, scale=2.0: x * scale}),
            [lambda fn: setattr(type(fn).__call__, "__defaults__", (5.0,))],
        ),
    ],
    ids=["function", "partial", "object"],
)
def test_an_argument_that_calls_omit_is_the_default_that_there_is_now(make, changes, record):
    fn = make()
    rows = pw.Dim("rows", 0, 8)
    config = pw.Config(dynamic={"x": {0: rows}}, capture_sizes=(4,), compiler="eager")
    fast = (pw.record if record else pw.compile)(fn, config, platform=SimulatedPlatform())
    with torch.inference_mode():
        for change in (lambda fn: None, *changes):
            change(fn)
            for size in (3, 4, 4, 5):
                x = torch.randn(size, 8)
                torch.testing.assert_close(fast(x), fn(x))


class _Computes(type):
    @property
    def scale(cls):
        return cls._scale


class _Scaled(metaclass=_Computes):
    _scale = 2.0


class _ReadsAMetaclass(torch.nn.Module):
    def forward(self, x):
        return x * _Scaled.scale


class _ReadsTheEnvironment(torch.nn.Module):
    def forward(self, x):
        return x * float(os.environ.get("PIECEWISE_TEST_SCALE", "1"))


class _LooksItself(torch.nn.Module):
    def forward(self, x):
        return x * self.__dict__.get("own_scale", 1.0) * vars(self).get("other_scale", 1.0)


class _Looks:
    def __get__(self, instance, owner):
        return instance.__dict__.get("own_scale", 1.0)


class _HasADescriptor(torch.nn.Module):
    scale = _Looks()

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize(
    "kind", [_ReadsAMetaclass, _ReadsTheEnvironment, _LooksItself, _HasADescriptor]
)
def test_what_no_object_holds_is_asked_again(kind, monkeypatch):
    model = kind()
    config = pw.Config(dynamic=ROWS, capture_sizes=(4,), compiler="eager")
    fast = pw.compile(model, config, platform=SimulatedPlatform())
    with torch.inference_mode():
        for scale in (None, 3.0, 5.0):
            if scale is not None:
                monkeypatch.setattr(_Scaled, "_scale", scale)
                monkeypatch.setenv("PIECEWISE_TEST_SCALE", str(scale))
                model.own_scale, model.other_scale = scale, -scale
            for rows in (3, 4, 4):
                x = torch.randn(rows, 2)
                torch.testing.assert_close(fast(x), model(x))


def test_a_variable_that_a_compiler_sets_traces_nothing_again(monkeypatch):
    def fn(x):
        return x * float(os.environ.get("PIECEWISE_TEST_SCALE", "1"))

    fast = plain(fn)
    agree(fast, fn)
    monkeypatch.setenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "1")
    agree(fast, fn)
    assert fast.stats().retraces == 0
    monkeypatch.setenv("PIECEWISE_TEST_SCALE", "3")
    agree(fast, fn)
    assert fast.stats().retraces == 1


def test_a_kept_trace_is_of_the_environment_that_it_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    model, x = _ReadsTheEnvironment(), torch.randn(3, 2)
    config = pw.Config(dynamic=ROWS, compiler="eager", cache_dir=str(tmp_path))
    with torch.inference_mode():
        for scale in (None, "3.0", "5.0"):
            if scale is not None:
                monkeypatch.setenv("PIECEWISE_TEST_SCALE", scale)
            torch.testing.assert_close(pw.compile(model, config)(x), model(x))
