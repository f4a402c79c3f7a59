"""Traces kept in the compile store: taken where they hold, made anew where anything differs."""

from __future__ import annotations

import enum
import logging
import re

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.config_cache import store_directory
from piecewise_core.store.files import FileStore

FACTOR = 2.0


@pytest.fixture(autouse=True)
def _store(monkeypatch, tmp_path):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "cache"))
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Model(nn.Module):
    def __init__(self, width: int = 8, act: str = "gelu") -> None:
        super().__init__()
        torch.manual_seed(0)  # equal weights in every instance
        self.linear = nn.Linear(width, width)
        self.act = act
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, mask=None):
        self.calls += 1
        y = getattr(nn.functional, self.act)(self.linear(x)) * FACTOR
        if mask is not None:
            y = y * mask
        if x.shape[0] == 1:
            return {"one": y}
        return {"y": nn.functional.softmax(y, -1), "x": x}


def softmax_only(self, x, mask=None):
    return {"y": nn.functional.softmax(x, -1)}


def compiled(model, **changes):
    settings = {
        "dynamic": {"x": {0: pw.Dim("rows", 0, 9)}},
        "splitting_ops": ("torch.nn.functional.softmax",),
        "compiler": "eager",
    }
    return pw.compile(model, pw.Config(**{**settings, **changes}), "cpu")


def check(fast, model, sizes=(3, 0, 1, 9)):
    for rows in sizes:
        x = torch.randn(rows, model.linear.in_features)
        found, expected = fast(x), model(x)
        assert list(found) == list(expected)
        torch.testing.assert_close(found, expected)


def entries(tmp_path):
    return [m.label for m in FileStore(store_directory(tmp_path / "cache", {})).manifests()]


def test_a_second_start_traces_nothing_and_serves_the_same(tmp_path):
    first = compiled(Model())
    check(first, Model())
    regions = first.stats().graphs
    assert regions >= 2
    assert len(entries(tmp_path)) == regions
    model = Model()
    second = compiled(model)
    check(second, Model())
    assert second.stats().graphs == 0
    assert second.stats().pieces == first.stats().pieces
    assert model.calls == 4  # writes reach the live model's buffer


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(f"{__name__}.FACTOR", 3.0),
        lambda patch: patch.setattr(Model, "forward", softmax_only),
        lambda patch: torch.set_float32_matmul_precision("high"),
    ],
)
def test_what_changed_since_is_traced_anew_and_kept_in_its_place(monkeypatch, change):
    check(compiled(Model()), Model(), sizes=(3,))
    try:
        change(monkeypatch)
        second = compiled(Model())
        check(second, Model(), sizes=(3,))
        assert second.stats().graphs == 1
        third = compiled(Model())
        check(third, Model(), sizes=(3,))
        assert third.stats().graphs == 0
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_attribute_that_changed_is_noticed():
    check(compiled(Model()), Model(), sizes=(3,))
    second = compiled(Model(act="relu"))
    check(second, Model(act="relu"), sizes=(3,))
    assert second.stats().graphs == 1


def test_models_of_one_class_and_several_widths_keep_a_trace_each():
    for width in (8, 4):
        check(compiled(Model(width)), Model(width), sizes=(3,))
    for width in (8, 4):
        fast = compiled(Model(width))
        check(fast, Model(width), sizes=(3,))
        assert fast.stats().graphs == 0


def test_other_calls_bounds_and_modes_are_other_traces():
    check(compiled(Model()), Model(), sizes=(3,))
    masked = compiled(Model())
    masked(torch.randn(3, 8), mask=torch.ones(8))
    assert masked.stats().graphs == 1
    wider = compiled(Model(), dynamic={"x": {0: pw.Dim("rows", 0, 10)}})
    check(wider, Model(), sizes=(3,))
    assert wider.stats().graphs == 1
    training = compiled(Model().train())
    check(training, Model(), sizes=(3,))
    evaluating = compiled(Model().eval())
    check(evaluating, Model(), sizes=(3,))
    assert evaluating.stats().graphs == 1


def test_regions_met_in_another_order_are_served_right():
    check(compiled(Model()), Model(), sizes=(3, 1))
    second = compiled(Model())
    check(second, Model(), sizes=(1, 0, 3, 9))


