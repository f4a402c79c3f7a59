"""How a callable takes its arguments, and what they are called."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import ConfigError, InputMismatch
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.signatures import names_of, signature_of

ROWS = pw.Dim("rows", 0, 64)
X = torch.ones(3, 4)


def passing(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


def plain(x, flag=None, *, scale=1.0):
    return x


decorated = passing(plain)


class Holder:
    def method(self, x, flag=None):
        return x

    decorated = passing(method)

    @classmethod
    def of_class(cls, x):
        return x

    def __call__(self, x, flag=None):
        return x


def lying(x, flag=None):
    return x


lying.__signature__ = inspect.Signature()


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (plain, "(x, flag=None, *, scale=1.0)"),
        (decorated, "(*args, **kwargs)"),
        (Holder().method, "(x, flag=None)"),
        (Holder().decorated, "(*args, **kwargs)"),
        (Holder.of_class, "(x)"),
        (Holder(), "(x, flag=None)"),
        (lying, "(x, flag=None)"),
        (functools.partial(plain, flag=2), "(x, *, flag=2, scale=1.0)"),
        (functools.partial(Holder().method, X), "(flag=None)"),
        (functools.partial(decorated, flag=2), "(*args, **kwargs)"),
        (functools.partial(torch.nn.ReLU()), "(*args, **kwargs)"),
        (torch.add, "(*args, **kwargs)"),
    ],
    ids=range(12),
)
def test_the_signature_is_that_of_the_code_which_takes_the_arguments_first(fn, text):
    assert str(signature_of(fn)) == text


def structure(fn, *args, dynamic=None, **kwargs):
    return describe_call(fn, args, kwargs, pw.Config(dynamic=dynamic or {"x": {0: ROWS}}))


@pytest.mark.parametrize(
    "fn",
    [decorated, Holder().decorated, functools.partial(plain)],
    ids=["function", "method", "partial"],
)
@pytest.mark.parametrize(("args", "kwargs"), [((X,), {}), ((), {"x": X}), ((X, None), {})])
@pytest.mark.parametrize("key", ["x", 0])
def test_an_argument_has_the_name_of_the_function_inside_however_it_is_passed(
    fn, args, kwargs, key
):
    found = structure(fn, *args, dynamic={key: {0: ROWS}}, **kwargs)
    assert [(leaf.path, list(leaf.dims)) for leaf in found.tensors] == [("x", [0])]


def test_more_arguments_than_the_function_inside_names_have_the_decorators_own_names():
    @passing
    def inner(x, *rest, y, **more):
        return x

    found = structure(inner, X, X, X, y=X, z=X)
    assert [leaf.path for leaf in found.tensors] == ["x", "rest.0", "rest.1", "y", "more.z"]

    found = structure(decorated, X, None, X, other=X)
    assert [leaf.path for leaf in found.tensors] == ["x", "args.2", "kwargs.other"]


def test_a_decorator_that_takes_what_it_names_alike_confuses_no_paths():
    @functools.wraps(plain)
    def wrapper(first, *, x):
        return plain(first + x)

    found = structure(wrapper, X, x=X)
    assert len({leaf.path for leaf in found.tensors}) == 2


def test_an_optional_tensor_of_the_function_inside_may_be_left_out_of_a_call():
    dynamic = {"x": {0: ROWS}, "flag": {0: ROWS}}
    assert len(structure(decorated, X, dynamic=dynamic).tensors) == 1
    assert len(structure(decorated, X, flag=X, dynamic=dynamic).tensors) == 2
    assert len(structure(decorated, X, dynamic={"x": {0: ROWS}, "scale": {0: ROWS}}).tensors) == 1
    with pytest.raises(ConfigError, match=r"names '.*scala'"):
        structure(decorated, X, dynamic={"x": {0: ROWS}, "scala": {0: ROWS}})


def test_a_call_that_fits_neither_signature_is_refused_by_the_one_that_is_seen():
    with pytest.raises(InputMismatch, match=r"required argument: 'x'; the signature is \(x,"):
        structure(decorated, y=X)


def test_names_say_where_python_does_not_know_them():
    names = names_of(torch.ops.aten.add)
    assert [names.positional(0), names.keyword("alpha")] == ["args.0", "kwargs.alpha"]
