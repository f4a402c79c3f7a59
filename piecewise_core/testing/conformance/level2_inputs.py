"""L2, last part: streams that fork, inputs that are staged and padded."""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level2_faults import USABLE
from piecewise_core.testing.conformance.level2_memory import WEAK_READS
from piecewise_core.testing.conformance.level2_replay import FRESH, GRAPHS, ORDERED, REPLAYER
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import compile_on, rows
from piecewise_core.testing.conformance.verdicts import NotClaimed

__all__ = ["PADDED", "Inputs", "captured"]

ZEROES = "test_a_stager_zeroes_what_it_does_not_reach"
STAGES = "test_a_stager_copies_every_input"
CALLED = "test_graphs_are_right_behind_before_replay"
PADDED = "test_padding_never_leaks"

_CALLS = (ZEROES, WEAK_READS, ORDERED, REPLAYER)
"""What a model's replayed call rests on."""


class Inputs(Conformance):
    """What comes into graphs: from other streams, and from a call."""

    # Streams ---------------------------------------------------------------------------

    @conformance("L2", "GraphDriver.capture_end", claims=GRAPHS, relies_on=(FRESH,))
    def test_streams_that_are_forked_and_joined_are_in_the_graph(self, case: Case) -> None:
        """Work on a stream that forks from the capture and joins it again is replayed."""
        x, side = rows(case, 4), _forking(case)

        def run() -> torch.Tensor:
            side.wait_stream(case.stream)
            with case.device.stream(side):
                y = x * 2
            case.stream.wait_stream(side)
            return y + 1

        graph, out = case.capture(run)
        x.copy_(rows(case, 4, start=2.0))
        case.replay(graph)
        case.equal(
            out,
            x * 2 + 1,
            "in a capture: forked a second stream, computed x * 2 there, joined it, added 1",
            "record the work of every stream that forks from the capturing one",
            exact=True,
        )

    @conformance("L2", "GraphDriver.capture_end", claims=GRAPHS, relies_on=(USABLE, FRESH))
    def test_a_stream_that_is_not_joined_is_an_error(self, case: Case) -> None:
        """Work on a forked stream that does not join again is replayed, or is an error."""
        x, side = rows(case, 4), _forking(case)

        def run() -> torch.Tensor:
            side.wait_stream(case.stream)
            with case.device.stream(side):
                return x * 2

        try:
            graph, out = case.capture(run)
        except Exception:
            return
        x.copy_(rows(case, 4, start=2.0))
        case.replay(graph)
        case.equal(
            out,
            x * 2,
            "in a capture: forked a second stream, computed x * 2 there, never joined it; "
            "capture_end raised nothing; replayed",
            "raise in capture_end for streams that were not joined",
            exact=True,
        )

    # Inputs ----------------------------------------------------------------------------

    @conformance("L2", "GraphDriver.stager", claims=("GraphDriver.stager",))
    def test_a_stager_copies_every_input(self, case: Case) -> None:
        """A stager copies one tensor into each buffer, of whatever dtypes, all in one call."""
        tensors = _inputs(case, 5)
        tensors += [*(t[1:] for t in tensors), tensors[0].t()]
        # Filled with what no tensor holds: fresh memory may hold the numbers of the run before.
        buffers = [torch.empty_like(t).copy_(t == 0) for t in tensors]
        _stage(case, buffers, tensors)
        for buffer, tensor in zip(buffers, tensors, strict=True):
            case.equal(
                buffer,
                tensor,
                f"staged {len(tensors)} tensors at once, this one of {tensor.dtype}, strides "
                f"{tensor.stride()}, from element {tensor.storage_offset()} of its memory on",
                "copy each tensor, from where it starts, to its buffer's beginning, in the order "
                "in which both lie in memory",
                exact=True,
            )

    @conformance("L2", "GraphDriver.stager", claims=("GraphDriver.stager",), relies_on=(STAGES,))
    def test_a_stager_zeroes_what_it_does_not_reach(self, case: Case) -> None:
        """What of a buffer lies behind a shorter tensor is zero, whatever was there before."""
        tensors = _inputs(case, 3)
        buffers = [torch.ones_like(t) for t in _inputs(case, 8)]
        _stage(case, buffers, tensors)
        for buffer, tensor in zip(buffers, tensors, strict=True):
            expected = torch.zeros_like(buffer)
            expected[:3] = tensor
            case.equal(
                buffer,
                expected,
                f"filled a buffer of 8 rows with ones and staged 3 rows of {tensor.dtype}",
                "zero the buffer behind the tensor's last element",
                exact=True,
            )

    @conformance(
        "L2",
        "GraphDriver.before_replay",
        claims=("GraphDriver.before_replay",),
        relies_on=_CALLS,
    )
    def test_graphs_are_right_behind_before_replay(self, case: Case) -> None:
        """before_replay makes a graph right for each call, padded or not, in any order."""
        _calls_are_right(
            case,
            (8, 3, 3, 4, 7, 8),
            "core called before_replay(graph, call) for each graph before each call",
            "set all that the call's sizes decide, and keep nothing of the call before",
        )

    @conformance(
        "L2",
        "GraphDriver.stager",
        claims=GRAPHS,
        relies_on=(*_CALLS, CALLED),
    )
    def test_padding_never_leaks(self, case: Case) -> None:
        """A call that is padded to a captured size gives what it gives alone."""
        _calls_are_right(
            case,
            (8, 3, 8, 5, 1, 2),
            "smaller calls padded",
            "fill the rows behind a call's own with zeros before every replay",
        )


