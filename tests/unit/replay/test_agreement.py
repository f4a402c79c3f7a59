"""What counts as the same result, and what as rows that padding has changed."""

from __future__ import annotations

import pytest
import torch

from piecewise_core.replay.agreement import agree, difference, multiplies_in_fewer_bits

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
)
def test_rounding_is_no_difference_and_one_row_more_in_a_mean_is(dtype):
    torch.manual_seed(0)  # with a largest element far out, all of them are off by too much
    x = torch.randn(64, 8, dtype=torch.complex64 if dtype.is_complex else torch.float64).to(dtype)
    rounding = torch.finfo(dtype.to_real()).eps * x.abs().max()
    assert agree([x], [x + rounding.to(dtype)])
    assert not agree([x * (7 / 8)], [x])


def test_whole_numbers_and_truth_values_are_equal_in_every_element():
    x = torch.arange(1000)
    assert agree([x], [x])
    assert not agree([torch.where(x == 3, 0, x)], [x])
    assert not agree([torch.tensor(3)], [torch.tensor(4)])
    assert not agree([x > 500], [x >= 500])


def test_an_error_in_all_elements_counts_more_than_one_of_the_same_size_in_a_single_one():
    x = torch.randn(1000)
    one = x.clone()
    one[0] += 1e-4
    assert agree([one], [x])
    assert not agree([x + 1e-4], [x])
    assert "result 0: float32 of shape (1000,) apart by up to 0.0001" in str(
        difference([x + 1e-4], [x])
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_of_one_sign_and_of_any_size_are_compared_alike(dtype, sign):
    largest = torch.finfo(dtype).max
    for size in (1.0, largest / 4):
        x = (torch.linspace(0.5, 1.0, 512, dtype=torch.float64) * sign * size).to(dtype)
        assert agree([x * (1 - 2 * torch.finfo(dtype).eps)], [x])
        assert not agree([x * 1.25], [x])
        assert not agree([x * 0.75], [x])


def test_what_is_not_finite_must_lie_in_the_same_places():
    x = torch.tensor([1.0, NAN, INF, -INF])
    assert agree([x], [x])
    assert not agree([torch.nan_to_num(x)], [x])
    assert not agree([x], [torch.tensor([1.0, 2.0, INF, -INF])])


def test_shapes_numbers_and_nothing_are_compared_too():
    assert agree([None, 3, torch.ones(0)], [None, 3, torch.ones(0)])
    assert not agree([3], [4])
    assert not agree([torch.ones(2)], [torch.ones(1)])


def test_eight_bit_floats_are_compared():
    x = torch.tensor([1.0, 2.0, 4.0]).to(torch.float8_e4m3fn)
    assert agree([x], [x])
    assert not agree([x], [torch.tensor([1.0, 2.0, 8.0]).to(torch.float8_e4m3fn)])


@pytest.mark.parametrize("value", ["tf32", "ieee"])
def test_a_precision_that_was_set_for_one_backend_is_no_error(value):
    matmul = torch.backends.cuda.matmul
    if not hasattr(torch._C, "_get_fp32_precision_getter"):
        pytest.skip("this torch has one setting for all backends")
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = value
        assert multiplies_in_fewer_bits() == (value == "tf32")
    finally:
        matmul.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"
    assert not multiplies_in_fewer_bits()
