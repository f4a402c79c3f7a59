"""The vendor contract as it was at API version 1.0; never edited, see test_frozen.py."""

# ruff: noqa: F821
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

API_VERSION = (1, 0)


@dataclass(frozen=True)
class Probe:
    available: bool
    reason: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Capabilities:
    alignment: int = 1


@dataclass(frozen=True)
class BudgetContext:
    graphs_per_size: int
    sizes: tuple[tuple[int, ...], ...]
    captured: int


@dataclass(frozen=True)
class ReplayCall:
    captured: tuple[int, ...]
    sizes: tuple[int, ...]
    inputs: Sequence[torch.Tensor]


@dataclass(frozen=True)
class PlatformInfo:
    name: str
    device_type: str
    api_version: tuple[int, int]
    probe: Callable[[], Probe]
    create: Callable[[], Platform]


@dataclass(frozen=True)
class CompiledGraph:
    run: Callable[..., Sequence[Any]]
    handle: Callable[[], bytes] | None = None


class CompilerAdaptor(Protocol):
    name: str

    def compile(
        self,
        graph: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        key: str,
        config: Config,
    ) -> CompiledGraph: ...

    def hash_factors(self) -> Mapping[str, str]: ...


class CompilerExtras(Protocol):
    def load(self, handle: bytes) -> CompiledGraph: ...

    def configure(self, options: Mapping[str, Any]) -> None: ...

    def passes(self) -> Passes: ...


class DeviceRuntime(Protocol):
    def current_stream(self) -> Any: ...

    def new_stream(self) -> Any: ...

    def stream(self, stream: Any) -> AbstractContextManager[Any]: ...

    def synchronize(self) -> None: ...


class RuntimeExtras(Protocol):
    def memory_info(self) -> tuple[int, int]: ...

    def memory_stats(self) -> Mapping[str, int]: ...

    def empty_cache(self) -> None: ...

    def rng(self) -> torch.Generator: ...

    def fingerprint(self) -> Mapping[str, str]: ...


class GraphDriver(Protocol):
    def new_pool(self) -> Any: ...

    def new_graph(self) -> Any: ...

    def capture_begin(self, graph: Any, pool: Any, stream: Any) -> None: ...

    def capture_end(self, graph: Any) -> None: ...

    def replay(self, graph: Any) -> None: ...

    def reset(self, graph: Any) -> None: ...

    def is_capturing(self) -> bool: ...


class GraphExtras(Protocol):
    def replayer(self, graph: Any) -> Callable[[], None]: ...

    def weak_ref(self, tensor: torch.Tensor) -> torch.Tensor: ...

    def register_generator(self, graph: Any, generator: torch.Generator) -> None: ...

    def resource_budget(self, ctx: BudgetContext) -> int | None: ...

    def explain(self, exc: BaseException) -> str | None: ...

    def unsafe_ops(self) -> Iterable[str]: ...

    def capture_context(self) -> AbstractContextManager[Any]: ...

    def abort_capture(self, graph: Any) -> None: ...

    def before_replay(self, graph: Any, call: ReplayCall) -> None: ...

    def pool_bytes(self, pool: Any) -> int: ...

    def driver_bytes(self, pool: Any) -> int: ...

    def live_bytes(self, pool: Any) -> int: ...

    def stager(
        self, buffers: Sequence[torch.Tensor]
    ) -> Callable[[Sequence[torch.Tensor]], None] | None: ...

    def dump(self, graph: Any, path: Path) -> None: ...


class Platform(Protocol):
    device: DeviceRuntime
    graphs: GraphDriver | None
    compiler: CompilerAdaptor
    capabilities: Capabilities


class PlatformExtras(Protocol):
    def self_check(self) -> Mapping[str, str]: ...


class AbstractPiecewiseBackend(Protocol):
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
    ) -> None: ...

    def __call__(self, *args: Any) -> Any: ...


HOOKS = ("piecewise_platforms", "piecewise_compilers", "piecewise_passes")
