"""FAULTS 29a: Python objects in or out that tracing would freeze. Never a silent constant."""

from __future__ import annotations

import gc
import itertools
import linecache
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import piecewise_core as pw
from piecewise_core.errors import (
    PiecewiseError,
    UnsupportedOutput,
    UnsupportedSideEffect,
)
from piecewise_core.testing import SimulatedPlatform

ROWS = pw.Dim("rows", 0, 64)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def compiled(model, **config):
    return pw.compile(model, pw.Config(dynamic={0: {0: ROWS}}, compiler="eager", **config), "cpu")


def line_of(function, offset: int) -> str:
    return f"test_faults_objects.py:{function.__code__.co_firstlineno + offset}"


# Objects out ------------------------------------------------------------------------------


class GrowingCache:
    """A cache of its own kind: it grows at every call."""

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []


def returns_dynamic_cache(x):
    cache = DynamicCache()
    cache.update(x[None, None], x[None, None], 0)
    return x, cache


def returns_own_cache(x):
    cache = GrowingCache()
    cache.keys.append(x * 2)
    return {"hidden": x, "past": cache}


@pytest.mark.parametrize(
    ("fn", "path", "kind"),
    [
        (returns_dynamic_cache, "output[1]", "DynamicCache"),
        (returns_own_cache, "output['past']", "GrowingCache"),
        (lambda x: [x, {1, 2}], "output[1]", "set"),
        (lambda x: (x, iter([x])), "output[1]", "iterator"),
    ],
    ids=["DynamicCache", "own class", "set", "iterator"],
)
def test_an_object_returned_that_tracing_would_freeze_is_refused_with_path_and_type(fn, path, kind):
    """FAULTS 29a."""
    fast = compiled(fn)
    for _ in range(2):
        with pytest.raises(PiecewiseError) as caught:
            fast(torch.randn(3, 8))
    assert isinstance(caught.value, UnsupportedOutput)
    assert path in str(caught.value)
    assert kind in str(caught.value)


def test_a_refused_cache_says_what_to_pass_in_its_place():
    """FAULTS 29a."""
    with pytest.raises(UnsupportedOutput, match=r"use_cache=False.*StaticCache"):
        compiled(returns_dynamic_cache)(torch.randn(3, 8))


@dataclass
class Bag:
    """A dataclass that its own fields do not rebuild."""

    value: torch.Tensor
    made: list[int] = field(init=False, default_factory=list)


def test_a_dataclass_that_its_fields_do_not_rebuild_is_refused_with_path_and_type():
    """FAULTS 29a."""
    with pytest.raises(UnsupportedOutput, match=r"output is a Bag.*return a plain dict"):
        compiled(lambda x: Bag(x * 2))(torch.randn(3, 8))


# Side effects -----------------------------------------------------------------------------


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.seen: list[int] = []
        self.by_size: dict[str, int] = {}
        self.inner = nn.Module()


class CountsCalls(Counts):
    def forward(self, x):
        self.calls += 1
        return x * 2


class AppendsToList(Counts):
    def forward(self, x):
        self.seen.append(1)
        return x * 2


class WritesToDict(Counts):
    def forward(self, x):
        self.by_size["last"] = 1
        return x * 2


class KeepsItsInput(Counts):
    def forward(self, x):
        self.last = x
        return x * 2


class ChangesSubmodule(Counts):
    def forward(self, x):
        self.inner.mode = "used"
        return x * 2


TOTAL = 0


def counts_globally(x):
    global TOTAL
    TOTAL += 1
    return x * 2


def stores_in_argument(x, store):
    store["x"] = x * 2
    return x


@pytest.mark.parametrize(
    ("model", "what", "line"),
    [
        (CountsCalls(), "calls", line_of(CountsCalls.forward, 1)),
        (AppendsToList(), "seen", line_of(AppendsToList.forward, 1)),
        (WritesToDict(), "by_size", line_of(WritesToDict.forward, 1)),
        (KeepsItsInput(), "last", line_of(KeepsItsInput.forward, 1)),
        (ChangesSubmodule(), "mode", line_of(ChangesSubmodule.forward, 1)),
        (counts_globally, "TOTAL", line_of(counts_globally, 2)),
    ],
    ids=["counter", "list", "dict", "attribute", "submodule", "global"],
)
def test_a_python_object_changed_by_the_model_is_refused_with_its_path_and_line(model, what, line):
    """FAULTS 29a."""
    with pytest.raises(UnsupportedSideEffect) as caught:
        compiled(model)(torch.randn(3, 8))
    assert what in str(caught.value)
    assert line in str(caught.value)
    assert "keep the value in a tensor or buffer" in str(caught.value)


