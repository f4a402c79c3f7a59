"""Whether a traced graph is, at given sizes, what its operations do there."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.graph.concrete import NotRun, disagreement
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.trace import trace


def traced(fn, low=2):
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", low, 16)}}, compiler="eager")
    structure = describe_call(fn, (torch.randn(3, 8),), {}, config)
    return trace(fn, structure, config, config.bounds, lambda tensor: 0)


def test_operations_that_do_the_same_agree():
    found = traced(lambda x: torch.softmax(x @ torch.ones(8, 4), -1).view(x.shape[0], 2, 2) * 2)
    assert [disagreement(found, (size,)) for size in (0, 1, 2, 9)] == [None] * 4


def test_the_first_that_does_something_else_is_named_with_its_place():
    found = disagreement(traced(lambda x: (x + 1).squeeze(0) * 2), (1,))
    assert found is not None
    assert "torch.Tensor.squeeze" in found
    assert f"{__file__}:" in found


def test_strides_of_single_elements_say_nothing():
    assert disagreement(traced(lambda x: x[:, :1].t() + 1), (1,)) is None


def test_shared_memory_counts_where_it_is_written_to():
    def reads(x):
        return x.clone().t().reshape(-1) + 1

    def writes(x):
        y = x.clone()
        y.t().reshape(-1).add_(1)
        return y

    assert disagreement(traced(writes), (1,)) is not None
    assert disagreement(traced(reads), (1,)) is None


def test_autocast_is_left_where_a_run_breaks_off():
    def model(x):
        with torch.autocast("cpu", torch.bfloat16):
            return (x @ torch.ones(8, 8)).squeeze(0)

    assert disagreement(traced(model), (1,)) is not None
    assert not torch.is_autocast_enabled("cpu")


def test_what_changes_torch_s_state_is_not_run():
    with pytest.raises(NotRun):
        disagreement(traced(lambda x: torch.vmap(lambda row: row * 2)(x)), (1,))
