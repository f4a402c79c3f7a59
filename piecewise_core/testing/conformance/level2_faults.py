"""L2, third part: captures that fail, and inputs that are staged and padded."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level2_memory import WEAK_READS
from piecewise_core.testing.conformance.level2_replay import (
    BASIC,
    CONTEXT,
    FRESH,
    GRAPHS,
    ORDERED,
    REPLAYER,
)
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import compile_on, rows
from piecewise_core.testing.conformance.verdicts import NotClaimed

__all__ = ["PADDED", "USABLE", "Faults"]

USABLE = "test_a_failed_capture_leaves_the_device_usable"
ZEROES = "test_a_stager_zeroes_what_it_does_not_reach"
STAGES = "test_a_stager_copies_every_input"
CALLED = "test_graphs_are_right_behind_before_replay"
PADDED = "test_padding_never_leaks"

_CALLS = (ZEROES, WEAK_READS, ORDERED, REPLAYER)
"""What a model's replayed call rests on."""

_ABORT = "GraphDriver.abort_capture"
_WAITS = "aten::nonzero"


class Faults(Conformance):
    """What goes wrong in captures, and what comes in with the inputs."""

    # Captures that fail ----------------------------------------------------------------

    @conformance("L2", "GraphDriver.is_capturing", claims=GRAPHS, relies_on=(BASIC,))
    def test_is_capturing_tells_a_capture(self, case: Case) -> None:
        """is_capturing is True between capture_begin and capture_end, and False elsewhere."""
        x, driver, told = rows(case, 4), case.driver, []
        graph = case.new_graph()
        told.append(driver.is_capturing())
        with case.ready():
            driver.capture_begin(graph, case.pool, case.stream)
            told.append(driver.is_capturing())
            x * 2
            driver.capture_end(graph)
            told.append(driver.is_capturing())
        case.require(
            told == [False, True, False],
            "asked before, in and behind a capture, on its stream",
            [False, True, False],
            told,
            "ask the device whether the current stream is recording",
        )

    @conformance("L2", _ABORT, claims=GRAPHS, relies_on=(BASIC, CONTEXT))
    def test_a_failed_capture_leaves_the_device_usable(self, case: Case) -> None:
        """Behind an error in a capture, the device computes and the next capture works."""
        x = rows(case, 4)

        def fails() -> None:
            x * 2
            raise ValueError("on purpose")

        with contextlib.suppress(ValueError):
            case.capture(fails)
        did = "raised in the middle of a capture and left it (abort_capture, else capture_end)"
        change = "leave capture mode whatever state the capture is in, and forget the graph"
        try:
            graph, out = case.capture(lambda: x + 1)
            case.replay(graph)
        except Exception as error:
            got = f"{type(error).__name__}: {error.__cause__ or error}"
            case.require(False, did, "another capture works", got, change)
        case.equal(out, x + 1, f"{did}; captured and replayed x + 1", change, exact=True)

    @conformance("L2", "GraphDriver.capture_begin", claims=GRAPHS, relies_on=(USABLE,))
    def test_a_capture_inside_a_capture_is_refused(self, case: Case) -> None:
        """capture_begin on a stream that is capturing raises."""
        outer, inner = case.new_graph(), case.new_graph()
        with case.ready():
            case.driver.capture_begin(outer, case.pool, case.stream)
            try:
                case.driver.capture_begin(inner, case.pool, case.stream)
            except Exception:
                refused = True
            else:
                refused = False
                case.leave(inner)
            try:
                case.driver.capture_end(outer)
            except Exception:
                case.leave(outer)
        case.require(
            refused,
            "called capture_begin for a second graph while the first was capturing",
            "an error",
            "no error",
            "raise before anything is touched if the stream is capturing",
        )

    @conformance("L2", _ABORT, claims=GRAPHS, relies_on=(USABLE,))
    def test_a_failed_capture_leaves_other_graphs(self, case: Case) -> None:
        """Graphs that were captured before a failure replay as before."""
        x = rows(case, 4)
        graph, out = case.capture(lambda: x + 1)

        def fails() -> None:
            x * 2
            raise ValueError("on purpose")

        with contextlib.suppress(ValueError):
            case.capture(fails)
        case.replay(graph)
        case.equal(
            out,
            x + 1,
            "captured x + 1, let another capture into the pool fail, replayed the first",
            "free what the failed capture holds and nothing else",
            exact=True,
        )

    @conformance(
        "L2",
        "GraphDriver.unsafe_ops",
        claims=("GraphDriver.unsafe_ops",),
        relies_on=(USABLE,),
    )
    def test_an_unsafe_operator_is_an_error_in_a_capture(self, case: Case) -> None:
        """An operator that unsafe_ops lists raises in a capture, at once or at its end."""
        _lists_nonzero(case)
        x = rows(case, 4)
        try:
            case.capture(lambda: x.nonzero())
        except Exception:
            return
        case.require(
            False,
            f"captured x.nonzero(), and {_WAITS} is among unsafe_ops",
            "an error from the operator, or from capture_end",
            "a graph",
            "let errors out of the capture; or take the operator off the list if it is safe",
        )

    @conformance(
        "L2",
        "GraphDriver.capture_end",
        claims=("GraphDriver.unsafe_ops",),
        relies_on=(USABLE, FRESH),
    )
    def test_a_spoiled_capture_gives_no_graph(self, case: Case) -> None:
        """A capture in which an operator failed raises at its end, or has lost nothing else."""
        _lists_nonzero(case)
        x = rows(case, 4)

        def swallows() -> torch.Tensor:
            with contextlib.suppress(Exception):
                x.nonzero()
            return x * 2 + 1

        try:
            graph, out = case.capture(swallows)
        except Exception:
            return
        x.copy_(rows(case, 4, start=1.0))
        case.replay(graph)
        case.equal(
            out,
            x * 2 + 1,
            "in a capture: swallowed the error of x.nonzero(), then computed x * 2 + 1; "
            "capture_end raised nothing; replayed",
            "raise in capture_end when the device says that the capture is invalid",
            exact=True,
        )

    @conformance("L2", "GraphDriver.unsafe_ops", claims=("GraphDriver.unsafe_ops",))
    def test_unsafe_operators_exist(self, case: Case) -> None:
        """Every name in unsafe_ops is that of an operator that torch knows."""
        unknown = [name for name in case.driver.unsafe_ops() if not _exists(name)]
        case.require(
            not unknown,
            "looked every name of unsafe_ops up in torch.ops",
            'names such as "aten::nonzero" or "aten::index.Tensor"',
            f"unknown: {', '.join(unknown)}",
            "correct the spelling; register operators of your own before they are listed",
        )

    @conformance("L2", "GraphDriver.explain", claims=("GraphDriver.explain",))
    def test_explain_takes_any_error(self, case: Case) -> None:
        """Asked to explain any error, its own or others', the driver gives a text or None."""
        errors = [KeyError("a"), RuntimeError(), ValueError("of a model"), OSError(5, "device")]
        wrapped = RuntimeError("wrapped")
        wrapped.__cause__ = errors[1]
        told = [case.driver.explain(error) for error in (*errors, wrapped)]
        case.require(
            all(text is None or isinstance(text, str) for text in told),
            "called explain() with errors that are not the driver's",
            "None or a text for each",
            told,
            "return None for errors that the driver knows nothing about",
        )

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
        buffers = [torch.empty_like(t) for t in tensors]
        _stage(case, buffers, tensors)
        for buffer, tensor in zip(buffers, tensors, strict=True):
            case.equal(
                buffer,
                tensor,
                f"staged {len(tensors)} tensors at once, this one of {tensor.dtype}",
                "copy each tensor to its buffer's beginning, element by element",
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
    """Call a model that mixes rows; core itself stops padding where it sees other results."""
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
        f"{replayed}: the others gave wrong results in graphs, and core ran them without",
        change,
    )


def _mixes_rows(x: torch.Tensor) -> torch.Tensor:
    return x + x.sum(0)


def _lists_nonzero(case: Case) -> None:
    if _WAITS not in set(case.driver.unsafe_ops()):
        raise NotClaimed(f"{_WAITS} is not among unsafe_ops")


def _exists(name: str) -> bool:
    namespace, _, rest = name.partition("::")
    op, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace, None), op, None)
    return packet is not None and (not overload or hasattr(packet, overload))


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