def sets_attribute(x):
    x.seen = 7
    return x + 1


def sets_attribute_of_its_own(x):
    y = x * 2
    y.seen = 7
    return y + y.seen


def test_an_attribute_set_on_an_argument_is_refused_and_one_of_the_program_s_own_is_served():
    """FAULTS 29a: no graph sets it, so it would be lost without a word."""
    with pytest.raises(UnsupportedSideEffect, match=r"argument\.seen") as caught:
        compiled(sets_attribute)(torch.randn(3, 8))
    assert line_of(sets_attribute, 1) in str(caught.value)
    fast, x = compiled(sets_attribute_of_its_own), torch.randn(3, 8)
    torch.testing.assert_close(fast(x), sets_attribute_of_its_own(x))


def test_a_recorded_function_sets_an_attribute_of_its_argument_at_every_call():
    """FAULTS 29a."""
    config = pw.Config(dynamic={"x": {0: pw.Dim("n", 1, 8)}}, capture_sizes=(3,), capture_max=False)
    fast = pw.record(sets_attribute, config, platform=SimulatedPlatform())
    for _ in range(3):
        x = torch.randn(3, 8)
        torch.testing.assert_close(fast(x), x + 1)
        assert x.seen == 7


def test_a_refused_side_effect_has_not_happened():
    """FAULTS 29a."""
    model = CountsCalls()
    with pytest.raises(UnsupportedSideEffect):
        compiled(model)(torch.randn(3, 8))
    with pytest.raises(UnsupportedSideEffect):
        compiled(counts_globally)(torch.randn(3, 8))
    assert (model.calls, TOTAL) == (0, 0)


def test_a_dict_argument_written_to_is_refused():
    """FAULTS 29a."""
    store: dict[str, torch.Tensor] = {}
    fast = compiled(stores_in_argument)
    with pytest.raises(UnsupportedSideEffect, match=r'changes argument "store" in place'):
        fast(torch.randn(3, 8), store)
    assert not store


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda items, x: items["list"].append(x), "items.list"),
        (lambda items, x: items["list"].pop(), "items.list"),
        (lambda items, x: items["list"].__setitem__(0, x * 2), "items.list.0"),
        (lambda items, x: items["list"].reverse(), "items.list.0"),
        (lambda items, x: items.pop("number"), "items"),
        (lambda items, x: items.update(number=2), "items.number"),
        (lambda items, x: items.update(number=True), "items.number"),
    ],
)
def test_a_container_argument_changed_in_place_is_refused_with_its_path(change, path):
    """FAULTS 29a."""

    def fn(x, items):
        change(items, x)
        return x * 2

    x = torch.randn(3, 8)
    items = {"list": [x, torch.randn(8)], "number": 1}
    with pytest.raises(UnsupportedSideEffect, match=f'changes argument "{path}" in place'):
        compiled(fn)(x, items)
    assert items["number"] == 1
    assert items["list"][0] is x
    assert len(items["list"]) == 2


def test_keyword_arguments_collected_by_the_model_are_its_own_to_change():
    """FAULTS 29a."""

    def fn(x, *rest, **options):
        options["scale"] = options.pop("factor") + len(rest)
        return x * options["scale"]

    fast = compiled(fn)
    for size in (3, 5):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x, 1, 2, factor=0.5), x * 2.5)


def test_a_list_in_a_closure_appended_to_is_refused():
    """FAULTS 29a."""
    seen: list[int] = []

    def fn(x):
        seen.append(len(seen))
        return x * 2

    with pytest.raises(UnsupportedSideEffect) as caught:
        compiled(fn)(torch.randn(3, 8))
    assert f"list model.__closure__[0].cell_contents at {__file__}" in str(caught.value)
    assert line_of(fn, 1) in str(caught.value)
    assert seen == []


