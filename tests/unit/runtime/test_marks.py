"""Sums of tensors tell whether they were written to."""

from __future__ import annotations

import pytest
import torch

from piecewise_core.runtime.marks import Marks

DTYPES = [
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn),
    *(torch.int64, torch.int8, torch.bool, torch.complex64),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_that_is_written_to_is_named(dtype):
    first, second = torch.ones(4, 3).to(dtype), torch.ones(4, 3).to(dtype)
    marks = Marks([first, second, torch.empty(0)])
    assert marks.changed() is None
    second[1, 1] = 0
    assert marks.changed() is second


def test_what_is_not_finite_is_compared_too():
    tensor = torch.tensor([float("nan"), 1.0, float("inf")])
    marks = Marks([tensor])
    assert marks.changed() is None
    tensor[0] = 0
    assert marks.changed() is tensor
