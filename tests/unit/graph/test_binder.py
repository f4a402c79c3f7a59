"""Checking a call, and picking its tensors and sizes out."""

from __future__ import annotations

import enum
import inspect
import math
from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import piecewise_core as pw
from piecewise_core.errors import InputMismatch
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.input_checks import same_value

ROWS = pw.Dim("rows", 0, 64)
X = torch.arange(12.0).reshape(3, 4)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Watched(Binder):
    """A binder that counts the calls its generated function gives up on."""

    slow_calls = 0

    def slow(self, values):
        self.slow_calls += 1
        return super().slow(values)


def binder(fn, *args, dynamic=None, **kwargs):
    settings = kwargs.pop("settings", {})
    config = pw.Config(dynamic={"x": {0: ROWS}} if dynamic is None else dynamic)
    return Watched(describe_call(fn, args, kwargs, config), **settings)


def plain(x, k=2):
    return x


# What comes out -------------------------------------------------------------------------


def test_tensors_and_sizes_come_out_in_the_order_of_the_structure():
    def fn(x, y, *rest, flag=True, **more):
        return x

    dynamic = {"y": {1: pw.Dim("cols", 1, 9)}, "x": {0: ROWS}, "rest.0": {0: ROWS}}
    bind = binder(fn, X, torch.ones(1, 2), X, mask=X[0], dynamic=dynamic)
    y, r, m = torch.ones(1, 7), torch.ones(5, 4), torch.ones(4)
    x = torch.ones(5, 4)
    tensors, sizes = bind.bind(x, y, r, mask=m)
    assert [id(t) for t in tensors] == [id(x), id(y), id(r), id(m)]
    assert sizes == (7, 5)
    assert bind.slow_calls == 0
    assert [id(t) for t in bind.raw(x, y, r, mask=m)] == [id(t) for t in tensors]


def test_the_generated_function_has_the_models_own_parameters():
    def fn(x, /, y=1, *, z=2, **more):
        return x

    bind = binder(fn, X)
    kinds = [p.kind for p in inspect.signature(bind.bind).parameters.values()]
    assert kinds == [p.kind for p in inspect.signature(fn).parameters.values()]
    with pytest.raises(TypeError):
        bind.bind(x=X)


def test_parameters_named_like_builtins_do_no_harm():
    def fn(x, type, len, tuple):
        return x

    bind = binder(fn, X, {"a": X, "b": X}, [X], 3)
    bind.bind(X, {"a": X, "b": X}, [X], 3)
    assert bind.slow_calls == 0


def test_keywords_and_defaults_in_any_order_bind_alike():
    bind = binder(plain, X)
    for args, kwargs in [((X,), {}), ((X, 2), {}), ((), {"k": 2, "x": X}), ((X,), {"k": 2})]:
        assert bind.bind(*args, **kwargs) == ((X,), (3,))


@pytest.mark.parametrize("size", [0, 1, 2, 63, 64])
def test_every_size_takes_the_fast_path(size):
    bind = binder(plain, X)
    x = torch.zeros(size, 4)
    assert bind.bind(x)[1] == (size,)
    assert bind.slow_calls == 0


@given(st.integers(0, 9), st.integers(0, 9), st.permutations([0, 1, 2]))
def test_a_permuted_layout_binds_without_a_copy_at_every_size(n, m, order):
    back = [order.index(i) for i in range(3)]

    def make(*sizes):
        return torch.zeros([sizes[d] for d in order]).permute(back)

    dims = {0: ROWS, 1: pw.Dim("cols", 0, 64)}
    bind = binder(plain, make(4, 5, 3), dynamic={"x": dims})
    x = make(n, m, 3)
    tensors, sizes = bind.bind(x)
    assert tensors[0] is x
    assert sizes == (n, m)


# Constants ------------------------------------------------------------------------------

VALUES = (
    None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, math.nan, math.inf, 0j, complex(0, -0.0), "a", "",
    b"a", Colour.RED, Colour.BLUE, torch.float32, torch.float16, torch.device("cpu"), int, float,
    ...,
    torch.Size((1,)), slice(1), slice(True), slice(0.0), slice(-0.0), frozenset({1}),
    frozenset({True}),
)  # fmt: skip


@pytest.mark.parametrize("traced", VALUES, ids=repr)
def test_a_constant_fits_itself_and_no_other_value(traced):
    bind = binder(plain, X, traced)
    for value in VALUES:
        if value is traced:
            assert bind.bind(X, value)[1] == (3,)
        else:
            with pytest.raises(InputMismatch, match='argument "k" is'):
                bind.bind(X, value)


