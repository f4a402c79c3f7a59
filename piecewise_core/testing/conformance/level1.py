"""L1: what the compiler makes, and that every size is served by it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from piecewise_core.errors import OutOfRange
from piecewise_core.protocols import CompiledGraph
from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.fresh import ask_fresh
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import (
    BOUNDS,
    ENDS,
    EXACT,
    compile_on,
    dispatched,
    rows,
)

__all__ = ["RNG", "Level1"]

RNG = "test_the_generator_is_the_device_s"

_COMPILE = "CompilerAdaptor.compile"
_INSIDE = "test_sizes_inside_a_range_are_as_eager"
_SPLITTING = ("torch.softmax",)


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

    @conformance("L1", _COMPILE, relies_on=(_INSIDE,))
    def test_the_lower_end_of_a_range_is_as_eager(self, case: Case) -> None:
        """Compiled code holds for the smallest size of its range."""
        sizes = tuple(end + 1 for end in ENDS)
        _as_eager(case, sizes, "ranges are inclusive: hold for the lower end too")

    @conformance("L1", _COMPILE, relies_on=(_INSIDE,))
    def test_the_upper_end_of_a_range_is_as_eager(self, case: Case) -> None:
        """Compiled code holds for the largest size of its range."""
        sizes = (*ENDS, BOUNDS[1])
        _as_eager(case, sizes, "ranges are inclusive: hold for the upper end too")

    @conformance("L1", _COMPILE, relies_on=(_INSIDE,))
    def test_size_zero_is_as_eager(self, case: Case) -> None:
        """An empty batch is an ordinary size."""
        _as_eager(case, (0,), "do not launch empty grids; return empty tensors of the right shape")

    @conformance("L1", _COMPILE, relies_on=(_INSIDE,))
    def test_size_one_is_as_eager(self, case: Case) -> None:
        """One row is an ordinary size: no broadcasting, no dropped dim."""
        _as_eager(case, (1,), "do not treat a size of one as a dim to broadcast or to drop")

    @conformance("L1", _COMPILE, relies_on=(_INSIDE,))
    def test_an_exact_size_is_as_eager(self, case: Case) -> None:
        """Code compiled for one size, where sizes are plain ints, computes what eager does."""
        _as_eager(case, (EXACT,), "accept plain ints in place of SymInts among example_inputs")

    @conformance("L1", _COMPILE)
    def test_one_compilation_per_distinct_piece_and_range(self, case: Case) -> None:
        """Alike pieces share one artifact: the compiler is called once per form and range."""
        _, fast, counted = dispatched(case)
        made = len(counted.keys)
        wanted = fast.stats().unique_pieces * (len(ENDS) + 2)
        case.require(
            made == wanted == len(set(counted.keys)),
            "warmed up a model of three pieces, two of them alike, with three ranges and one size",
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

    @conformance("L1", _COMPILE, relies_on=(_INSIDE,))
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

    @conformance("L1", _COMPILE, relies_on=(_INSIDE,))
    def test_results_of_two_calls_share_no_memory(self, case: Case) -> None:
        """Each call of compiled code returns tensors of its own."""
        _, fast, _ = dispatched(case)
        first = fast(rows(case, 7))
        kept = first.clone()
        fast(rows(case, 7, start=1.0))
        case.equal(
            first,
            kept,
            "kept the result of one call and made another",
            "allocate results at every call, or let core capture graphs for static ones",
            exact=True,
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

    @conformance("L1", "Capabilities.alignment", relies_on=(_INSIDE,))
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

    @conformance("L1", _COMPILE, relies_on=(_INSIDE,))
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

    # What else a compiler tells ---------------------------------------------------------

    @conformance("L1", "CompilerAdaptor.hash_factors")
    def test_hash_factors_are_short_strings(self, case: Case) -> None:
        """hash_factors gives a mapping of strings to strings, none longer than a line."""
        factors = dict(case.compiler.hash_factors())
        wrong = {
            name: value
            for name, value in factors.items()
            if not (isinstance(name, str) and isinstance(value, str) and len(value) <= 4096)
        }
        case.require(
            not wrong,
            "called hash_factors()",
            "a mapping from str to str, each at most 4096 characters",
            wrong,
            "give versions, flags and instruction sets as text; hash what is long",
        )

    @conformance("L1", "CompilerAdaptor.hash_factors")
    def test_hash_factors_are_the_same_every_time(self, case: Case) -> None:
        """hash_factors says the same at every call, and in another process."""
        first = dict(case.compiler.hash_factors())
        others = [dict(case.subject.make().compiler.hash_factors())]
        if case.has("entry point"):
            others.append(ask_fresh(case.subject, "hash_factors", PYTHONHASHSEED="7").found)
        differs = [
            n for other in others for n in first.keys() | other if first.get(n) != other.get(n)
        ]
        case.require(
            not differs,
            "called hash_factors() again, and in a fresh interpreter if the platform is installed",
            "the same factors",
            f"other values of: {', '.join(map(str, differs))}",
            "leave out ids, times, paths and hash() of strings: caches would never hit",
        )

    @conformance(
        "L1", "CompilerAdaptor.load", claims=("CompilerAdaptor.load",), relies_on=(_INSIDE,)
    )
    def test_a_loaded_artifact_is_as_the_compiled_one(self, case: Case) -> None:
        """load() of what a handle gave computes what the compiled code did."""
        graph, fakes, context = _one_piece()
        x = rows(case, 6)
        with context:
            made = case.compiler.compile(graph, fakes, key="conformance", config=_config())
        case.require(
            made.handle is not None,
            "compiled one piece with a compiler that has load()",
            "a CompiledGraph with a handle: a callable that gives the artifact as bytes",
            made,
            "return CompiledGraph(run, handle), or leave load() out",
        )
        loaded = case.compiler.load(_bytes_of(made))
        expected = made.run(x)[0]
        case.equal(
            loaded.run(x)[0],
            expected,
            "loaded what the handle gave, and ran both",
            "put all that the artifact needs into the bytes",
        )

    # Streams and memory -----------------------------------------------------------------

    @conformance("L1", "DeviceRuntime.stream")
    def test_streams_nest_and_come_back(self, case: Case) -> None:
        """Inside stream(s) the current stream is s; outside it is what it was, after errors too."""
        device = case.device
        before, s, t = device.current_stream(), device.new_stream(), device.new_stream()
        said = []
        with device.stream(s):
            said.append(device.current_stream() == s)
            try:
                with device.stream(t):
                    said.append(device.current_stream() == t)
                    raise KeyError("on purpose")
            except KeyError:
                said.append(device.current_stream() == s)
        said.append(device.current_stream() == before)
        case.require(
            all(said),
            "entered stream(s), in it stream(t), left t by an error, then left s",
            "current_stream() is s, t, s, and then what it was before",
            f"right: {said}",
            "make stream() a context manager that restores in finally and swallows nothing",
        )

    @conformance("L1", "DeviceRuntime.memory_info", claims=("DeviceRuntime.memory_info",))
    def test_memory_info_is_free_and_total(self, case: Case) -> None:
        """memory_info gives (free, total) in bytes."""
        found = case.device.memory_info()
        case.require(
            isinstance(found, tuple)
            and len(found) == 2
            and all(isinstance(n, int) for n in found)
            and 0 <= found[0] <= found[1] > 0,
            "called memory_info()",
            "(free, total), two ints with 0 <= free <= total",
            found,
            "return (free, total) in bytes, in this order",
        )

    @conformance("L1", "DeviceRuntime.rng", claims=("DeviceRuntime.rng",))
    def test_the_generator_is_the_device_s(self, case: Case) -> None:
        """Seeding the generator of rng() fixes what operators draw on the device."""
        generator = case.device.rng()
        state = generator.get_state()
        generator.manual_seed(3)
        first = torch.rand(4, device=case.device_type)
        generator.manual_seed(3)
        second = torch.rand(4, device=case.device_type)
        generator.set_state(state)
        case.equal(
            second,
            first,
            f"seeded rng() and drew torch.rand(4, device={case.device_type!r}), twice",
            "return the device's default generator, which operators draw from",
            exact=True,
        )


def _as_eager(case: Case, sizes: tuple[int, ...], change: str) -> None:
    model, fast, _ = dispatched(case)
    for size in sizes:
        x = rows(case, size)
        did = f"called a compiled model with {size} rows; ranges [0, 4], [5, 8], [9, 32], size 6"
        expected = model(x)  # first: code that writes to its inputs has a test of its own
        case.equal(fast(x), expected, did, change)


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.relu() * 2 + 1


def _of_many_dtypes(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    whole = (x * 10).to(torch.int64)
    return whole + 1, whole.to(torch.int32) * 2, x.to(torch.float16) + 1, x > 0


def _bytes_of(made: CompiledGraph) -> Any:
    return made.handle() if callable(made.handle) else made.handle


def _config() -> Any:
    from piecewise_core.config import Config

    return Config()


def _one_piece() -> tuple[Any, list[Any], Any]:
    """A piece without sizes, its fake inputs, and the context that compilers look them up in."""
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(torch.mul, (x, 3)),))
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fake = mode.from_tensor(torch.zeros(6, 8), static_shapes=True)
    x.meta["example_value"] = fake
    module = torch.fx.GraphModule(nn.Module(), graph)
    return module, [fake], tracing(TracingContext(mode))
