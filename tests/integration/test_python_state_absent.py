"""What a model looks for and does not find, all that an object has, and arrays (FAULTS 54)."""

from __future__ import annotations

import array
import collections
import contextlib
import types
from typing import Any

import pytest
import torch
from torch import nn

from tests.integration.state_doors import DOORS, plain, recorded, retraces


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Model(nn.Module):
    def __init__(self, held: Any, read: Any) -> None:
        super().__init__()
        self.held, self.read = held, read

    def forward(self, x):
        return x * self.read(self.held)


def asks_for_a_key(held):
    try:
        return held["k"]
    except KeyError:
        return 3.0


def asks_whatever_is_raised(held):
    try:
        return held["k"]
    except:  # noqa: E722
        return 3.0


def asks_with_suppress(held, key="k"):
    found = 3.0
    with contextlib.suppress(KeyError):
        found = held[key]
    return found


def asks_for_an_attribute(held):
    try:
        return held.k
    except AttributeError:
        return 3.0


def adds_all(held):
    return sum(vars(held).values()) + 1.0


def counts_all(held):
    return len(held.__dict__) + 1.0


class Plain:
    pass


class Slotted:
    __slots__ = ("k",)


class Strict:
    """Knows what it was given; asking for more is a mistake."""

    def __init__(self, **given: Any) -> None:
        self.__dict__["given"] = given

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["given"][name]


CASES = {
    "a key": (dict, asks_for_a_key, lambda m: m.held.update(k=8.0)),
    "a key beside another": (
        lambda: {"a": 1.0},
        lambda held: asks_for_a_key(held) + held["a"],
        lambda m: m.held.update(k=8.0),
    ),
    "a key, whatever is raised": (
        dict,
        asks_whatever_is_raised,
        lambda m: m.held.update(k=8.0),
    ),
    "a key that an argument names": (dict, asks_with_suppress, lambda m: m.held.update(k=8.0)),
    "a key in the first of several dicts": (
        lambda: collections.ChainMap({"a": 1.0}, {"k": 2.0}),
        lambda held: held["a"] + held["k"],
        lambda m: m.held.maps[0].update(k=8.0),
    ),
    "an attribute": (
        types.SimpleNamespace,
        asks_for_an_attribute,
        lambda m: setattr(m.held, "k", 8.0),
    ),
    "an attribute of the class": (
        lambda: type("Own", (), {})(),
        asks_for_an_attribute,
        lambda m: setattr(type(m.held), "k", 8.0),
    ),
    "a slot": (
        Slotted,
        asks_for_an_attribute,
        lambda m: setattr(m.held, "k", 8.0),
    ),
    "a buffer": (
        nn.Identity,
        asks_for_an_attribute,
        lambda m: m.held.register_buffer("k", torch.full((2,), 8.0)),
    ),
    "all attributes": (Plain, adds_all, lambda m: setattr(m.held, "new", 8.0)),
    "one attribute more": (
        lambda: types.SimpleNamespace(a=1.0),
        adds_all,
        lambda m: setattr(m.held, "b", 8.0),
    ),
    "how many attributes": (Plain, counts_all, lambda m: setattr(m.held, "new", 8.0)),
    "the order of a dict": (
        lambda: {"a": 1.0, "b": 2.0},
        lambda held: next(iter(held.values())),
        lambda m: m.held.update(a=m.held.pop("a")),
    ),
    "an object that raises what it likes": (
        lambda: Strict(k=2.0),
        lambda held: held.k,
        lambda m: m.held.given.update(k=8.0),
    ),
}


@DOORS
@pytest.mark.parametrize("name", CASES)
def test_what_was_not_there_is_seen_once_it_is(door, name):
    make, read, change = CASES[name]
    model = Model(make(), read).eval()
    fast = door(model)
    for step in range(3):
        for rows in (4, 4, 3):
            x = torch.randn(rows, 2)
            torch.testing.assert_close(fast(x), model(x))
        if step == 1:
            change(model)
    assert retraces(fast) <= 1


def test_a_memo_that_misses_are_caught_of_is_filled_once_a_size():
    class Memo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memo: dict[int, torch.Tensor] = {}

        def forward(self, x):
            try:
                table = self.memo[x.shape[0]]
            except KeyError:
                table = self.memo[x.shape[0]] = torch.arange(float(x.shape[0]))
            return x + table[:, None]

    model, again = Memo(), Memo()
    fast = plain(model)
    for _ in range(3):
        for rows in (2, 3, 4):
            x = torch.randn(rows, 2)
            torch.testing.assert_close(fast(x), again(x))
    assert fast.stats().calls["eager"] <= 3


