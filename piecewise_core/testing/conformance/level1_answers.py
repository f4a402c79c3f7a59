"""L1, on compilers: that they compile, for every size asked for, and what lies where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.errors import OpContractBroken
from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level1 import INSIDE
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import compile_on, dispatched, rows

__all__ = ["Answers"]

_COMPILE = "CompilerAdaptor.compile"
COMPILED = "test_ordinary_pieces_are_compiled"


class Answers(Conformance):
    """What core puts right by itself, and a user would only find slow."""

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_ordinary_pieces_are_compiled(self, case: Case) -> None:
        """No piece of linear layers, relu and a product is declined."""
        _, _, counted = dispatched(case)
        declined = counted.declined
        case.require(
            not declined,
            "compiled three pieces of linear, relu and mul, for three ranges and one size",
            "code for each",
            f"{len(declined)} of {len(counted.keys)} declined: {'; '.join(sorted(set(declined)))}",
            "decline only what the compiler cannot do; a platform without one runs as written",
        )

    @conformance("L1", _COMPILE, relies_on=(INSIDE, COMPILED))
    def test_code_for_a_range_serves_the_range(self, case: Case) -> None:
        """Code that was asked for over a range of sizes is used at each of them."""
        _, fast, _ = dispatched(case)
        regions = fast.explain().regions
        code = [c for region in regions for piece in region.pieces for c in piece.code]
        notes = dict.fromkeys(f"{c.sizes}: {c.note}" for c in code if c.note)
        case.require(
            not fast.stats().declined,
            "compiled pieces for the ranges [0, 4], [5, 8], [9, 32] and for size 6",
            "code for every size of each",
            "; ".join(notes),
            "keep sizes symbolic: no int() or bool() of a SymInt, no guard, no narrower serves",
        )

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_transposed_results_lie_as_eager_s(self, case: Case) -> None:
        """A result that the graph transposes has the strides of a transposed tensor."""
        _lies_as_eager(case, _transposed, "(x * 2).t()")

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_chunked_results_lie_as_eager_s(self, case: Case) -> None:
        """Results that are parts of one tensor have the strides of parts."""
        _lies_as_eager(case, _chunked, "(x + 1).chunk(2, -1)")

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_expanded_results_lie_as_eager_s(self, case: Case) -> None:
        """A result that the graph expands has stride 0 there."""
        _lies_as_eager(case, _expanded, "x.sum(1, keepdim=True).expand(-1, 8)")


def _transposed(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).t()


def _chunked(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (x + 1).chunk(2, -1)


def _expanded(x: torch.Tensor) -> torch.Tensor:
    return x.sum(1, keepdim=True).expand(-1, 8)


def _lies_as_eager(case: Case, model: Callable[..., Any], written: str) -> None:
    """Compile ``model`` alone; core has nothing to put right in what its code returns."""
    fast, x = compile_on(case, model), rows(case, 5)
    did = f"compiled {written}, and called it with 5 rows of 8"
    change = "return each result with the strides that the graph gives (core promises them on)"
    expected = model(x)
    try:
        got = fast(x)
    except OpContractBroken as error:
        case.require(False, did, _strides(expected), str(error), change)
    moved = fast.stats().relaid
    case.require(
        not moved, did, _strides(expected), f"others: {moved} copied by core to lie so", change
    )
    for one, other in zip(_all(got), _all(expected), strict=True):
        case.equal(one, other, did, change)


def _all(found: Any) -> tuple[torch.Tensor, ...]:
    return (found,) if isinstance(found, torch.Tensor) else tuple(found)


def _strides(found: Any) -> str:
    return f"strides {', '.join(str(t.stride()) for t in _all(found))}"
