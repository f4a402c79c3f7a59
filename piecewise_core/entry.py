"""The ``torch.compile(model, backend="piecewise", options={...})`` entry point.

Dynamo traces and guards here; splitting, ranges and compilation are ours. Installed through
torch's ``torch_dynamo_backends`` entry-point group, so no import of piecewise is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from piecewise_core.afterfork import after_fork
from piecewise_core.compile.scheduler import Scheduler
from piecewise_core.config import Config, Dim
from piecewise_core.counters import Counters, process_counters
from piecewise_core.errors import ConfigError, GradNeeded
from piecewise_core.frontend.background import Background
from piecewise_core.frontend.building import Builds, Unready
from piecewise_core.frontend.coverage import NO_BOUND
from piecewise_core.frontend.dispatch import Dispatch, Entry
from piecewise_core.frontend.dynamo_graph import device_type, reader, take_in
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.setup import prepare
from piecewise_core.frontend.suspects import GraphSubject
from piecewise_core.frontend.verifying import Verifier
from piecewise_core.graph.contracts import Contracts
from piecewise_core.graph.layouts import Layouts
from piecewise_core.graph.names import Matcher
from piecewise_core.graph.split import split
from piecewise_core.ranges import Sizes

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
            f"mode={mode!r} is for torch.compile's own backend; use options={{...}} for this one"
        )
    settings = dict(options or {})
    platform = settings.pop("platform", None)
    asked = _asked(settings)
    dims, traced = take_in(graph)
    setup = prepare(_fitted(asked, dims), platform, device_type(traced.graph))
    counters = Counters()
    process_counters.watch(counters)
    cache = setup.artifact_cache()
    scheduler = Scheduler(setup.compiler, setup.config, counters, setup.rewrites, cache=cache)
    matcher = Matcher(setup.config.splitting_ops, setup.unsafe_ops)
    if matcher:
        matcher.look(graph.graph)
    tried = Contracts((*setup.config.captures, *setup.config.sizes))
    program = split(traced, matcher, Layouts(dims, cuts=False), tried, setup.rewrites.program)
    bounds, sizes = setup.config.bounds, setup.config.sizes
    region = Region(0, program, setup.config, scheduler, bounds, sizes, setup.backend_class)
    counters.add("graphs")
    counters.add("pieces", len(program.pieces))
    counters.add("compilable_pieces", len(program.compilable))
    mode_asked = setup.config.compile_mode
    if mode_asked == "warmup":
        for target in region.targets:
            region.plan(target.box)
    background = Background(setup, cache) if mode_asked == "background" else None
    verifier = None
    if setup.config.check == "verify":
        verifier = Verifier(setup.config, counters, GraphSubject(setup))
    miss = _as_written(region, counters)
    dispatch = Dispatch(setup.config, counters, background, miss, verifier=verifier)
    dispatch.install(bounds, [region])
    return _Runner(dispatch, reader(traced))


class _Runner:
    """One compiled Dynamo graph. Dynamo calls it with the graph's inputs, in order."""

    def __init__(
        self, dispatch: Dispatch, read: Callable[[Sequence[Any]], tuple[Sequence[Any], Sizes]]
    ) -> None:
        self._dispatch = dispatch
        self._read = read
        self._lock = after_fork.frees(threading.RLock())
        self._builds = Builds(self._lock)

    def __call__(self, *inputs: Any) -> Any:
        tensors, sizes = self._read(inputs)
        if torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in tensors):
            raise GradNeeded(
                "called with gradients enabled on tensors that require them; backend='piecewise' "
                "is for inference: call under torch.inference_mode() or torch.no_grad()"
            )
        while True:
            with self._lock:
                entry = self._dispatch.serving[self._dispatch.find(*sizes)]
                try:
                    return entry(tensors, (), sizes, (), {})
                except Unready as missing:
                    unready = missing.with_traceback(None)
            self._builds.have(unready)


def _as_written(region: Region, counters: Counters) -> Entry:
    """Serves what lies outside the dims' bounds, negative ints: Dynamo's guards allow it."""

    def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        counters.calls["eager"] += 1
        return region.written_plan()(t, b, *sizes)

    return entry


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
    spans = [dim.sizes for dim in dims]

    def fits(entry: Any) -> bool:
        sizes = (entry,) if isinstance(entry, int) else entry
        return len(sizes) != len(spans) or all(s in r for s, r in zip(sizes, spans, strict=True))

    return [entry for entry in listed if fits(entry)]