@pytest.mark.parametrize(
    "value", [math.nan, -0.0, (1 << 70), "aéb", complex(1, 2), torch.Size((2,))]
)
def test_equal_constants_need_not_be_the_same_object(value):
    again = complex(1, 2) if isinstance(value, complex) else value
    again = float(str(value)) if isinstance(value, float) else again
    bind = binder(plain, X, value)
    bind.bind(X, again)
    assert bind.slow_calls == 0
    assert same_value(value, again)


def test_an_object_is_a_constant_by_identity():
    held = {1, 2}
    bind = binder(plain, X, held)
    assert bind.bind(X, held)[1] == (3,)
    with pytest.raises(InputMismatch, match='"k" is another set object than the set traced'):
        bind.bind(X, {1, 2})


def test_a_tensor_where_a_constant_was_traced_is_refused_and_the_other_way_round():
    with pytest.raises(
        InputMismatch, match=r'"k" is a tensor of shape \(3, 4\); traced with the con'
    ):
        binder(plain, X).bind(X, X)
    with pytest.raises(InputMismatch, match=r'"x": a tensor expected of torch.float32, got int 3'):
        binder(plain, X).bind(3)


# Containers -----------------------------------------------------------------------------


def test_a_container_keeps_its_type_its_length_and_its_keys():
    pair = namedtuple("pair", ["left", "right"])
    bind = binder(plain, {"a": X, "b": [1, 2]}, pair(1, 2), dynamic={"x.a": {0: ROWS}})
    assert bind.bind({"a": X, "b": [1, 2]}, pair(1, 2))[1] == (3,)
    assert bind.slow_calls == 0
    for x, k, said in [
        ({"a": X}, pair(1, 2), r'"x" has keys \[\'a\'\]; traced with \[\'a\', \'b\'\]'),
        ({"a": X, "b": [1, 2, 3]}, pair(1, 2), '"x.b" has 3 items; traced with 2'),
        ({"a": X, "b": (1, 2)}, pair(1, 2), '"x.b" is a tuple; traced with list'),
        (OrderedDict(a=X, b=[1, 2]), pair(1, 2), '"x" is a OrderedDict; traced with dict'),
        ({"a": X, "b": [1, 2]}, (1, 2), '"k" is a tuple; traced with pair'),
        (None, pair(1, 2), '"x" is a NoneType; traced with dict'),
    ]:
        with pytest.raises(InputMismatch, match=said):
            bind.bind(x, k)


@pytest.mark.parametrize("value", [X, 1])
def test_the_order_of_keys_counts_since_a_model_can_go_through_entries(value):
    bind = binder(plain, {"a": X, "b": value}, dynamic={"x.a": {0: ROWS}})
    assert bind.bind({"a": X, "b": value})[1] == (3,)
    with pytest.raises(InputMismatch, match=r"keys in the order \['b', 'a'\]"):
        bind.bind({"b": value, "a": X})


def test_keys_that_are_no_strings_are_found():
    keys = {Colour.RED: X, 3: X, (1, 2): X, None: X}
    bind = binder(plain, keys, dynamic={})
    assert [id(t) for t in bind.bind(dict(keys))[0]] == [id(X)] * 4
    assert bind.slow_calls == 0


# Tensors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (X.double(), "dtype expected torch.float32, got torch.float64"),
        (X.to("meta"), "device expected cpu, got meta"),
        (X[0], r"rank expected 2, got 1, shape \(4,\)"),
        (torch.zeros(3, 5), r'size of dim 1 expected 4, got 5; to let it vary.*\{"x": \{1: Dim'),
        (X.to_sparse(), "layout expected torch.strided, got torch.sparse_coo"),
        (X.as_subclass(type("Mine", (torch.Tensor,), {})), "type expected torch.Tensor, got Mine"),
    ],
)
def test_a_tensor_of_another_kind_is_refused_saying_what_was_expected_and_got(x, said):
    with pytest.raises(InputMismatch, match=said):
        binder(plain, X).bind(x)


def test_a_parameter_serves_where_a_tensor_was_traced():
    parameter = torch.nn.Parameter(X)
    assert binder(plain, X).bind(parameter)[0] == (parameter,)


