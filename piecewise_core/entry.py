"""The ``torch.compile(model, backend="piecewise", options={...})`` entry point.

Dynamo traces and guards here; splitting, ranges and compilation are ours. Installed through
torch's ``torch_dynamo_backends`` entry-point group, so no import of piecewise is needed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch

from piecewise_core.compile.scheduler import Scheduler
from piecewise_core.config import Config, Dim
from piecewise_core.counters import Counters, process_counters
from piecewise_core.errors import ConfigError, GradNeeded, TraceFailed
from piecewise_core.frontend.background import Background
from piecewise_core.frontend.dispatch import Dispatch, Entry
from piecewise_core.frontend.region import NO_BOUND, Region
from piecewise_core.frontend.setup import prepare
from piecewise_core.graph.cleaning import clean
from piecewise_core.graph.names import Matcher
from piecewise_core.graph.origins import GraphInput
from piecewise_core.graph.outputs import OutputCode
from piecewise_core.graph.sizes import expression
from piecewise_core.graph.split import split
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Box, Range, Sizes

__all__ = ["backend"]


def backend(
    graph: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile one Dynamo graph in pieces.

    ``options``: Config fields by name, and ``platform``. Dims are the graph's own symbols, named
    after the inputs that carry them (``x[0]``); with one of them, endpoints are plain ints.
    Raises ConfigError for unknown options, and for ``mode``, which belongs to Inductor;
    TraceFailed for a Python float that Dynamo lets vary.
    """
    if mode not in (None, "default"):
        raise ConfigError(
            f"mode={mode!r} is for torch.compile's own backend; use options={{...}} for this one"
        )
    settings = dict(options or {})
    platform = settings.pop("platform", None)
    asked = _asked(settings)
    dims, traced = _traced(graph)
    setup = prepare(_fitted(asked, dims), platform, _device_type(traced.graph))
    counters = Counters()
    process_counters.watch(counters)
    scheduler = Scheduler(setup.compiler, setup.config, counters, setup.passes)
    matcher = Matcher(setup.config.splitting_ops, setup.unsafe_ops)
    if matcher:
        matcher.check_all_matched(graph.graph)
    program = split(traced, matcher)
    region = Region(
        0,
        program,
        setup.config,
        scheduler,
        setup.config.bounds,
        setup.config.sizes,
        setup.backend_class,
    )
    counters.add("graphs")
    counters.add("pieces", len(program.pieces))
    counters.add("compilable_pieces", len(program.compilable))
    mode_asked = setup.config.compile_mode
    if mode_asked == "warmup":
        for target in region.targets:
            region.plan(target.box)
    background = Background(setup) if mode_asked == "background" else None
    dispatch = Dispatch(setup.config, counters, background, _as_written(region, counters))
    dispatch.install(setup.config.bounds, [region])
    return _Runner(dispatch, _size_reader(traced, len(dims)))


class _Runner:
    """One compiled Dynamo graph. Dynamo calls it with the graph's inputs, in order."""

    def __init__(
        self, dispatch: Dispatch, sizes: Callable[[Sequence[Any]], tuple[int, ...]]
    ) -> None:
        self._dispatch = dispatch
        self._sizes = sizes
        self._lock = threading.RLock()

    def __call__(self, *inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in inputs):
            raise GradNeeded(
                "called with gradients enabled on tensors that require them; backend='piecewise' "
                "is for inference: call under torch.inference_mode() or torch.no_grad()"
            )
        sizes = self._sizes(inputs)
        with self._lock:
            entry = self._dispatch.entries[self._dispatch.find(*sizes)]
            return entry(inputs, (), sizes, (), {})


def _as_written(region: Region, counters: Counters) -> Entry:
    """Serves what lies outside the dims' bounds, negative ints: Dynamo's guards allow it."""

    def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        counters.calls["eager"] += 1
        return region.written_plan()(t, b, *sizes)

    return entry


def _traced(graph: torch.fx.GraphModule) -> tuple[list[Dim], Traced]:
    """Dynamo's graph in the form that splitting takes; every input counts as a call's tensor."""
    clean(graph)
    _refuse_floats(graph)
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    symbols: dict[sympy.Symbol, int] = {}
    dims: list[Dim] = []
    for symbol, (size, name) in _carriers(placeholders).items():
        symbols[symbol] = len(dims)
        dims.append(_dim(size, name))
    values = [n.meta.get("example_value") for n in placeholders]
    inputs = tuple(
        GraphInput(size=v.node.expr) if isinstance(v, torch.SymInt) else GraphInput(tensor=place)
        for place, v in enumerate(values)
    )
    result = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    everything = OutputCode("", lambda o, t, b: o, False, None, tuple(range(len(result))), ())
    box = Box(tuple(Range(d.min, d.max) for d in dims))
    return dims, Traced(graph, inputs, symbols, box, everything)