def test_an_iterator_advanced_by_the_model_is_refused():
    """FAULTS 29a."""
    numbers = itertools.count()

    def fn(x):
        return x * next(numbers)

    with pytest.raises(PiecewiseError):
        compiled(fn)(torch.randn(3, 8))


def test_objects_made_and_changed_within_the_call_are_no_side_effect():
    """FAULTS 29a."""

    def fn(x):
        parts, names = [], {}
        for place in range(3):
            parts.append(x * place)
            names[place] = len(parts)
        return torch.cat(parts), names

    fast = compiled(fn)
    for size in (3, 0, 1, 5):
        x = torch.randn(size, 8)
        got, names = fast(x)
        torch.testing.assert_close(got, fn(x)[0])
        assert names == {0: 1, 1: 2, 2: 3}


def test_a_container_returned_is_a_new_one_at_every_call():
    """FAULTS 29a."""
    fast = compiled(lambda x: {"rows": [x.shape[0]], "x": x * 2})
    first, second = fast(torch.randn(3, 8)), fast(torch.randn(4, 8))
    first["rows"].append("mine")
    assert second["rows"] == [4]
    assert fast(torch.randn(5, 8))["rows"] == [5]


# Tensors and buffers are state that may change ----------------------------------------------


class Remembers(nn.Module):
    """Counts in a buffer and keeps rows in another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("rows", torch.zeros(64, 8))

    def forward(self, x):
        self.calls.add_(1)
        self.rows[: x.shape[0]] = x
        return self.rows.sum() + self.calls


def test_each_write_to_a_buffer_happens_once_per_call_and_never_in_warm_up():
    """FAULTS 29a and 29b."""
    model, reference = Remembers(), Remembers()
    fast = compiled(model, compile_ranges_endpoints=(4, 16))
    fast.warmup(torch.randn(3, 8), progress=False)
    assert model.calls == 0
    assert not model.rows.any()
    for size in (3, 7, 0, 1, 64, 20):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), reference(x))
    assert model.calls == reference.calls == 6
    torch.testing.assert_close(model.rows, reference.rows)


def test_each_write_to_a_buffer_happens_once_at_a_first_call_that_compiles():
    """FAULTS 29b."""
    for mode in ("lazy", "warmup"):
        model = Remembers()
        fast = compiled(model, compile_ranges_endpoints=(4, 16), compile_mode=mode)
        for calls in range(1, 4):
            fast(torch.randn(3, 8))
            assert model.calls == calls


# Objects in ---------------------------------------------------------------------------------


class Options:
    """An object without tensors."""

    def __init__(self, scale: float) -> None:
        self.scale = scale


def test_another_object_than_the_traced_one_is_served_by_what_it_holds():
    """FAULTS 29a."""

    def fn(x, options):
        return x * options.scale

    fast, mine = compiled(fn), Options(2.0)
    x = torch.randn(3, 8)
    torch.testing.assert_close(fast(x, mine), x * 2)
    torch.testing.assert_close(fast(x, Options(2.0)), x * 2)
    assert fast.stats().calls["compiled_range"] == 2  # what the trace read of it holds
    other = Options(3.0)
    torch.testing.assert_close(fast(x, other), x * 3)
    assert fast.stats().calls["eager"] == 1  # a first call may fill it
    torch.testing.assert_close(fast(x, other), x * 3)
    torch.testing.assert_close(fast(x, mine), x * 2)
    assert (fast.stats().calls["compiled_range"], fast.stats().graphs) == (4, 2)
    other.scale = 4.0
    torch.testing.assert_close(fast(x, other), x * 4)


class Holder:
    """An object with a tensor, in one of its attributes or in a slot that nobody sees."""

    __slots__ = ("__dict__", "__weakref__", "hidden")

    def __init__(self, *shown: torch.Tensor, hidden: torch.Tensor | None = None) -> None:
        self.shown = list(shown)
        self.hidden = hidden


def test_another_objects_tensors_are_read_wherever_they_lie():
    def fn(x, held):
        total = sum(held.shown[1:], held.shown[0] * x)
        return (total if held.hidden is None else total + held.hidden), held

    fast, x = compiled(fn), torch.randn(3, 8)
    one, two = torch.ones(8), torch.full((8,), 2.0)
    cases = [
        lambda: Holder(one.clone()),
        lambda: Holder(two.clone()),
        lambda: Holder(one.clone(), two.clone()),
        lambda: Holder(two.clone(), two.clone()),
        lambda: Holder(*[one.clone()] * 2),  # one tensor twice
        lambda: Holder(one.clone(), hidden=one.clone()),
        lambda: Holder(one.clone(), hidden=two.clone()),
        lambda: Holder(torch.ones(1)),
        lambda: Holder(torch.ones(16)[::2]),
        lambda: Holder(one.double()),
    ]
    for make in (*cases, *reversed(cases)):
        held = make()
        for _ in range(2):
            got, same = fast(x, held)
            assert same is held
            torch.testing.assert_close(got, fn(x, held)[0])
        held.shown[0] = held.shown[0] * 3
        torch.testing.assert_close(fast(x, held)[0], fn(x, held)[0])


def test_an_object_that_every_call_changes_is_served_as_written_and_said_once(caplog):
    class Grows:
        def __init__(self) -> None:
            self.rows = torch.zeros(0, 8)

    def fn(x, grows):
        grows.rows = torch.cat([grows.rows, x])
        return grows.rows.sum(0)

    fast, mine, theirs = compiled(fn), Grows(), Grows()
    with caplog.at_level("WARNING", "piecewise_core"):
        for size in (3, 1, 4, 3):
            x = torch.randn(size, 8)
            torch.testing.assert_close(fast(x, mine), fn(x, theirs))
    assert [r for r in caplog.messages if "Grows" in r and "run as written" in r] == caplog.messages
    assert (len(caplog.messages), fast.stats().calls["eager"]) == (1, 4)


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Held:
    def __init__(self) -> None:
        self.rows = torch.ones(8)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0

    def forward(self, x, held):
        return x * held.rows * self.scale


@pytest.mark.parametrize("platform", ["cpu", SimulatedPlatform()], ids=["plain", "captured"])
def test_an_object_in_place_of_another_never_meets_a_trace_of_the_model_as_it_was(platform):
    config = {"dynamic": {0: {0: ROWS}}, "compiler": "eager"}
    graphs = {} if platform == "cpu" else {"capture_sizes": [3]}
    model = Scaled()
    fast, x = pw.compile(model, pw.Config(**config, **graphs), platform), torch.ones(3, 8)
    for scale in (2.0, 3.0, 2.0, 5.0):
        model.scale = scale
        for _ in range(3):
            assert torch.equal(fast(x, Held()), torch.full((3, 8), scale))


def test_a_sealed_model_that_was_changed_is_refused_at_every_call():
    model, held, x = Scaled(), Held(), torch.ones(3, 8)
    fast = compiled(model)
    fast(x, held)
    fast.seal()
    model.scale = 3.0
    for _ in range(3):
        with pytest.raises(pw.errors.Sealed):
            fast(x, held)
    model.scale = 2.0
    assert torch.equal(fast(x, held), torch.full((3, 8), 2.0))


class Paged:
    """As transformers' PagedAttentionCache, which continuous batching passes."""

    def __init__(self) -> None:
        self.held = torch.zeros(3)

    @torch.compiler.disable
    def update(self, x):
        self.held += x.sum(0)
        return self.held


