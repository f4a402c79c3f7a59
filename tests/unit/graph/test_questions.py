"""What the names in traced code say of questions that Dynamo answers without a guard."""

import inspect
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import piecewise_core as pw
from piecewise_core.graph.questions import IDENTITY, words


def wrapped(forward):
    """As layers of transformers wrap their forward, so that the outermost may checkpoint."""

    def outermost(self, *args, **kwargs):
        if self.training and type(self).forward is outermost:
            return partial(forward, self)(*args, **kwargs)
        return forward(self, *args, **kwargs)

    return outermost


def around_a_method(weight):
    class Holder:
        def weight(self, x):
            return x is weight  # the argument, not the method

    return Holder.weight


def around_a_function(held):
    def inner(x):
        return x is held

    return inner


@pytest.mark.parametrize(
    "fn",
    [lambda x: x.contiguous() is x, around_a_method(3), around_a_function(3)],
    ids=["of a copy", "in a method named alike", "in a function"],
)
def test_values_that_code_holds_may_be_tensors(fn):
    assert IDENTITY in words([fn.__code__])


def test_inspect_compares_callables():
    compares = [f.__code__ for f in vars(inspect).values() if inspect.isfunction(f)]
    assert IDENTITY not in words(compares)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code objects have no qualified names")
def test_a_layer_that_asks_whether_it_is_the_outermost_is_traced_once():
    class Layer(nn.Module):
        forward = wrapped(lambda self, x: torch.relu(x @ x.mT) + x.shape[0])

    assert IDENTITY not in words([Layer.forward.__code__])
    model = Layer().eval()
    rows = pw.Dim("rows", 1, 64)
    fast = pw.compile(model, pw.Config(dynamic={0: {0: rows}}, compiler="eager"))
    counters.clear()
    with torch.inference_mode():
        for size in (8, 1, 64):
            x = torch.randn(size, 4)
            torch.testing.assert_close(fast(x), model(x), rtol=0, atol=0)
    assert counters["stats"]["unique_graphs"] == 1
    assert fast.stats().graphs == 1
