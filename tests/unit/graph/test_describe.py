"""From one example call to the structure that later calls must have."""

from __future__ import annotations

import enum
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import ConfigError, InputMismatch
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.structure import Constant, Container, TensorLeaf, is_plain, leaves

ROWS = pw.Dim("rows", 0, 64)
X = torch.zeros(3, 4)


class Colour(enum.Enum):
    RED = 1


def described(fn, *args, dynamic=None, **kwargs):
    config = pw.Config(dynamic={"x": {0: ROWS}} if dynamic is None else dynamic)
    return describe_call(fn, args, kwargs, config)


def test_tensors_are_numbered_in_the_order_of_the_signature_not_of_the_call():
    def fn(x, y, *, z):
        return x

    structure = described(fn, y=torch.ones(2), z=torch.ones(1), x=X)
    assert [t.path for t in structure.tensors] == ["x", "y", "z"]
    assert [t.index for t in structure.tensors] == [0, 1, 2]


def test_defaults_and_star_arguments_are_part_of_the_structure():
    def fn(x, k=2, *rest, flag=True, **more):
        return x

    structure = described(fn, X)
    assert structure.arguments["k"] == Constant("k", 2, by_identity=False)
    assert structure.arguments["rest"] == Container("rest", tuple, (), ())
    assert structure.arguments["more"] == Container("more", dict, (), ())
    assert structure.arguments["flag"].value is True


def test_nested_containers_give_paths_with_dots():
    def fn(x):
        return x

    pair = namedtuple("pair", ["left", "right"])
    value = {"a": [X, (X, None)], "b": pair(X, 1), "c": OrderedDict(d=X)}
    structure = described(fn, value, dynamic={"x.a.1.0": {0: ROWS}})
    paths = [t.path for t in structure.tensors]
    assert paths == ["x.a.0", "x.a.1.0", "x.b.0", "x.c.d"]
    assert structure.where(ROWS) == [(structure.tensors[1], 0)]
    kinds = [type(leaf) for leaf in leaves(structure.arguments["x"])]
    assert kinds.count(TensorLeaf) == 4
    assert kinds.count(Constant) == 2


def test_objects_are_constants_by_identity_and_plain_values_by_value():
    def fn(x, value):
        return x

    for plain in (1, True, "a", b"a", 1.5, None, Colour.RED, torch.float16, torch.Size((1,)), ...):
        assert is_plain(plain)
        assert described(fn, X, plain).arguments["value"].by_identity is False
    for held in (SimpleNamespace(), {1, 2}, lambda: None, slice(X, None)):
        assert described(fn, X, held).arguments["value"].by_identity is True


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda: torch.zeros(2, 3, 4), (0, 1, 2)),
        (lambda: torch.zeros(4, 3, 2).permute(2, 1, 0), (2, 1, 0)),
        (lambda: torch.zeros(2, 3, 4).transpose(0, 1), (1, 0, 2)),
        (lambda: torch.zeros(2, 3, 8)[..., ::2], (0, 1, 2)),
        (lambda: torch.zeros(1, 1, 4).expand(2, 3, 4), (0, 1, 2)),
        (lambda: torch.zeros(()), ()),
    ],
)
def test_the_layout_is_the_order_of_dims_in_memory_if_the_example_is_dense(make, order):
    (leaf,) = described(lambda x: x, make(), dynamic={}).tensors
    assert leaf.order == order
    assert leaf.is_contiguous is (order == tuple(range(len(order))))


def test_an_int_in_dynamic_is_a_place_and_counts_into_star_args():
    def fn(x, *rest):
        return x

    structure = described(fn, X, X, X, dynamic={0: {0: ROWS}, 2: {1: ROWS}})
    assert structure.where(ROWS) == [(structure.tensors[0], 0), (structure.tensors[2], 1)]


def test_a_name_that_is_no_parameter_is_found_among_the_keywords():
    def fn(x, **more):
        return x

    structure = described(fn, X, mask=X, dynamic={"mask": {0: ROWS}})
    assert [t.path for t, _ in structure.where(ROWS)] == ["more.mask"]


def test_a_negative_dim_counts_from_the_end_and_one_tensor_may_carry_a_dim_twice():
    structure = described(lambda x: x, torch.zeros(3, 3), dynamic={"x": {0: ROWS, -1: ROWS}})
    assert [i for _, i in structure.where(ROWS)] == [0, 1]


def test_an_optional_tensor_in_dynamic_may_be_left_out():
    def fn(x, mask=None):
        return x

    structure = described(fn, X, dynamic={"x": {0: ROWS}, "mask": {0: ROWS}})
    assert [t.path for t, _ in structure.where(ROWS)] == ["x"]


@pytest.mark.parametrize(
    ("dynamic", "said"),
    [
        ({"y": {0: ROWS}}, 'no such tensor argument; its tensors are "x"'),
        ({"x": {2: ROWS}}, 'names dim 2 ("rows"), and the tensor has 2 dims, shape (3, 4)'),
        ({5: {0: ROWS}}, "names argument 5, and the signature has 2"),
        ({"x": {0: ROWS}, 0: {1: ROWS}}, 'names "x" twice, by name and by place'),
        ({"mask": {0: ROWS}}, 'dim "rows" of Config.dynamic is in none of the tensors'),
    ],
)
def test_a_dynamic_that_does_not_fit_the_call_is_refused_naming_it(dynamic, said):
    def fn(x, mask=None):
        return x

    with pytest.raises(ConfigError) as caught:
        described(fn, X, dynamic=dynamic)
    assert said in str(caught.value)


def test_arguments_that_do_not_fit_the_signature_are_refused_with_the_signature():
    with pytest.raises(InputMismatch, match=r"too many positional arguments; the signature is \(x"):
        described(lambda x: x, X, X)


def test_a_callable_without_a_signature_takes_anything():
    structure = described(dict.fromkeys, X, dynamic={0: {0: ROWS}})
    assert len(structure.tensors) == 1


def test_sparse_tensors_and_subclasses_are_refused_naming_the_argument():
    class Mine(torch.Tensor):
        pass

    with pytest.raises(InputMismatch, match=r'argument "x" is a torch.sparse_coo tensor'):
        described(lambda x: x, X.to_sparse())
    with pytest.raises(InputMismatch, match=r'argument "x" is a Mine; tensor subclasses'):
        described(lambda x: x, X.as_subclass(Mine))


def test_parameters_are_tensors():
    structure = described(lambda x: x, torch.nn.Parameter(X))
    assert len(structure.tensors) == 1
