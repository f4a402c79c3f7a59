"""What a platform supplies and what core hands it: the vendor contract.

Core owns all control flow; a vendor supplies primitives. Methods marked *optional* have a
correct default in core and may be left out. ``import piecewise_core.protocols`` imports no
torch, so a plugin module may import it freely.

The smallest platform is a compiler and nothing else::

    class AcmePlatform:
        device = AcmeRuntime()          # DeviceRuntime
        graphs = None                   # no static graphs
        compiler = AcmeCompiler()       # CompilerAdaptor
        capabilities = Capabilities()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import runtime_checkable

if TYPE_CHECKING:
    import torch

    from piecewise_core.config import Config

__all__ = [
    "API_VERSION",
    "AbstractPiecewiseBackend",
    "BudgetContext",
    "Capabilities",
    "CompiledGraph",
    "CompilerAdaptor",
    "DeviceRuntime",
    "GraphDriver",
    "Platform",
    "PlatformInfo",
    "Probe",
    "ReplayCall",
]

API_VERSION = (1, 0)
"""(major, minor) of these Protocols. Core serves plugins of its major and of no newer minor."""


@dataclass(frozen=True)
class Probe:
    """Whether a platform can work on this machine, found without initialising its device.

    ``available``: usable now. ``reason``: one sentence for `piecewise doctor`, in either case.
    ``facts``: short name -> value pairs worth showing (driver version, instruction set).
    """

    available: bool
    reason: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Capabilities:
    """What a platform declares about itself; core reads every field.

    ``alignment``: bytes at which compiled code expects the data of tensor inputs to start; an
    input that starts elsewhere is copied and counted as restrided. 1 accepts any address.
    """

    alignment: int = 1


@dataclass(frozen=True)
class BudgetContext:
    """What is about to be captured: asked before warm-up captures anything.

    ``graphs_per_size``: static graphs that one size needs. ``sizes``: the capture sizes, largest
    first. ``captured``: graphs that exist already.
    """

    graphs_per_size: int
    sizes: tuple[tuple[int, ...], ...]
    captured: int


@dataclass(frozen=True)
class ReplayCall:
    """One call that graphs are about to be replayed for.

    ``captured``: the sizes that the graphs were captured for. ``sizes``: the call's own, smaller
    where it is padded. ``inputs``: its tensors, in the order of its signature; borrowed.
    """

    captured: tuple[int, ...]
    sizes: tuple[int, ...]
    inputs: Sequence[torch.Tensor]


@dataclass(frozen=True)
class PlatformInfo:
    """One platform as its plugin announces it; cheap, holds no device.

    ``name``: unique, lower case. ``device_type``: torch's device type ("cpu", "cuda").
    ``api_version``: the API_VERSION it was written for. ``probe``: must not raise and must not
    initialise a device. ``create``: imports the device stack and returns the Platform; called
    once, only for the platform that was selected.
    """

    name: str
    device_type: str
    api_version: tuple[int, int]
    probe: Callable[[], Probe]
    create: Callable[[], Platform]


@dataclass(frozen=True)
class CompiledGraph:
    """What a compiler returns for one piece.

    ``run``: takes the piece's inputs positionally and returns its outputs as a tuple or list.
    ``handle``: opaque, what the compiler can later be asked to load again; None when it cannot.
    """

    run: Callable[..., Sequence[Any]]
    handle: Any = None


@runtime_checkable
class CompilerAdaptor(Protocol):
    """Turns one piece into a callable. Called from one thread at a time, never inside a capture.

    A complete adaptor::

        class Eager:
            name = "eager"

            def compile(self, graph, example_inputs, *, key, config):
                return CompiledGraph(graph.forward)

            def hash_factors(self):
                return {}
    """

    name: str

    def compile(
        self,
        graph: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        key: str,
        config: Config,
    ) -> CompiledGraph:
        """Compile ``graph``; core gives it up (it may be changed freely).

        ``example_inputs``: one per placeholder, in order: fake tensors, and SymInt or int for
        sizes. Their symbols' value ranges are the range to compile for; compiled code must hold
        for every size in it. ``key``: names piece and range, unique per distinct artifact. The
        call runs under ``torch.inference_mode()``. Raise anything on failure: core adds the
        piece and range.
        """
        ...

    def hash_factors(self) -> Mapping[str, str]:
        """Whatever else changes the artifact: versions, flags, instruction set. Short strings."""
        ...

    # optional: load(handle) -> CompiledGraph; configure(options) -> None;
    # passes() -> Iterable[Callable[[torch.fx.GraphModule], None]]


@runtime_checkable
class DeviceRuntime(Protocol):
    """Streams and memory of one device type. The methods below the comment are optional."""

    def current_stream(self) -> Any:
        """The stream that work issued by this thread goes to."""
        ...

    def new_stream(self) -> Any:
        """A fresh stream, for warm-up and capture."""
        ...

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        """A context in which ``stream`` is current."""
        ...

    def synchronize(self) -> None:
        """Return when all work issued to the device is done."""
        ...

    # optional: memory_info() -> (free, total) bytes; memory_stats() -> Mapping[str, int];
    # empty_cache() -> None; rng() -> torch.Generator


class GraphDriver(Protocol):
    """Static graphs: capture once, replay with one call.

    Calls come from one thread at a time. One size's graphs are captured one after the other on
    one stream into one pool. The methods below the comment are optional.
    """

    def new_pool(self) -> Any:
        """An opaque memory-pool handle; outlives every graph captured into it."""
        ...

    def new_graph(self) -> Any:
        """An empty graph object."""
        ...

    def capture_begin(self, graph: Any, pool: Any, stream: Any) -> None:
        """Start recording what ``stream``, which is current, is given into ``graph``.

        Memory allocated until ``capture_end`` comes from ``pool``. Must neither synchronise nor
        empty caches: it is called once per piece and size.
        """
        ...

    def capture_end(self, graph: Any) -> None:
        """Stop recording and make ``graph`` replayable."""
        ...

    def replay(self, graph: Any) -> None:
        """Run the graph on the current stream; returns without waiting."""
        ...

    def reset(self, graph: Any) -> None:
        """Free what the graph holds, its share of the pool too; twice is once."""
        ...

    def is_capturing(self) -> bool:
        """Whether the current stream is recording."""
        ...

    # Optional, each with what core does without it:
    #
    # replayer(graph) -> Callable[[], None]: the cheapest callable that replays ``graph``.
    #     Without: functools.partial(driver.replay, graph).
    # weak_ref(tensor) -> torch.Tensor: a tensor over the same memory that does not keep it alive;
    #     the tensor itself where no pool owns that memory.
    #     Without: the tensor itself, so that a pool cannot reuse memory between sizes.
    # register_generator(graph, generator) -> None: before capture_begin; replays then advance
    #     ``generator``. Without: operators that draw random numbers must be splitting ops.
    # resource_budget(ctx: BudgetContext) -> int | None: how many more graphs may be captured.
    #     Without, and for None: no bound.
    # explain(exc) -> str | None: what the user should do about a driver's error, one sentence.
    #     Called after the capture has been left. Without, and for None: the error's own text.
    # unsafe_ops() -> Iterable[str]: operators ("aten::nonzero") that cannot be captured.
    #     Without: none.
    # runs_captures: bool: whether a capture also runs what it records, as no device's does. Then
    #     operators between captures run too while capturing. Without: False.
    # capture_context() -> AbstractContextManager: entered around one size's warm-up and capture.
    # abort_capture(graph) -> None: leave capture mode after a failure, with the device usable;
    #     nothing if ``graph`` is not being captured. Without: capture_end, its error ignored.
    # before_replay(graph, call: ReplayCall) -> None: change ``graph`` for this call, on the host;
    #     called for every graph of a forward, in order, before the first is replayed. Without:
    #     nothing in a graph changes.
    # pool_bytes(pool) -> int: device memory that ``pool`` holds, in use or not. Without: 0.
    # driver_bytes(pool) -> int: an estimate of what the driver holds for the graphs captured
    #     into ``pool`` beyond pool_bytes. Without: 0.
    # live_bytes(pool) -> int: bytes of ``pool`` that tensors keep from being reused; what a capture
    #     leaves there, beyond what core holds, was cached by a library. Without: not looked at.
    # stager(buffers) -> Callable[[Sequence[torch.Tensor]], None] | None: copies one tensor per
    #     buffer (of its dtype and memory order, dense, no longer than it) to the buffer's beginning
    #     and zeroes the rest, on the current stream. Without, and for None: copied one by one.
    # dump(graph, path) -> None: write ``graph`` to file ``path`` for a person to look at.


@runtime_checkable
class Platform(Protocol):
    """One kind of device, ready to work.

    Optional: ``name`` and ``device_type``, strings as in PlatformInfo, which an instance given
    as ``platform=`` goes by (without: the class's name, and the device the model is on);
    ``self_check() -> Mapping[str, str]``, facts for `piecewise doctor`, raising what is wrong;
    ``piecewise_backend``, a class in place of core's PiecewiseBackend (see
    AbstractPiecewiseBackend).
    """

    device: DeviceRuntime
    graphs: GraphDriver | None
    compiler: CompilerAdaptor
    capabilities: Capabilities


class AbstractPiecewiseBackend(Protocol):
    """What runs one compilable piece; a platform may supply its own class.

    Shaped like vLLM's interface of the same name, with our config and owner in place of its.
    """

    def __init__(
        self,
        graph: torch.fx.GraphModule,
        config: Config,
        graph_pool: Any,
        piecewise_compile_index: int,
        total_piecewise_compiles: int,
        sym_shape_indices: list[int],
        compiled_graph_for_general_shape: Callable[[], Callable[..., Any]],
        backend: Any,
        **kwargs: Any,
    ) -> None:
        """Set up for one piece; compiles nothing.

        ``graph``: the piece. ``graph_pool``: the platform's pool handle, or None.
        ``piecewise_compile_index`` of ``total_piecewise_compiles``: this piece's place among
        the compilable ones. ``sym_shape_indices``: positions in ``*args`` that hold the sizes,
        one per dim. ``compiled_graph_for_general_shape``: called without arguments it returns
        the graph that holds for every size, compiled on first need. ``backend``: the owner,
        which compiles and keeps the books. ``kwargs``: reserved for later versions; accept and
        ignore.
        """
        ...

    def __call__(self, *args: Any) -> Any:
        """Run the piece: the general graph first, then what was compiled for the size in args."""
        ...


Passes = Iterable[Callable[["torch.fx.GraphModule"], None]]
"""Graph passes: each changes a piece's graph in place, before it is compiled."""
