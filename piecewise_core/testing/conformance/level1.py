"""L1: what the compiler makes, and that every size is served by it."""

from __future__ import annotations

import torch
from torch import nn

from piecewise_core.errors import OutOfRange
from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import (
    BOUNDS,
    ENDS,
    EXACT,
    compile_on,
    dispatched,
    rows,
)

__all__ = ["INSIDE", "Level1"]

_COMPILE = "CompilerAdaptor.compile"
INSIDE = "test_sizes_inside_a_range_are_as_eager"


class _Writes(nn.Module):
    """Adds to a buffer that the caller sees, and to its input."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(x.sum(0))
        return x * 2


class Level1(Conformance):
    """Compile and dispatch: as eager at every size, nothing compiled twice."""

    # Sizes ---------------------------------------------------------------------------

    @conformance("L1", _COMPILE)
    def test_sizes_inside_a_range_are_as_eager(self, case: Case) -> None:
        """Compiled code computes what eager does, at sizes in the middle of every range."""
        _as_eager(case, (2, 7, 20), "hold for every size in the value range of the symbols")

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_the_lower_end_of_a_range_is_as_eager(self, case: Case) -> None:
        """Compiled code holds for the smallest size of its range."""
        sizes = tuple(end + 1 for end in ENDS)
        _as_eager(case, sizes, "ranges are inclusive: hold for the lower end too")

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_the_upper_end_of_a_range_is_as_eager(self, case: Case) -> None:
        """Compiled code holds for the largest size of its range."""
        sizes = (*ENDS, BOUNDS[1])
        _as_eager(case, sizes, "ranges are inclusive: hold for the upper end too")

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_size_zero_is_as_eager(self, case: Case) -> None:
        """An empty batch is an ordinary size."""
        _as_eager(case, (0,), "do not launch empty grids; return empty tensors of the right shape")

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_size_one_is_as_eager(self, case: Case) -> None:
        """One row is an ordinary size: no broadcasting, no dropped dim."""
        _as_eager(case, (1,), "do not treat a size of one as a dim to broadcast or to drop")

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_an_exact_size_is_as_eager(self, case: Case) -> None:
        """Code compiled for one size, where sizes are plain ints, computes what eager does."""
        _as_eager(case, (EXACT,), "accept plain ints in place of SymInts among example_inputs")

    @conformance("L1", _COMPILE)
    def test_one_compilation_per_distinct_piece_and_range(self, case: Case) -> None:
        """Alike pieces share one artifact: the compiler is called once per form and range."""
        _, fast, counted = dispatched(case)
        made = len(counted.keys)
        own = getattr(getattr(case.platform, "of", case.platform), "piecewise_backend", None)
        # A class that dispatches by itself may ask for the general graph, so that is there, too.
        general = own is not None and not hasattr(own, "runnable")
        wanted = fast.stats().unique_pieces * (len(ENDS) + 2 + general)
        case.require(
            made == wanted == len(set(counted.keys)),
            "warmed up a model of three pieces, two of them alike, with three ranges and one size"
            + (", and the general graph" if general else ""),
            f"{wanted} calls of compile, each with its own key",
            f"{made} calls with {len(set(counted.keys))} keys",
            "leave sharing to core: a piecewise_backend must ask its owner to compile",
        )

    @conformance("L1", _COMPILE)
    def test_a_size_out_of_bounds_is_refused(self, case: Case) -> None:
        """Sizes above and below the bounds raise OutOfRange where that is what was asked for."""
        fast = compile_on(case, _double, bounds=(2, 8))
        said = {}
        for size in (1, 9):
            try:
                fast(rows(case, size))
                said[size] = "a result"
            except OutOfRange as error:
                said[size] = str(error)
        fast(rows(case, 2))
        case.require(
            all("outside" in text for text in said.values()),
            'called a model for sizes [2, 8] with 1 and 9 rows, out_of_range="error"',
            "OutOfRange naming the bounds, both times",
            said,
            "leave the sizes' check to core: a piecewise_backend must not catch its errors",
        )

    @conformance("L1", _COMPILE)
    def test_a_size_above_the_bounds_runs_the_general_graph(self, case: Case) -> None:
        """With out_of_range="general", larger sizes are served by code without an upper bound."""
        fast = compile_on(case, _double, bounds=(2, 8), out_of_range="general")
        x = rows(case, 40)
        change = "take the bounds from the symbols' value ranges; the general graph has none above"
        expected = _double(x)
        case.equal(fast(x), expected, "called a model for sizes [2, 8] with 40 rows", change)

    @conformance("L1", _COMPILE)
    def test_a_size_above_the_bounds_runs_eagerly(self, case: Case) -> None:
        """With out_of_range="eager", larger sizes run as written, on the device."""
        fast = compile_on(case, _double, bounds=(2, 8), out_of_range="eager")
        x = rows(case, 40)
        change = "torch's own operators must work on the device"
        expected = _double(x)
        case.equal(fast(x), expected, "called a model for sizes [2, 8] with 40 rows", change)

    # What compiled code does with memory -----------------------------------------------

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_inputs_are_left_as_they_are(self, case: Case) -> None:
        """Compiled code writes to no input that the piece does not write to."""
        model, fast, _ = dispatched(case)
        x = rows(case, 7)
        before = [t.clone() for t in (x, *model.parameters())]
        fast(x)
        case.device.synchronize()
        changed = [
            place
            for place, (old, now) in enumerate(zip(before, (x, *model.parameters()), strict=True))
            if not torch.equal(old, now)
        ]
        case.require(
            not changed,
            "called a model and compared its input and parameters with copies from before",
            "all as before",
            f"changed: {['the input' if p == 0 else f'parameter {p - 1}' for p in changed]}",
            "do not reuse the memory of inputs for results",
        )

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_results_of_two_calls_share_no_memory(self, case: Case) -> None:
        """Each call of compiled code returns tensors of its own."""
        _, fast, _ = dispatched(case)
        found = [fast(rows(case, 7, start=float(call))) for call in range(10)]
        kept = [result.clone() for result in found]
        found += [fast(rows(case, 7, start=20.0 + call)) for call in range(10)]
        for first, wanted in zip(found, kept, strict=False):
            case.equal(
                first,
                wanted,
                "kept the results of ten calls and made ten others",
                "allocate results at every call, or let core capture graphs for static ones",
                exact=True,
            )
        case.require(
            len({result.data_ptr() for result in found}) == len(found),
            "kept the results of twenty calls",
            "twenty tensors in memory of their own",
            "some of them lie in one memory",
            "allocate results at every call; take none from a ring of buffers",
        )

    @conformance("L1", _COMPILE)
    def test_writes_in_place_are_seen(self, case: Case) -> None:
        """What a piece writes to a buffer is in that buffer afterwards, once per call."""
        model = _Writes().to(case.device_type)
        fast = compile_on(case, model)
        x, y = rows(case, 3), rows(case, 5, start=2.0)
        expected = x.sum(0) + y.sum(0)
        fast(x)
        fast(y)
        case.equal(
            model.seen,
            expected,
            "called a model that adds the sum of its rows to a buffer, twice",
            "write to the tensor that is passed in, not to a copy of it",
        )

    @conformance("L1", "Capabilities.alignment", relies_on=(INSIDE,))
    def test_inputs_that_start_anywhere_are_as_eager(self, case: Case) -> None:
        """An input whose memory starts at an odd place gives the same result."""
        fast = compile_on(case, _double)
        fast(rows(case, 4))
        memory = rows(case, 9).flatten()
        x = memory[1 : 1 + 4 * 8].view(4, 8)
        change = "declare Capabilities(alignment=n), n the bytes that compiled code wants"
        did = f"passed a tensor that starts {x.element_size()} bytes into its storage"
        expected = _double(x)
        case.equal(fast(x), expected, did, change)

    @conformance("L1", _COMPILE, relies_on=(INSIDE,))
    def test_dtypes_are_as_eager_s(self, case: Case) -> None:
        """Results have the dtypes that eager gives: whole numbers, half floats, booleans."""
        fast = compile_on(case, _of_many_dtypes)
        x = rows(case, 5)
        expected = _of_many_dtypes(x)
        for got, wanted in zip(fast(x), expected, strict=True):
            case.equal(
                got,
                wanted,
                f"compiled a model with a result of {wanted.dtype}",
                "compute and return each result in the dtype of the graph",
            )


def _as_eager(case: Case, sizes: tuple[int, ...], change: str) -> None:
    model, fast, _ = dispatched(case)
    for size in sizes:
        x = rows(case, size)
        did = f"called a compiled model with {size} rows; ranges [0, 4], [5, 8], [9, 32], size 6"
        expected, again = model(x), x.clone()  # code that writes to its inputs has its own test
        case.equal(fast(x), expected, did, change)
        # Behind a target's first call its code may have weights built in.
        case.equal(fast(again), expected, f"{did}, a second time", change)


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.relu() * 2 + 1


def _of_many_dtypes(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    whole = (x * 10).to(torch.int64)
    return whole + 1, whole.to(torch.int32) * 2, x.to(torch.float16) + 1, x > 0