def captured(case: Case, sizes: tuple[int, ...]) -> Any:
    """``x + x.sum(0)`` for 1 to 8 rows, captured at ``sizes``, smaller calls padded."""
    fast = compile_on(
        case,
        _mixes_rows,
        bounds=(1, 8),
        capture_sizes=sizes,
        padding="capture_sizes",
        compiler="eager",
        check="off",  # core must not find out by itself
    )
    report = fast.warmup(rows(case, 2), progress=False)
    case.require(
        len(report.captured) == len(sizes),
        f"warmed up x + x.sum(0) with capture sizes {sizes}",
        "graphs for each of them",
        f"captured {report.captured}; {'; '.join(report.dropped)}",
        "capture what the tests before this one captured, in core's order of calls",
    )
    return fast


def _calls_are_right(case: Case, sizes: tuple[int, ...], how: str, change: str) -> None:
    """Call a model that mixes rows, and does not say so."""
    fast = captured(case, sizes=(4, 8))
    did = f"called x + x.sum(0), captured for 4 and 8 rows, with {sizes} rows; {how}"
    for size in sizes:
        x = rows(case, size, start=2.0 * size)
        expected = _mixes_rows(x)
        case.equal(fast(x), expected, f"{did}; this is the call with {size}", change)
    replayed = fast.stats().calls["replayed"]
    case.require(
        replayed == len(sizes),
        did,
        f"{len(sizes)} replays",
        f"{replayed}",
        change,
    )


@torch.library.custom_op("piecewise_kit::all_rows", mutates_args=(), tags=(torch.Tag.pointwise,))
def _all_rows(x: torch.Tensor) -> torch.Tensor:
    """``x + x.sum(0)``. By its tag, which is not true, core takes its rows to be alone: it is here
    to show what lies in rows of padding.
    """
    return x + x.sum(0)


_all_rows.register_fake(torch.empty_like)


def _mixes_rows(x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _all_rows(x)
    return found


def _forking(case: Case) -> Any:
    side = case.device.new_stream()
    if not hasattr(side, "wait_stream"):
        raise NotClaimed("streams have no wait_stream, by which one would fork and join")
    return side


def _inputs(case: Case, size: int) -> list[torch.Tensor]:
    x = rows(case, size, start=1.0)
    return [x, (x * 100).to(torch.int64), x.to(torch.float16), x[:, 0].contiguous() > 0]


def _stage(case: Case, buffers: list[torch.Tensor], tensors: list[torch.Tensor]) -> None:
    stage = case.driver.stager(buffers)
    if stage is None:
        raise NotClaimed("stager gives None for buffers of this device")
    stage(tensors)
    case.device.synchronize()
