"""L1, on numbers: what code computes of unusual inputs and of sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

import piecewise_core as pw
from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level1_parts import ORDINARY
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import compile_on, rows

__all__ = ["Numbers"]

_COMPILE = "CompilerAdaptor.compile"
_ANYWHERE = "test_inputs_that_start_anywhere_are_as_eager"
_SIZES = "test_sizes_used_as_numbers_are_as_eager"


class Numbers(Conformance):
    """Strides of inputs, wide and special numbers, sizes that are computed with."""

    @conformance("L1", _COMPILE, relies_on=(*ORDINARY, _ANYWHERE))
    def test_inputs_that_lie_otherwise_are_as_eager(self, case: Case) -> None:
        """Inputs that are transposed, parts of others or expanded give the same result."""
        whole = rows(case, 24)
        given = {
            "as rows": whole[:8].contiguous(),
            "transposed": whole[:8].t(),
            "every third row": whole[::3],
            "columns of a wider tensor": whole.reshape(8, 24)[:, 5:13],
            "one row, expanded": whole[:1].expand(8, 8),
        }
        change = "read inputs by their strides and offset, which example_inputs have"
        for how, x in given.items():
            fast = compile_on(case, _row_sums)
            for one in (x, given["as rows"]):
                did = f"compiled x * 2 + x.sum(1, keepdim=True) for an input {how}"
                case.equal(fast(one), _row_sums(one), did, change)

    @conformance("L1", _COMPILE, relies_on=ORDINARY)
    def test_wide_numbers_stay_wide(self, case: Case) -> None:
        """Of float64 and of int64 all bits are computed."""
        change = "compute in the graph's dtype, or decline the piece with PieceDeclined"
        floats, whole = rows(case, 5), torch.arange(40).reshape(5, 8).to(case.device_type)
        for x in (_wide(floats), whole + 2**40):
            if x is not None:
                got, expected = compile_on(case, _wider)(x), _wider(x)
                near = expected.is_floating_point()
                loose = {"rtol": 1e-12, "atol": 1e-12} if near else {"rtol": 0, "atol": 0}
                did = f"compiled (x * 3 + x) - 1 for {x.dtype}, and compared to 12 digits"
                close = torch.allclose(got, expected, **loose)
                off = float((got - expected).abs().max())
                case.require(close, did, "eager's numbers", f"{off:.3g} from them", change)

    @conformance("L1", _COMPILE, relies_on=ORDINARY)
    def test_nan_and_infinity_are_as_eager_s(self, case: Case) -> None:
        """NaN and infinity come through as eager computes them: no number hides them."""
        x = rows(case, 5).clone()
        x[0, 0], x[1, 1], x[2, 2], x[3] = math.nan, math.inf, -math.inf, math.nan
        fast, expected = compile_on(case, _special), _special(x)
        change = "let the compiler keep to IEEE 754 (no fast math), or decline such operators"
        for got, wanted, what in zip(fast(x), expected, _SPECIAL, strict=True):
            case.equal(got, wanted, f"computed {what} of rows with nan, inf and -inf", change)

    @conformance("L1", _COMPILE, relies_on=ORDINARY)
    def test_sizes_used_as_numbers_are_as_eager(self, case: Case) -> None:
        """A size that is computed with is each call's: in products, ranges and shapes."""
        fast = compile_on(case, _counts_rows, bounds=(2, 32))
        change = "take each call's sizes from the inputs; keep none of an earlier call"
        for size in (7, 20, 3, 30):
            x = rows(case, size)
            for got, wanted in zip(fast(x), _counts_rows(x), strict=True):
                did = f"compiled x * n, x[n // 2 :], x.reshape(n * 8), called with {size} rows"
                case.equal(got, wanted, did, change)

    @conformance("L1", _COMPILE, relies_on=(*ORDINARY, _SIZES))
    def test_two_sizes_are_told_apart(self, case: Case) -> None:
        """Of two sizes that vary each is the one that it is, equal or not."""
        dims = {"x": {0: pw.Dim("n", 2, 32), 1: pw.Dim("m", 2, 32)}}
        fast = compile_on(case, _two_sizes, dynamic=dims)
        change = "the first inputs are the sizes of all dims, in the order of the placeholders"
        for n, m in ((3, 5), (5, 3), (7, 7), (4, 16)):
            x = rows(case, n * m)[:, 0].reshape(n, m).contiguous()
            did = f"compiled (x.t() * n).reshape(m, n) + m of two sizes, called with {n} x {m}"
            case.equal(fast(x), _two_sizes(x), did, change)

    @conformance("L1", _COMPILE, relies_on=ORDINARY)
    def test_results_of_any_rank_are_as_eager_s(self, case: Case) -> None:
        """Results without dims, with more than the input, and several keep shape and order."""
        _each_as_eager(
            case,
            _of_many_ranks,
            "x.sum(), x[None, :, None], x.sum(0, keepdim=True), x.amax()",
            "return one tensor per result of the graph, in its order, each in its shape",
        )


def _each_as_eager(
    case: Case, model: Callable[[Any], Sequence[Any]], written: str, change: str
) -> None:
    fast = compile_on(case, model)
    for size in (5, 20):
        x = rows(case, size)
        did = f"compiled {written}, and called it with {size} rows"
        try:
            found = fast(x)
        except pw.errors.OpContractBroken as error:
            case.require(False, did, "as eager", str(error), change)
        for got, wanted in zip(found, model(x), strict=True):
            case.equal(got, wanted, did, change)


def _wide(x: torch.Tensor) -> torch.Tensor | None:
    """``x`` in float64; None on a device that has none."""
    try:
        return x.to(torch.float64) / 3
    except (RuntimeError, TypeError):
        return None


def _row_sums(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + x.sum(1, keepdim=True)


def _wider(x: torch.Tensor) -> torch.Tensor:
    return (x * 3 + x) - 1


_SPECIAL = ("relu", "clamp(-1, 1)", "exp", "amax", "softmax")


def _special(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    soft = torch.softmax(x, -1)
    return x.relu(), x.clamp(-1, 1), x.exp(), x.amax(1), soft


def _counts_rows(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    n = x.shape[0]
    return x * n, x[n // 2 :] + 1, (x + 1).reshape(n * 8)


def _two_sizes(x: torch.Tensor) -> torch.Tensor:
    n, m = x.shape
    return (x.t() * n).reshape(m, n) + m


def _of_many_ranks(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x.sum(), (x * 2)[None, :, None], x.sum(0, keepdim=True), x.amax()