def test_an_object_whose_code_may_not_be_traced_is_served_as_written_and_said_once(caplog):
    class Model(nn.Module):
        def forward(self, x, cache):
            return cache.update(x) + x.sum()

    fast, own = compiled(Model()), Model()
    for _ in range(2):
        paged, other = Paged(), Paged()
        for rows in (2, 3):
            x = torch.randn(rows, 3)
            torch.testing.assert_close(fast(x, paged), own(x, other))
            torch.testing.assert_close(paged.held, other.held)
    assert fast.stats().calls["eager"] == 4
    said = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(said) == 1
    assert "torch.compiler.disable keeps Paged.update from being traced" in said[0]


def test_tensors_inside_containers_are_inputs_and_not_constants():
    """FAULTS 29a."""

    def fn(x, extra):
        return x * extra["pair"].left + extra["list"][0] - extra["pair"].right

    fast = compiled(fn)
    for size in (3, 1, 0, 5):
        x = torch.randn(size, 8)
        extra = {"pair": Pair(torch.randn(8), torch.randn(8)), "list": [torch.randn(8)]}
        torch.testing.assert_close(fast(x, extra), fn(x, extra))


def test_a_value_read_from_a_global_is_followed_or_refused_never_frozen_silently():
    """FAULTS 29a: what tracing reads besides the arguments must not change under it."""
    settings = {"scale": torch.tensor(2.0)}

    def fn(x):
        return x * settings["scale"]

    fast, x = compiled(fn), torch.randn(3, 8)
    torch.testing.assert_close(fast(x), x * 2)
    settings["scale"].fill_(3.0)
    torch.testing.assert_close(fast(x), x * 3)


