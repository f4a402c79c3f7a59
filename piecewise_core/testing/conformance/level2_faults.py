"""L2, seventh part: captures that fail, and the device behind them."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import torch

from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level2_extras import CONTEXT
from piecewise_core.testing.conformance.level2_replay import BASIC, FRESH, GRAPHS
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import rows
from piecewise_core.testing.conformance.verdicts import NotClaimed

__all__ = ["USABLE", "Faults"]

USABLE = "test_a_failed_capture_leaves_the_device_usable"

_ABORT = "GraphDriver.abort_capture"
_WAITS = "aten::nonzero"


class Faults(Conformance):
    """What goes wrong in captures, and what is left then."""

    # Captures that fail ----------------------------------------------------------------

    @conformance("L2", "GraphDriver.is_capturing", claims=GRAPHS, relies_on=(BASIC,))
    def test_is_capturing_tells_a_capture(self, case: Case) -> None:
        """is_capturing is True between capture_begin and capture_end, and False elsewhere."""
        x, driver, answers = rows(case, 4), case.driver, []
        graph = case.new_graph()
        answers.append(driver.is_capturing())
        with case.ready():
            driver.capture_begin(graph, case.pool, case.stream)
            answers.append(driver.is_capturing())
            with ThreadPoolExecutor(1) as threads:
                answers.append(threads.submit(_captures_here, case).result())
            x * 2
            driver.capture_end(graph)
            answers.append(driver.is_capturing())
        case.require(
            answers == [False, True, False, False],
            "asked before, in and behind a capture, on its stream; in it on another thread's too",
            "[False, True, in another thread False, False]",
            answers,
            "ask the device whether the current stream of this thread is recording",
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
        answers = [case.driver.explain(error) for error in (*errors, wrapped)]
        case.require(
            all(text is None or isinstance(text, str) for text in answers),
            "called explain() with errors that are not the driver's",
            "None or a text for each",
            answers,
            "return None for errors that the driver knows nothing about",
        )


def _captures_here(case: Case) -> bool:
    """What is_capturing says in this thread; False where all threads have one stream."""
    if case.device.current_stream() == case.stream:
        return False
    return bool(case.driver.is_capturing())


def _lists_nonzero(case: Case) -> None:
    if _WAITS not in set(case.driver.unsafe_ops()):
        raise NotClaimed(f"{_WAITS} is not among unsafe_ops")


def _exists(name: str) -> bool:
    namespace, _, rest = name.partition("::")
    op, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace, None), op, None)
    return packet is not None and (not overload or hasattr(packet, overload))
