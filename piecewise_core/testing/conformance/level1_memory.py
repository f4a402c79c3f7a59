"""L1, on memory: whose memory results are, what is read anew, what is written where."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from piecewise_core.errors import OpContractBroken
from piecewise_core.plugins.traces import noted_changes
from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level1_parts import ORDINARY
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import Layered, compile_on, rows

__all__ = ["Ownership"]

_COMPILE = "CompilerAdaptor.compile"
_WRITES = "test_writes_in_place_are_seen"
_LIE = "test_inputs_that_lie_otherwise_are_as_eager"
_SOURCES = "copying as the graph does: share no memory, and part none, where the graph does not"


class Ownership(Conformance):
    """Who owns which memory, weights included, and what compiling leaves of the process."""

    @conformance("L1", _COMPILE, relies_on=ORDINARY)
    def test_results_are_no_input_and_no_other_result(self, case: Case) -> None:
        """A result that the graph computes has memory of its own, equal to something or not."""
        fast, x = compile_on(case, _own), rows(case, 5)
        for _ in range(2):  # the first call may be looked at by core, and the second is not
            kept, expected = x.clone(), [t.clone() for t in _own(x)]
            found = fast(x)
            for place, result in enumerate(found):
                result.fill_(7.0)
                others = (x, *found[place + 1 :])
                for got, wanted in zip(others, (kept, *expected[place + 1 :]), strict=True):
                    did = "compiled x * 1, x * 2, x + x, wrote into one result, looked at others"
                    case.equal(got, wanted, did, f"allocate each result, {_SOURCES}", exact=True)

    @conformance("L1", _COMPILE, relies_on=(*ORDINARY, _WRITES))
    def test_results_that_view_an_input_view_it(self, case: Case) -> None:
        """A result that the graph makes a view of an input lies in that input's memory."""
        fast, x = compile_on(case, _views), rows(case, 5)
        for _ in range(2):
            did = "compiled x.view(-1), x * 2, wrote into the first result, and looked at x"
            try:
                found = fast(x)[0]
            except OpContractBroken as error:
                case.require(False, did, "a view of x", str(error), _SOURCES)
            found[0] = 9.0
            wanted = torch.cat((found[:1], x.flatten()[1:])).reshape(x.shape)
            case.equal(x, wanted, did, f"return views where the graph does, {_SOURCES}", exact=True)

    @conformance("L1", _COMPILE, relies_on=(*ORDINARY, _WRITES, _LIE))
    def test_writes_through_views_are_seen(self, case: Case) -> None:
        """What a piece writes through a view of an input is in that input, however it lies."""
        for how in ("as rows", "transposed"):
            fast, x = compile_on(case, _writes_columns), rows(case, 8)
            x = x.t() if how == "transposed" else x
            y = x.clone()
            fast(x)
            _writes_columns(y)
            did = f"called a model that does x[:, 2:5].add_(1), x {how}"
            case.equal(x, y, did, "write to the memory that is passed in, by its strides")

    @conformance("L1", _COMPILE, relies_on=ORDINARY)
    def test_weights_are_read_anew(self, case: Case) -> None:
        """A weight that was changed, in any way, is what the next call computes with."""
        model = Layered().to(case.device_type).eval()
        fast, x = compile_on(case, model, splitting_ops=("torch.softmax",)), rows(case, 7)
        fast(x), fast(x)
        layer = model.layers[0]
        for how, change in _CHANGES.items():
            change(layer)
            for call in ("the next call", "the one behind it", "the third"):
                did = f"changed a weight by {how}, then looked at {call}"
                advice = "read weights at every call: keep no copy, packed or not, by address"
                case.equal(fast(x), model(x), did, advice)

    @conformance("L1", _COMPILE, relies_on=ORDINARY)
    def test_compiling_leaves_the_process_as_it_was(self, case: Case) -> None:
        """Compiling changes no setting of torch's or of the process, nor the random numbers."""
        x = rows(case, 5)
        compile_on(case, _own)(x)  # brings in what the compiler imports
        fast, state = compile_on(case, _views), torch.get_rng_state()
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        try:  # as nobody sets them, so that setting them once and for all is seen
            torch.set_num_threads(threads + 2)
            torch.set_float32_matmul_precision("medium" if precision == "high" else "high")
            with noted_changes() as changed:
                fast(x)
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
        changed = [name for name in changed if name not in _OF_LIBRARIES]
        changed += [] if torch.equal(state, torch.get_rng_state()) else ["torch's random state"]
        case.require(
            not changed,
            "compiled a small model and called it",
            "torch's settings, signal handlers, streams and random numbers as before",
            f"changed: {', '.join(changed)}",
            "put back what compile needs otherwise, in finally",
        )

    @conformance("L1", _COMPILE, relies_on=ORDINARY)
    def test_two_models_run_in_two_threads(self, case: Case) -> None:
        """Two models' code runs at one time: a compiler keeps no memory that both use."""
        models = [Layered().to(case.device_type).eval() for _ in range(2)]
        fast = [compile_on(case, model, splitting_ops=("torch.softmax",)) for model in models]
        given = [rows(case, 7), rows(case, 7, start=1.0)]
        wanted = [model(x) for model, x in zip(models, given, strict=True)]
        for run, x in zip(fast, given, strict=True):
            run(x), run(x)
        found: list[tuple[int, Any]] = []
        begin = threading.Barrier(2)

        @torch.inference_mode()
        def serve(place: int) -> None:
            begin.wait()
            for _ in range(30):
                try:
                    found.append((place, fast[place](given[place])))
                except Exception as error:
                    found.append((place, error))

        threads = [threading.Thread(target=serve, args=(place,)) for place in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        did = "served two models at one time, each in a thread of its own, 30 calls each"
        change = "give each CompiledGraph buffers and requests of its own, or take a lock"
        for place, result in found:
            case.require(isinstance(result, torch.Tensor), did, "results", repr(result), change)
            case.equal(result, wanted[place], did, change)


_OF_LIBRARIES = {"os.environ", "sys.path", "the warnings filters", "threads", "the root logger"}
"""Changed by the import of what a compiler needs for the first time, too."""


def _own(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x * 1, x * 2, x + x


def _views(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x.view(-1), x * 2


def _writes_columns(x: torch.Tensor) -> torch.Tensor:
    x[:, 2:5].add_(1)
    return x * 2


def _in_place(layer: Any) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def _by_data(layer: Any) -> None:
    layer.weight.data.add_(1)


def _replaced(layer: Any) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() * 3, requires_grad=False)


_CHANGES = {"mul_": _in_place, ".data": _by_data, "another Parameter": _replaced}