def test_switching_between_train_and_eval_keeps_no_graph_and_no_source_per_switch():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)).eval()
    config = pw.Config(dynamic={"input": {0: pw.Dim("rows", 1, 16)}}, compiler="eager")
    fast = pw.compile(model, config, platform="cpu")

    def kept_after(switches):
        for turn in range(switches):
            model.train(turn % 2 == 0)
            fast(torch.ones(2, 4))
        gc.collect()
        graphs = [o for o in gc.get_objects() if issubclass(type(o), torch.fx.Graph)]
        sources = [name for name in linecache.cache if name.startswith("<piecewise")]
        return len(graphs), len(sources)

    few, many = kept_after(4), kept_after(12)
    assert many == few
    assert fast.stats().unique_pieces == 2


# Objects that the model keeps as well -------------------------------------------------------


class KeysOf:
    """An object of calls."""

    def __init__(self) -> None:
        self.keys = torch.randn(8)


KEPT: dict[str, torch.Tensor] = {}


class KeepsKeys(nn.Module):
    """Reads the keys of its calls' object, and others that may be the same tensor."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.register_buffer("buffer", None)
        self.attribute: Any = None

    def put(self, tensor: torch.Tensor) -> None:
        if self.where == "global":
            KEPT["keys"] = tensor
        elif self.where == "attribute":
            self.__dict__["attribute"] = tensor
        else:
            self.buffer = tensor

    def forward(self, x, of):
        if self.where == "global":
            kept = KEPT["keys"]
        else:
            kept = self.attribute if self.where == "attribute" else self.buffer
        return torch.relu(x * of.keys) + 3 * kept


@pytest.mark.parametrize("where", ["global", "attribute", "buffer"])
@pytest.mark.parametrize("platform", ["cpu", SimulatedPlatform()], ids=["plain", "captured"])
def test_objects_whose_tensors_the_model_keeps_too_are_told_apart(platform, where):
    if where == "global" and torch.__version__ < (2, 13):
        pytest.skip("this torch does not say which globals hold a tensor met elsewhere too")
    sizes = {} if platform == "cpu" else {"capture_sizes": (4,)}
    model = KeepsKeys(where).eval()
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", 1, 8)}}, compiler="eager", **sizes)
    fast = pw.compile(model, config, platform)
    one, two, three = KeysOf(), KeysOf(), KeysOf()
    kept = [(one, one), (one, two), (two, two), (three, two), (three, three), (one, three)]
    for keeps, given in [*kept, *reversed(kept)]:
        model.put(keeps.keys)
        for _ in range(3):
            x = torch.randn(4, 8)
            torch.testing.assert_close(fast(x, given), model(x, given))


@pytest.mark.parametrize("where", ["attribute", "buffer", "list", "object"])
def test_a_tensor_is_followed_where_it_is_read_and_not_where_it_is_kept_besides(where):
    """What only one of two places that hold a tensor is read by is replaced there."""

    class ReadsGlobal(nn.Module):
        def forward(self, x, of):
            return torch.relu(x * of.keys) + KEPT["keys"]

    model, given, apart = ReadsGlobal().eval(), KeysOf(), KeysOf()
    KEPT["keys"] = apart.keys
    if where == "buffer":
        model.register_buffer("first", apart.keys)
        model.register_buffer("second", given.keys)
    else:
        held = {"attribute": apart.keys, "list": [apart.keys], "object": apart}[where]
        model.__dict__["first"] = held
        model.__dict__["second"] = given.keys
    fast = compiled(model)
    for change in (None, KEPT, given):
        if change is KEPT:
            KEPT["keys"] = torch.randn(8)
        elif change is given:
            given.keys = torch.randn(8)
        for _ in range(2):
            x = torch.randn(4, 8)
            torch.testing.assert_close(fast(x, given), model(x, given))