def test_an_entry_that_cannot_be_read_is_traced_again_with_a_warning(tmp_path, caplog):
    check(compiled(Model()), Model(), sizes=(3,))
    store = FileStore(store_directory(tmp_path / "cache", {}))
    (manifest,) = store.manifests()
    from piecewise_core.store.entry import Ticket, make_entry

    ticket = Ticket(manifest.key, manifest.factors, manifest.box, manifest.label)
    odd = make_entry(ticket, b'{"held": [], "trace": {}}', serves=manifest.box, adaptor="tracer")
    store.put(odd, replace=True)
    fast = compiled(Model())
    with caplog.at_level(logging.WARNING, "piecewise_core"):
        check(fast, Model(), sizes=(3,))
    assert fast.stats().graphs == 1
    assert "traced again" in caplog.text


def test_what_a_store_cannot_hold_is_said_and_runs(tmp_path, caplog):
    held = torch.ones(8)

    def closing(x):
        return x + held

    fast = pw.compile(closing, pw.Config(dynamic={"x": {0: pw.Dim("n", 1, 9)}}, compiler="eager"))
    with caplog.at_level(logging.INFO, "piecewise_core"):
        assert fast(torch.ones(2, 8)).sum() == 32
    assert "is not kept in the compile store" in caplog.text
    assert entries(tmp_path) == []


def test_a_sealed_model_does_not_take_new_regions_from_the_store_either():
    check(compiled(Model()), Model(), sizes=(3, 1))
    fast = compiled(Model())
    check(fast, Model(), sizes=(3,))
    fast.seal()
    with pytest.raises(pw.errors.Sealed):
        fast(torch.randn(1, 8))