def _refuse_floats(graph: torch.fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymFloat) and node.args:
            raise TraceFailed(
                f"{_plain(node.args[0])} is a Python float that torch.compile lets vary; pass it "
                "as a tensor, or set torch._dynamo.config.specialize_float = True to compile "
                "once per value"
            )


def _carriers(
    placeholders: Sequence[torch.fx.Node],
) -> dict[sympy.Symbol, tuple[torch.SymInt, str]]:
    """Every symbol with a size and a name: of the first tensor that has it, else of the int."""
    found: dict[sympy.Symbol, tuple[torch.SymInt, str]] = {}
    alone: dict[sympy.Symbol, tuple[torch.SymInt, str]] = {}
    for node in placeholders:
        value: Any = node.meta.get("example_value")
        if isinstance(value, torch.SymInt) and isinstance(expression(value), sympy.Symbol):
            alone.setdefault(expression(value), (value, _plain(node)))
        sizes: Sequence[Any] = value.shape if isinstance(value, torch.Tensor) else ()
        for axis, size in enumerate(sizes):
            if isinstance(expression(size), sympy.Symbol):
                found.setdefault(expression(size), (size, f"{_plain(node)}[{axis}]"))
    return {**found, **{s: v for s, v in alone.items() if s not in found}}


def _plain(node: Any) -> str:
    """An input's name without Dynamo's decoration: ``L_x_`` is ``x``."""
    return re.sub(r"^[lL]_+|_+$", "", str(getattr(node, "target", node)))


def _dim(size: torch.SymInt, name: str) -> Dim:
    span = size.node.shape_env.bound_sympy(size.node.expr)
    low = int(span.lower) if span.lower.is_Integer else 0
    high = int(span.upper) if span.upper.is_Integer else NO_BOUND
    return Dim(name, min=max(low, 0), max=min(high, NO_BOUND))


def _asked(settings: Mapping[str, Any]) -> Config:
    """The options and the environment's settings as a Config that knows no dims yet."""
    config = Config.from_dict(settings).with_env()
    if config.dynamic:
        raise ConfigError(
            "dynamic is for pw.compile; here dims come from torch.compile: pass dynamic=True to "
            "it, or use torch._dynamo.mark_dynamic(tensor, dim, min=, max=)"
        )
    return config


def _fitted(config: Config, dims: Sequence[Dim]) -> Config:
    """``config`` with the graph's dims. Sizes outside their bounds are for other graphs.

    Dynamo makes a graph for each size that it specialises and narrows the bounds of the rest;
    a graph without dims takes no endpoints and no sizes.
    """
    changes: dict[str, Any] = dict.fromkeys(_SIZED, ())
    if dims:
        changes = {name: _inside(getattr(config, name), dims) for name in _SIZED}
        changes["dynamic"] = {str(place): {0: dim} for place, dim in enumerate(dims)}
    if any(dim.max >= NO_BOUND for dim in dims):
        changes["capture_max"] = False  # there is no largest size
    return config.replace(**changes)


_SIZED = ("compile_ranges_endpoints", "compile_sizes", "capture_sizes")


def _inside(listed: Any, dims: Sequence[Dim]) -> Any:
    """Those of the listed sizes that lie in the bounds; what is malformed is left to Config."""
    if isinstance(listed, str):
        return listed
    if isinstance(listed, Mapping):
        known = {dim.name: dim for dim in dims}
        return {n: _inside(v, [known[n]]) if n in known else v for n, v in listed.items()}
    spans = [Range(dim.min, dim.max) for dim in dims]

    def fits(entry: Any) -> bool:
        sizes = (entry,) if isinstance(entry, int) else entry
        return len(sizes) != len(spans) or all(s in r for s, r in zip(sizes, spans, strict=True))

    return [entry for entry in listed if fits(entry)]


def _size_reader(traced: Traced, count: int) -> Callable[[Sequence[Any]], tuple[int, ...]]:
    """``sizes(inputs)``: reads every dim from the first input that carries it."""
    sources = [""] * count
    placeholders = [n for n in traced.graph.graph.nodes if n.op == "placeholder"]
    for place, node in enumerate(placeholders):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt):
            dim = traced.symbols.get(expression(value))
            if dim is not None:
                sources[dim] = f"i[{place}]"
        elif isinstance(value, torch.Tensor):
            for axis, size in enumerate(value.shape):
                dim = traced.symbols.get(expression(size))
                if dim is not None and not sources[dim]:
                    sources[dim] = f"i[{place}].shape[{axis}]"
    names: dict[str, Any] = {}
    exec(f"def sizes(i):\n return ({''.join(f'{s}, ' for s in sources)})", names)
    found: Callable[[Sequence[Any]], tuple[int, ...]] = names["sizes"]
    return found


def _device_type(graph: torch.fx.GraphModule) -> str | None:
    for node in graph.graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            return str(value.device.type)
    return None
