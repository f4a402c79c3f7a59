"""Errors say in fields what their messages say in words."""

from __future__ import annotations

import pickle

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import OutOfRange, SizeBranch


def compiled(fn, dim=None, **config):
    dynamic = {0: {0: dim or pw.Dim("rows", 2, 8)}}
    return pw.compile(fn, pw.Config(dynamic=dynamic, compiler="eager", **config), "cpu")


def travelled(error):
    """``error`` as another process gets it."""
    found = pickle.loads(pickle.dumps(error))
    assert str(found) == str(error)
    return found


@pytest.mark.parametrize("call", ["compile", "record", "bisect"])
def test_a_size_out_of_bounds_is_in_the_error(call):
    if call == "record":
        config = pw.Config(dynamic={0: {0: pw.Dim("rows", 2, 8)}}, capture_sizes=(4,))
        fast = pw.record(torch.sin, config, "cpu")
    else:
        fast = compiled(torch.sin)
    with pytest.raises(OutOfRange) as caught:
        (fast.bisect if call == "bisect" else fast)(torch.ones(9))
    error = travelled(caught.value)
    assert (error.dim, error.size, error.bounds, error.sizes) == ("rows", 9, (2, 8), (9,))


def test_a_size_that_is_no_multiple_is_in_the_error():
    with pytest.raises(OutOfRange) as caught:
        compiled(torch.sin, pw.Dim("rows", 2, 8, multiple_of=2))(torch.ones(5))
    assert (caught.value.dim, caught.value.size) == ("rows", 5)


def test_a_branch_on_a_size_names_dim_and_endpoints():
    def model(x):
        return x + 1 if x.shape[0] > 3 else x * 2

    with pytest.raises(SizeBranch) as caught:
        compiled(model, regions="declared")(torch.ones(5))
    error = travelled(caught.value)
    assert (error.dim, error.bounds, error.endpoints) == ("rows", (2, 8), (3,))