def test_a_kept_trace_makes_no_entry_of_a_defaultdict():
    for entries in ({"k": 2.0}, {}):
        held: Any = collections.defaultdict(lambda: 2.0, entries)
        model = Model(held, lambda held: held.get("k", 7.0)).eval()
        x = torch.randn(4, 2)
        torch.testing.assert_close(plain(model)(x), x * (2.0 if entries else 7.0))
        assert dict(held) == entries


@pytest.mark.parametrize("one", [True, False])
def test_a_kept_trace_knows_which_tensors_are_one(one):
    def read(held):
        return 2.0 if held[0] is held[1] else 5.0

    for same in (one, not one):
        first = torch.ones(2)
        model = Model([first, first if same else torch.ones(2)], read).eval()
        x = torch.randn(4, 2)
        torch.testing.assert_close(plain(model)(x), x * (2.0 if same else 5.0))


ARRAYS = {
    "numpy": lambda: pytest.importorskip("numpy").zeros(3),
    "numpy, turned": lambda: pytest.importorskip("numpy").zeros((2, 3)).T[:, 0],
    "of the library": lambda: array.array("d", [0.0, 0.0]),
    "bytes": lambda: bytearray(2),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_recorded_function_reads_an_array_as_it_is(kind):
    model = Model(ARRAYS[kind](), lambda held: float(held[1])).eval()
    fast = recorded(model)
    for step in range(4):
        model.held[1] = step // 2
        x = torch.randn(4, 2)
        torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().calls["replayed"] > 0


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_recorded_function_counts_in_an_array_once_a_call(kind):
    def count(held):
        held[1] += 1
        return float(held[1])

    model = Model(ARRAYS[kind](), count).eval()
    fast = recorded(model)
    for call in range(1, 6):
        x = torch.randn(4, 2)
        torch.testing.assert_close(fast(x), x * call)
        assert model.held[1] == call


def test_what_torch_writes_through_an_array_of_numpy_is_written_once_a_call():
    numpy = pytest.importorskip("numpy")
    model = Model(numpy.zeros(2, numpy.float32), lambda held: torch.from_numpy(held).add_(1))
    fast = recorded(model)
    for call in range(1, 5):
        x = torch.randn(4, 2)
        torch.testing.assert_close(fast(x), x * call)


def state():
    return types.SimpleNamespace(
        first=torch.ones(2), inner=types.SimpleNamespace(held=[torch.zeros(2)])
    )


def replace(held):
    held.first = torch.full((2,), 3.0)


def replace_inside(held):
    held.inner.held[0] = torch.full((2,), 7.0)


@pytest.mark.parametrize("given", [True, False])
def test_a_tensor_that_an_object_gets_in_place_of_another_is_read_by_a_recorded_function(given):
    held = state()

    def with_argument(x, held):
        return x * held.first + held.inner.held[0]

    def with_closure(x):
        return with_argument(x, held)

    fn, more = (with_argument, (held,)) if given else (with_closure, ())
    fast = recorded(fn)
    for change in (None, replace, replace_inside, lambda held: held.first.zero_()):
        if change is not None:
            change(held)
        fast.restore()
        for _ in range(2):
            x = torch.randn(4, 2)
            torch.testing.assert_close(fast(x, *more), fn(x, *more))


def block():
    return types.SimpleNamespace(absmax=torch.ones(2), k=2.0)


ON_WEIGHTS = {
    "a number": (lambda: 2.0, lambda held: held, lambda w: setattr(w, "held", 5.0)),
    "a tensor": (
        lambda: torch.ones(2),
        lambda held: held,
        lambda w: setattr(w, "held", torch.full((2,), 3.0)),
    ),
    "an object's number": (block, lambda held: held.k, lambda w: setattr(w.held, "k", 5.0)),
    "an object's tensor": (
        block,
        lambda held: held.absmax,
        lambda w: setattr(w.held, "absmax", torch.full((2,), 3.0)),
    ),
}


@DOORS
@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_what_a_weight_was_given_as_an_attribute_is_seen_when_it_changes(door, name):
    make, read, change = ON_WEIGHTS[name]
    model = Model(nn.Linear(2, 2), lambda held: read(held.weight.held)).eval().requires_grad_(False)
    model.held.weight.held = make()
    fast = door(model)
    for step in range(3):
        for _ in range(2):
            x = torch.randn(4, 2)
            torch.testing.assert_close(fast(x), model(x))
        if step == 1:
            change(model.held.weight)


@DOORS
def test_keys_of_a_dict_are_not_asked_to_describe_themselves(door):
    class Key:
        def __str__(self):
            raise AssertionError("a key was described")

        __repr__ = __str__

    held = {Key(): 1.0, "scale": 2.0}

    def fn(x):
        return x * held["scale"]

    fast, x = door(fn), torch.ones(4, 2)
    for scale in (2.0, 2.0, 3.0, 3.0):
        held["scale"] = scale
        assert torch.equal(fast(x), fn(x))
