"""Padded calls give what the calls give, through both front ends."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

B, S = pw.Dim("b", 1, 8), pw.Dim("s", 1, 8)


def door(front, fn, **config):
    settings = {
        "dynamic": {"x": {0: B}},
        "capture_sizes": (4, 8),
        "padding": "capture_sizes",
        "compiler": "eager",
    }
    return front(fn, pw.Config(**{**settings, **config}), platform=SimulatedPlatform())


def same(fast, fn, sizes, make=lambda size: torch.randn(size, 6)):
    for size in sizes:
        x = make(size)
        torch.testing.assert_close(fast(x.clone()), fn(x))


FRONTS = pytest.mark.parametrize("front", [pw.compile, pw.record])

MIXED = {
    "one scale": lambda x: (x / x.abs().amax()).round(),
    "a bool": lambda x: x > x.mean(0),
    "an int": lambda x: x.argsort(0),
    "a size": lambda x: x * (x.shape[0] // 4 + 1),
    "the last row": lambda x: x + x[-1:],
    "a normalised batch": lambda x: F.batch_norm(x, None, None, training=True),
    "a product of rows": lambda x: x @ (x.T @ x),
    "every row to every other": lambda x: torch.cdist(x, x).amin(1),
}


@FRONTS
@pytest.mark.parametrize("name", MIXED)
def test_rows_that_see_each_other_are_served_without_padding(front, name, caplog):
    fn = MIXED[name]
    fast = door(front, fn)
    same(fast, fn, (5, 5, 3, 8, 7), lambda size: torch.zeros(size, 6) + torch.arange(6.0))
    same(fast, fn, (5, 3, 2))
    assert fast.stats().padded_rows == 0
    assert caplog.text.count("cannot be padded: aten::") == 1
    assert "test_padding.py:" in caplog.text


ALONE = {
    "element by element": lambda x: x.sin() * 2 > 0,
    "attention of each example": lambda x: F.scaled_dot_product_attention(
        *[x.unflatten(-1, (2, 3))] * 3
    ),
    "whole numbers": lambda x: x.argmax(-1),
    "a running sum": lambda x: x.cumsum(0),
    "places": lambda x: x + torch.arange(x.shape[0]).unsqueeze(1),
}


@FRONTS
@pytest.mark.parametrize("name", ALONE)
def test_rows_that_are_alone_are_padded(front, name):
    fn = ALONE[name]
    fast = door(front, fn)
    same(fast, fn, (5, 5, 3, 8, 7, 5, 3))
    assert fast.stats().padded_rows > 0
    assert fast.stats().calls["replayed"] >= 3


def test_explain_says_why_a_dim_is_not_padded():
    fast = door(pw.compile, MIXED["one scale"])
    fast(torch.randn(5, 6))
    (why,) = fast.explain(verbose=True).unpadded
    assert why.startswith('region 0: dim "b" cannot be padded: aten::amax at ')
    assert f"not padded: {why}" in str(fast.explain(verbose=True))
    joined = door(pw.compile, lambda x: torch.cat([x, x]))
    joined(torch.randn(5, 6))
    assert "a dim of a result is computed" in joined.explain(verbose=True).unpadded[0]


def test_a_model_that_is_traced_anew_is_judged_anew():
    class Switching(torch.nn.Module):
        def forward(self, x):
            return x - x.mean(0) if self.training else x * 2

    model = Switching().eval()
    fast = door(pw.compile, model)
    same(fast, model, (5, 3))
    assert fast.stats().padded_rows > 0
    before = fast.stats().padded_rows
    model.train()
    same(fast, model, (5, 5, 3))
    fast.restore()  # graphs of the other mode went
    same(fast, model, (5, 3))
    assert fast.stats().padded_rows == before
    model.eval()
    same(fast, model, (5, 3))
    fast.restore()
    same(fast, model, (5, 3))
    assert fast.stats().padded_rows > before


@FRONTS
def test_of_two_dims_the_one_whose_rows_are_alone_is_padded(front):
    def fn(x):
        return F.scaled_dot_product_attention(x, x, x) + x.mean(1, keepdim=True)

    fast = door(front, fn, dynamic={"x": {0: B, 1: S}}, capture_sizes=((4, 4), (8, 8)))
    for sizes in ((3, 4), (3, 4), (3, 3), (4, 3), (4, 4), (7, 8), (2, 4), (3, 4)):
        x = torch.randn(*sizes, 4)
        torch.testing.assert_close(fast(x), fn(x))
    stats = fast.stats()
    assert stats.padded_rows > 0
    assert stats.padded_rows % 4 == 0  # whole examples
    assert stats.calls["replayed"] >= 3


@FRONTS
def test_an_operator_nobody_knows_is_not_padded_and_one_that_says_it_is_alone_is(front, caplog):
    @torch.library.custom_op("pwpadding::unknown", mutates_args=())
    def unknown(x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)

    @torch.library.custom_op("pwpadding::known", mutates_args=(), tags=(torch.Tag.pointwise,))
    def known(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    for op in (unknown, known):
        op.register_fake(torch.empty_like)
        fast = door(front, lambda x, op=op: op(x.sin()) + 1, splitting_ops=(op._qualname,))
        same(fast, lambda x, op=op: op(x.sin()) + 1, (3, 3, 7, 3))
        assert (fast.stats().padded_rows > 0) is (op is known)
    assert "pwpadding::unknown" in caplog.text


@FRONTS
def test_an_operator_that_lies_is_found_by_large_values_in_rows_of_padding(front, caplog):
    @torch.library.custom_op("pwpadding::lies", mutates_args=(), tags=(torch.Tag.pointwise,))
    def lies(x: torch.Tensor) -> torch.Tensor:
        return x + x.sum(0)  # of zeros nobody notices

    lies.register_fake(torch.empty_like)
    fast = door(front, lambda x: lies(x) * 2)
    same(fast, lambda x: lies(x) * 2, (3, 3, 7, 3))
    assert fast.stats().padded_rows == 0
    assert "gave other results than without padding" in caplog.text


def test_what_one_captured_size_finds_out_holds_at_the_others():
    @torch.library.custom_op("pwpadding::large", mutates_args=(), tags=(torch.Tag.pointwise,))
    def large(x: torch.Tensor) -> torch.Tensor:
        return x + x.sum(0) if x.shape[0] > 4 else x * 2

    large.register_fake(torch.empty_like)
    fast = door(pw.compile, lambda x: large(x) * 2)
    same(fast, lambda x: large(x) * 2, (3, 3, 3))
    padded = fast.stats().padded_rows
    assert padded > 0  # at 4 nothing is wrong, and nothing is compared any more
    same(fast, lambda x: large(x) * 2, (7, 3, 2))
    assert fast.stats().padded_rows == padded


def test_a_program_that_changes_with_its_size_is_not_padded_when_recorded(caplog):
    def fn(x):
        return x.sin() if x.shape[0] > 3 else x.cos()

    fast = door(pw.record, fn, capture_sizes=(8,))
    same(fast, fn, (5, 3, 5, 3, 5))
    assert fast.stats().calls["replayed"] == 2
    assert "runs other operators at other sizes" in caplog.text


@FRONTS
@pytest.mark.parametrize("inference", [True, False])
def test_the_first_padded_call_gives_tensors_of_the_callers_mode(front, inference):
    fast = door(front, lambda x: {"y": x * 2, "x": x})
    with torch.inference_mode(inference), torch.no_grad():
        for _ in range(2):
            x = torch.randn(3, 6)
            out = fast(x)
            assert out["x"] is x
            assert out["y"].is_inference() is False or inference


@pytest.mark.parametrize("make", [pw.compile, pw.record])
@pytest.mark.parametrize("factor", [1, 1.5, 2, None])
def test_no_call_is_padded_by_more_than_the_factor(make, factor):
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", min=1, max=64)}},
        compiler="eager",
        capture_sizes=(8, 64),
        padding="capture_sizes",
        max_padding_factor=factor,
    )
    fast = make(lambda x: torch.relu(x) + 1, config, SimulatedPlatform())
    with torch.inference_mode():
        fast(torch.randn(8, 2))
        fast.warmup()
        fast.seal()
        for rows in range(1, 65):
            before, x = fast.stats(), torch.randn(rows, 2)
            torch.testing.assert_close(fast(x), torch.relu(x) + 1)
            captured = 8 if rows <= 8 else 64
            padded = factor is None or captured <= factor * rows
            after = fast.stats()
            if rows == captured or not padded:
                assert after.padded_rows == before.padded_rows
                assert (after.calls["replayed"] > before.calls["replayed"]) is (rows == captured)
            elif make is pw.compile:
                assert after.padded_rows == before.padded_rows + captured - rows


def test_sizes_that_are_no_multiples_are_padded_whatever_the_factor():
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", min=8, max=64, multiple_of=8)}},
        compiler="eager",
        capture_sizes=(16, 64),
        padding="capture_sizes",
        max_padding_factor=1,
    )
    fast = pw.compile(lambda x: torch.relu(x), config, SimulatedPlatform())
    with torch.inference_mode():
        for rows in (16, 11, 24, 33):
            x = torch.randn(rows, 2)
            torch.testing.assert_close(fast(x), torch.relu(x))
    assert fast.stats().padded_rows == 5 + 31


@FRONTS
def test_a_call_that_tries_whether_it_may_be_padded_draws_once(front):
    def fn(x):
        return x + torch.randn(x.shape[0], 1), torch.rand(2)

    fast = door(front, fn)
    for size in (4, 3, 3, 5):
        x = torch.randn(size, 6)
        torch.manual_seed(size)
        expected, state = fn(x), torch.get_rng_state()
        torch.manual_seed(size)
        torch.testing.assert_close(fast(x), expected)
        assert torch.equal(torch.get_rng_state(), state)


@FRONTS
def test_nested_tensors_are_served_without_padding(front):
    def fn(x):
        parts = torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 1, x.shape[0]]))
        return parts.mean(1), parts.sum(-1).to_padded_tensor(0.0)

    fast = door(front, fn)
    same(fast, fn, (4, 3, 3, 5))
    assert fast.stats().padded_rows == 0


FAIL_ON_ZEROS = {
    "an index": (lambda x: F.embedding(x - 1, torch.arange(60.0).view(20, 3)), "out of bounds by"),
    "a divisor": (lambda x: 100 // x, "rows of padding fail: "),
}


@FRONTS
@pytest.mark.parametrize("name", FAIL_ON_ZEROS)
def test_rows_of_zeros_that_fail_are_served_without_padding(front, name, caplog):
    fn, why = FAIL_ON_ZEROS[name]
    fast = door(front, fn, capture_sizes=(8,))
    same(fast, fn, (8, 5, 5, 8, 3), lambda size: torch.arange(size) + 1)
    assert fast.stats().padded_rows == 0
    assert why in caplog.text