def operator():
    @torch.library.custom_op("piecewise_tests_traces::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x])

    @double.register_fake
    def _(x):
        return x.new_empty((x.shape[0] * 2, *x.shape[1:]))

    return double


def doubled(x):
    return torch.ops.piecewise_tests_traces.double(x) + 1


def test_another_fake_kernel_of_a_custom_operator_is_another_trace():
    def run():
        fast = pw.compile(
            doubled, pw.Config(dynamic={"x": {0: pw.Dim("n", 2, 9)}}, compiler="eager"), "cpu"
        )
        assert fast(torch.ones(3, 2)).shape == (6, 2)
        return fast.stats().graphs

    op = operator()
    assert run() == 1
    assert run() == 0

    @op.register_fake
    def _(x):
        return torch.cat([x, x]).clone()

    assert run() == 1


def test_a_model_that_is_refused_after_its_trace_is_refused_again(tmp_path):
    def scaled(x):
        return x * 2

    for _ in range(2):
        with pytest.raises(pw.errors.NothingToSplit, match="is not in the traced graph"):
            compiled(scaled, splitting_ops=("aten::mm",))(torch.randn(3, 4))
    assert entries(tmp_path) == []


# Functions of one name -------------------------------------------------------------------


def plus(x):
    return x + 1


def times(x):
    return x * 3


def shifted(by):
    def fn(x):
        return x + by

    return fn


def one_of(second):
    if second:

        def fn(x):
            return x - 7
    else:

        def fn(x):
            return x * 5

    return fn


class Calls(nn.Module):
    def __init__(self, act) -> None:
        super().__init__()
        self.act = act

    def forward(self, x):
        return self.act(x) * 2


class Holds:
    def __init__(self, fn) -> None:
        self.fn = fn

    def __call__(self, x):
        return self.fn(x)


chosen = plus


def uses_what_is_chosen(x):
    return chosen(x)


ALIKE = {
    "lambdas": lambda: (lambda x: x + 1, lambda x: x * 3),
    "closures over other values": lambda: (shifted(2), shifted(5)),
    "functions made by one function": lambda: (one_of(True), one_of(False)),
    "modules that call other functions": lambda: (Calls(plus), Calls(times)),
    "modules that call other lambdas": lambda: (Calls(lambda x: x + 1), Calls(lambda x: x * 3)),
    "objects that hold other functions": lambda: (Holds(plus), Holds(times)),
    "methods of such objects": lambda: (Holds(plus).__call__, Holds(times).__call__),
    "modules of other modules": lambda: (Calls(nn.ReLU()), Calls(nn.Softmax(0))),
}


@pytest.mark.parametrize("pair", ALIKE.values(), ids=ALIKE)
def test_functions_that_only_their_code_tells_apart_have_traces_of_their_own(pair):
    dynamic = {0: {0: pw.Dim("rows", 0, 9)}}
    x = torch.randn(3, 4)
    for fn in (*pair(), *pair()):
        torch.testing.assert_close(compiled(fn, dynamic=dynamic, splitting_ops=())(x), fn(x))


def test_a_global_name_that_stands_for_another_function_is_noticed(monkeypatch):
    x = torch.randn(3, 4)
    for fn in (plus, times, lambda x: x - 1, lambda x: x - 2):
        monkeypatch.setattr(f"{__name__}.chosen", fn)
        fast = compiled(uses_what_is_chosen, splitting_ops=())
        torch.testing.assert_close(fast(x), fn(x))


def test_a_method_replaced_on_its_class_is_noticed_both_ways(monkeypatch):
    for _ in range(2):
        check(compiled(Model()), Model(), sizes=(3,))
        with monkeypatch.context() as patch:
            patch.setattr(Model, "forward", softmax_only)
            check(compiled(Model()), Model(), sizes=(3,))
        with monkeypatch.context() as patch:
            patch.setattr(nn.Linear, "forward", lambda self, x: x * 2)
            check(compiled(Model()), Model(), sizes=(3,))


# What a model reads ----------------------------------------------------------------------


class Reads(nn.Module):
    """Computes with a Python value that it holds."""

    def __init__(self, held, how) -> None:
        super().__init__()
        self.held = held
        self.how = how

    def forward(self, x):
        return self.how(x, self.held)


def hooked(register: str, hook) -> nn.Module:
    model = Calls(nn.ReLU())
    getattr(model.act, register)(hook)
    return model


def first_value(x, held):
    return x * next(iter(held.values())) + len(held)


def deep_value(x, held):
    return x * held["a"][1]["b"][1]


def which_nothing(x, held):
    return x if held is None else x * 5 if held is False else x * 7


READ = {
    "order of a dict": [Reads(held, first_value) for held in ({"a": 1, "b": 2}, {"b": 2, "a": 1})],
    "what lies deep": [Reads({"a": [1, {"b": (2, n)}]}, deep_value) for n in (3, 4)],
    "None, zero and False": [Reads(held, which_nothing) for held in (None, 0, False)],
    "sets": [Reads(held, lambda x, h: x * len(h) if 3 in h else x) for held in ({3}, {3, 4}, {4})],
    "hooks": [hooked("register_forward_hook", lambda m, i, o, n=n: o + n) for n in (1, 2)],
    "hooks of other code": [
        hooked("register_forward_pre_hook", hook)
        for hook in (lambda m, i: (i[0] + 1,), lambda m, i: (i[0] * 2,))
    ],
}


@pytest.mark.parametrize("models", READ.values(), ids=READ)
def test_models_that_differ_in_what_they_read_have_traces_of_their_own(models):
    x = torch.randn(3, 4)
    for model in (*models, *models):
        torch.testing.assert_close(compiled(model, splitting_ops=())(x), model(x))


def test_one_model_called_in_another_form_does_not_take_the_first_form_s_trace():
    fast = compiled(Model())
    x, mask = torch.randn(3, 8), torch.arange(8.0)
    fast(x)
    fast.linear = Model().linear  # the next call starts from the beginning, in whatever form it is
    torch.testing.assert_close(fast(x, mask)["y"], Model()(x, mask)["y"])
    assert fast.stats().graphs == 2


def level(kind, value):
    """An enum of this module, as an edit of its file makes it."""
    made = kind("Level", {"HIGH": value}, module=__name__, qualname="Level")
    made.__doc__ = "a level"
    return made


Level = level(enum.IntEnum, 2)
PATTERN = re.compile("ab")


def by_level(x):
    return x * Level.HIGH


def by_value(x):
    return x * Level.HIGH.value


def by_length(x):
    return x * len(str(Level.HIGH.value))


def by_pattern(x):
    return x * len(PATTERN.pattern)


@pytest.mark.parametrize(
    ("fn", "name", "values"),
    [
        (by_level, "Level", lambda: [level(enum.IntEnum, v) for v in (2, 3, 2)]),
        (by_value, "Level", lambda: [level(enum.Enum, v) for v in (2, 3, 2)]),
        (by_length, "Level", lambda: [level(enum.Enum, v) for v in ("a", "abc", "a")]),
        (by_pattern, "PATTERN", lambda: [re.compile(v) for v in ("ab", "abcd", "ab")]),
    ],
    ids=["number", "value", "text", "pattern"],
)
def test_what_a_constant_stands_for_was_edited_since(monkeypatch, fn, name, values):
    x = torch.randn(3, 4)
    for value in values():
        monkeypatch.setattr(f"{__name__}.{name}", value)
        fast = compiled(fn, splitting_ops=())
        torch.testing.assert_close(fast(x), fn(x))


def test_a_trace_that_reads_an_enum_is_found_again():
    x = torch.randn(3, 4)
    for traced in (1, 0):
        fast = compiled(by_level, splitting_ops=())
        torch.testing.assert_close(fast(x), by_level(x))
        assert fast.stats().graphs == traced
