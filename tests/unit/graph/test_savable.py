"""Plain values and importable objects survive JSON, bit for bit and object for object."""

from __future__ import annotations

import collections
import enum
import json
import math
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.graph.savable import NotSavable, Values, imported, place_of

VALUES = Values()
Pair = collections.namedtuple("Pair", "first second")


class Colour(enum.Enum):
    RED = 1


def round_trip(value):
    return VALUES.decode(json.loads(json.dumps(VALUES.encode(value))))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.sampled_from(
        [..., torch.float16, torch.strided, torch.channels_last, torch.device("cpu")]
    ),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner).map(lambda p: Pair(*p))
        | st.builds(slice, st.none() | st.integers(), st.integers(), st.none())
    ),
    max_leaves=12,
)


@given(PLAIN)
def test_values_come_back_equal_and_of_their_kind(value):
    found = round_trip(value)
    assert repr(found) == repr(value)  # types, signs of zeros, order of keys
    assert type(found) is type(value)


def test_nan_sizes_sets_enums_and_ordered_dicts_come_back():
    assert math.isnan(round_trip(math.nan))
    assert math.copysign(1, round_trip(-0.0)) == -1
    assert isinstance(round_trip(torch.Size([2, 3])), torch.Size)
    assert round_trip(frozenset({1, 2})) == frozenset({1, 2})
    assert round_trip(Colour.RED) is Colour.RED
    ordered = round_trip(collections.OrderedDict(b=1, a=(2,)))
    assert type(ordered) is collections.OrderedDict
    assert list(ordered) == ["b", "a"]


@pytest.mark.parametrize(
    "thing",
    [
        torch.nn.functional.softmax,
        torch.nn.functional.scaled_dot_product_attention,
        torch.nn.functional.linear,
        torch.nn.functional.gelu,
        torch.add,
        torch.cat,
        torch.Tensor,
        torch._C._nn.silu_,
        torch.ops.aten.add.Tensor,
        torch.ops.aten.mm,
        torch.ops.aten.mm.default,
        torch.ops.higher_order.cond,
        torch.amp.autocast_mode._enter_autocast,
        operator.getitem,
        math.floor,
        len,
        collections.OrderedDict,
        Pair,
        torch.sym_max,
        torch.linalg.norm,
        torch.fft.rfft,
        torch.special.expm1,
    ],
)
def test_functions_and_classes_come_back_as_the_same_object(thing):
    assert round_trip(thing) is thing


@pytest.mark.parametrize("thing", [object(), lambda: 1, torch.zeros(2), iter(()), print.__call__])
def test_what_no_import_gives_back_is_refused_by_name(thing):
    with pytest.raises(NotSavable):
        VALUES.encode(thing)


def test_a_torch_function_that_another_function_made_is_saved_by_the_name_it_goes_by():
    pool = torch.nn.functional.max_pool2d
    assert "<locals>" in pool.__qualname__
    assert place_of(pool) == "torch:nn.functional.max_pool2d"
    assert VALUES.decode(VALUES.encode(pool)) is pool


def test_a_function_that_hides_behind_another_of_its_name_is_not_saved():
    def gelu(x):
        return x

    gelu.__module__, gelu.__qualname__ = "torch.nn.functional", "gelu"
    assert place_of(gelu) is None


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"a": 1, "b": 2},
        {"nothing": 1},
        {"torch": "load"},
        {"torch": "nothing"},
        {"object": "os"},
        {"object": ":"},
        {"object": 3},
        {"float": "x"},
        {"bytes": "*"},
        1.5,
    ],
)
def test_what_no_encoder_writes_is_refused(data):
    with pytest.raises((ValueError, AttributeError, TypeError)):
        VALUES.decode(data)


def test_references_are_followed_by_attribute_only():
    assert imported("torch:nn.Linear") is torch.nn.Linear
    with pytest.raises(ImportError):
        imported("no.such.module:x")
    with pytest.raises(AttributeError):
        imported("torch:nn.Linnear")