def test_one_name_is_one_size_and_both_places_are_named():
    def fn(x, y):
        return x

    bind = binder(fn, X, X, dynamic={"x": {0: ROWS}, "y": {0: ROWS}})
    with pytest.raises(InputMismatch, match='"rows" has size 3 in x dim 0 and 2 in y dim 0'):
        bind.bind(X, X[:2])
    twice = binder(plain, torch.zeros(3, 3), dynamic={"x": {0: ROWS, 1: ROWS}})
    assert twice.bind(torch.zeros(5, 5))[1] == (5,)
    with pytest.raises(InputMismatch, match="size 5 in x dim 0 and 4 in x dim 1"):
        twice.bind(torch.zeros(5, 4))


def test_sizes_in_one_tuple_are_read_from_the_first_tensor_that_has_them():
    def fn(x, y):
        return x

    dims = {"x": {0: ROWS}, "y": {0: ROWS, 1: pw.Dim("cols", 0, 9)}}
    bind = binder(fn, X, torch.zeros(3, 2), dynamic=dims)
    assert bind.bind(torch.zeros(6, 4), torch.zeros(6, 7))[1] == (6, 7)
    assert bind.slow_calls == 0


# Layouts --------------------------------------------------------------------------------


def counted(*args, **settings):
    copies = []
    settings["on_restride"] = lambda: copies.append(1)
    return binder(*args, settings=settings), copies


def test_foreign_strides_are_copied_to_the_traced_layout_and_counted():
    bind, copies = counted(plain, X)
    x = torch.randn(4, 5).t()
    ((found,), sizes) = bind.bind(x)
    assert torch.equal(found, x)
    assert found.is_contiguous()
    assert (sizes, len(copies)) == ((5,), 1)
    permuted, copies = counted(plain, X.t().contiguous().t())
    ((found,), _) = permuted.bind(X)
    assert torch.equal(found, X)
    assert found.stride() == (1, 3)
    assert len(copies) == 1


def test_strides_of_dims_with_one_index_do_not_matter():
    bind, copies = counted(plain, X)
    x = torch.zeros(1, 8)[:, ::2].as_strided((1, 4), (99, 1))
    assert bind.bind(x)[0][0] is x
    assert copies == []


def test_data_that_is_not_aligned_is_copied():
    bind, copies = counted(plain, torch.zeros(3), alignment=16)
    x = torch.arange(8.0)[1:]
    ((found,), _) = bind.bind(x)
    assert found.data_ptr() % 16 == 0
    assert torch.equal(found, x)
    assert len(copies) == 1


def test_a_conjugate_view_is_resolved_by_a_copy():
    z = torch.tensor([1 + 2j, 3 - 1j])
    bind, copies = counted(plain, z)
    ((found,), _) = bind.bind(z.conj())
    assert not found.is_conj()
    assert torch.equal(found, z.conj())
    assert len(copies) == 1


def test_a_copy_is_refused_where_the_model_writes_and_where_inputs_are_static():
    bind, copies = counted(plain, X)
    bind.mutated.add(0)
    with pytest.raises(InputMismatch, match=r'"x" has strides .*the model writes to it, so a copy'):
        bind.bind(torch.zeros(4, 3).t())
    static, _ = counted(plain, X, static=True)
    with pytest.raises(InputMismatch, match='with inputs="static" it cannot be copied'):
        static.bind(torch.zeros(4, 3).t())
    assert copies == []


def test_a_copy_is_refused_of_what_shares_memory_with_a_written_input():
    def fn(x, y):
        return x

    bind, copies = counted(fn, torch.zeros(3, 3), torch.zeros(3, 3))
    bind.mutated.add(0)
    x = torch.zeros(3, 3)
    with pytest.raises(InputMismatch, match=r'"y" has strides.*writes to "x", which shares'):
        bind.bind(x, x.t())
    assert torch.equal(bind.bind(x, torch.eye(3).t())[0][1], torch.eye(3))
    assert len(copies) == 1


def test_without_checks_sizes_are_read_and_only_what_else_tells_forms_apart_is_looked_at():
    bind = binder(plain, X, 7, settings={"check": False})
    x = torch.zeros(4, 9, dtype=torch.float64).t()
    assert bind.bind(x, 7) == bind.fits(x, 7) == ((x,), (9,))
    assert bind.fits(x, "anything") is None


def test_fits_is_bind_without_repair_and_without_errors():
    bind = binder(plain, X, 7)
    assert bind.fits(X, 7) == bind.bind(X, 7)
    for call in ((X.t(), 7), (X.double(), 7), (X, 8), (None, 7), (X[0], 7)):
        assert bind.fits(*call) is None
    assert bind.slow_calls == 0
