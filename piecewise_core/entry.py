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
from piecewise_core.errors import ConfigError, GradNeeded, OutOfRange
from piecewise_core.frontend.dispatch import Dispatch
from piecewise_core.frontend.region import NO_BOUND, Region
from piecewise_core.frontend.setup import prepare
from piecewise_core.graph.cleaning import clean
from piecewise_core.graph.names import Matcher
from piecewise_core.graph.outputs import OutputCode
from piecewise_core.graph.sizes import expression
from piecewise_core.graph.split import split
from piecewise_core.graph.origins import GraphInput
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Box, Range

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
    Raises ConfigError for unknown options, and for ``mode``, which belongs to Inductor.
    """
    if mode not in (None, "default"):
        raise ConfigError(
            f'mode={mode!r} is for torch.compile\'s own backend; use options={{"graph_mode": ...}}'
        )
    settings = dict(options or {})
    platform = settings.pop("platform", None)
    dims, traced = _traced(graph)
    config = _config(settings, dims).with_env()
    setup = prepare(config, platform, _device_type(traced.graph))
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
    dispatch = Dispatch(setup.config, counters, None, _miss)
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


def _miss(t: Any, b: Any, sizes: tuple[int, ...], args: Any, kwargs: Any) -> Any:
    raise OutOfRange(f"sizes {sizes} lie outside what Dynamo's own guards allow; report this")


def _traced(graph: torch.fx.GraphModule) -> tuple[list[Dim], Traced]:
    """Dynamo's graph in the form that splitting takes; every input counts as a call's tensor."""
    clean(graph)
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    symbols: dict[sympy.Symbol, int] = {}
    dims: list[Dim] = []
    inputs = []
    for place, node in enumerate(placeholders):
        value = node.meta.get("example_value")
        shape = value.shape if isinstance(value, torch.Tensor) else (value,)
        for axis, size in enumerate(shape):
            found = expression(size)
            if isinstance(found, sympy.Symbol) and found not in symbols:
                symbols[found] = len(dims)
                dims.append(_dim(size, _name(node, axis, isinstance(value, torch.Tensor))))
        if isinstance(value, torch.SymInt):
            inputs.append(GraphInput(size=value.node.expr))
        else:
            inputs.append(GraphInput(tensor=place))
    result = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    everything = OutputCode("", lambda o, t, b: o, False, None, tuple(range(len(result))), ())
    box = Box(tuple(Range(d.min, d.max) for d in dims))
    return dims, Traced(graph, tuple(inputs), symbols, box, everything)


def _dim(size: torch.SymInt, name: str) -> Dim:
    span = size.node.shape_env.bound_sympy(size.node.expr)
    low = int(span.lower) if span.lower.is_Integer else 0
    high = int(span.upper) if span.upper.is_Integer else NO_BOUND
    return Dim(name, min=max(low, 0), max=min(high, NO_BOUND))


def _name(node: torch.fx.Node, axis: int, tensor: bool) -> str:
    plain = re.sub(r"^[lL]_+|_+$", "", str(node.target))
    return f"{plain}[{axis}]" if tensor else plain


def _config(settings: dict[str, Any], dims: Sequence[Dim]) -> Config:
    if "dynamic" in settings:
        raise ConfigError(
            'options={"dynamic": ...} is for pw.compile; here dims come from torch.compile: pass '
            "dynamic=True to it, or use torch._dynamo.mark_dynamic(tensor, dim, min=, max=)"
        )
    if not dims:
        # Endpoints and sizes wait until Dynamo makes a graph with a dim in it.
        for name in ("compile_ranges_endpoints", "compile_sizes", "capture_sizes"):
            Config.from_dict({name: settings.pop(name, ())})
        return Config.from_dict(settings)
    dynamic = {str(place): {0: dim} for place, dim in enumerate(dims)}
    fits = {}
    for name, value in settings.items():
        fits[name] = _inside(value, dims) if name in _SIZED else value
    return Config.from_dict(fits).replace(dynamic=dynamic)


_SIZED = ("compile_ranges_endpoints", "compile_sizes")


def _inside(value: Any, dims: Sequence[Dim]) -> Any:
    """Listed sizes that lie in the bounds: Dynamo narrows them where it specialises."""
    if len(dims) != 1 or isinstance(value, (str, Mapping)):
        return value
    return [v for v in value if not isinstance(v, int) or dims[0].min <= v <= dims[0].max]


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
