"""Compiles graphs that somebody else has traced and cut: an engine's pieces, by our scheduler.

The engine keeps its own cuts, ranges and dispatch. From here it has each distinct graph compiled
once per range, and what earlier processes compiled, from the compile store.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from piecewise_core.capture.enginegraphs import EngineGraphs
from piecewise_core.compile.artifact import Artifact
from piecewise_core.compile.examples import copied
from piecewise_core.compile.scheduler import Scheduler
from piecewise_core.config import Config
from piecewise_core.counters import Counters, Stats, process_counters
from piecewise_core.errors import ConfigError
from piecewise_core.frontend.dynamo_graph import reading, take_in
from piecewise_core.frontend.setup import Setup, prepare
from piecewise_core.graph.sizes import expression
from piecewise_core.graph.split import Program, split
from piecewise_core.protocols import Platform
from piecewise_core.ranges import Box, Range
from piecewise_core.runtime.plan import PlanCode
from piecewise_core.torch_compat.dynamo import compile_lock

__all__ = ["GraphCompiler"]


class GraphCompiler:
    """Compiles Dynamo graphs that were cut elsewhere.

    ``config``: of its fields those that say what compiles, what is rewritten and what is kept;
    sizes, splitting and static graphs are the engine's. ``platform``: as in ``pw.compile``.
    ``device_type``: of the graphs' tensors. ``name``: the model's, in the store and in events.
    ``keep``: False for one without a compile store. Raises PlatformError and its kinds, and
    ConfigError. May be shared by threads.
    """

    def __init__(
        self,
        config: Config | None = None,
        platform: str | Platform | None = None,
        *,
        device_type: str | None = None,
        name: str = "",
        keep: bool = True,
    ) -> None:
        self._setup = setup = prepare(config or Config(), platform, device_type)
        self._counters = Counters(setup.config.on_event, name)
        process_counters.watch(self._counters)
        cache = setup.artifact_cache()
        cache.model = name
        if not keep:
            cache.store = None
        of = setup.compiler, setup.config, self._counters, setup.rewrites, setup.is_capturing
        self._scheduler = Scheduler(*of, cache)
        # Of graphs that the engine still has: it compiles one for every range, one after the other.
        self._taken: weakref.WeakKeyDictionary[torch.fx.GraphModule, _Taken] = (
            weakref.WeakKeyDictionary()
        )

    @cached_property
    def graphs(self) -> EngineGraphs:
        """Static graphs of the engine's pieces, by the platform's driver."""
        return EngineGraphs(self._setup.platform.declared)

    def fingerprint(self) -> str:
        """A digest of all that compiled code depends on besides its graph. Raises StoreError."""
        factors = sorted(self._setup.surroundings().items())
        return hashlib.sha256(repr(factors).encode()).hexdigest()

    def compile(
        self, graph: torch.fx.GraphModule, sizes: Range, label: str
    ) -> Callable[..., tuple[Any, ...]]:
        """What runs ``graph`` for ``sizes``: takes its inputs in order, gives its outputs.

        ``graph``: of Dynamo's form, with ``example_value`` in the meta of its nodes, and a tuple
        as its output; it is left as it is. ``sizes``: of the symbol that the first size among its
        inputs has, or else its first symbol; any others range over their bounds. ``label``: names
        it in errors and books. Results have the layouts that were traced. The caller answers for
        the graph holding over all of ``sizes``. Raises CompileFailed.
        """
        with compile_lock:
            taken = self._taken.get(graph)
            if taken is None:
                taken = self._taken[graph] = _Taken(graph, self._scheduler, self._setup)
                self._counters.add("graphs")
                self._counters.add("pieces", len(taken.program.pieces))
                self._counters.add("compilable_pieces", len(taken.program.compilable))
            return taken.runnable(sizes, label)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Everything compiled or loaded so far, in order; each with who shares it."""
        return self._scheduler.artifacts

    def stats(self) -> Stats:
        """The counters of all that was compiled here."""
        return self._counters.stats()

    def summary(self) -> str:
        """One line: how many pieces there are, and where their code is from."""
        stats, seconds = self.stats(), sum(a.seconds for a in self.artifacts)
        return (
            f"{stats.compilable_pieces} pieces, {stats.unique_pieces} of them distinct: "
            f"{stats.compilations} compiled, {stats.cache_hits} loaded, {stats.dedup_hits} shared, "
            f"{seconds:.1f} s"
        )

    def explain(self) -> str:
        """One line for each distinct piece and range: where its code is from, who shares it."""
        return "\n".join(map(_line, self.artifacts))


class _Taken:
    """One graph, taken in."""

    def __init__(self, graph: torch.fx.GraphModule, scheduler: Scheduler, setup: Setup) -> None:
        if not isinstance(graph.graph.output_node().args[0], (tuple, list)):
            raise ConfigError("a graph to compile gives a tuple, as Dynamo's do; this one does not")
        copy = copied(graph)
        first = _first_size(copy.graph)
        dims, traced = take_in(copy)
        self._ranged = traced.symbols.get(first, 0)
        self._bounds = [Range(0, d.max) for d in dims]
        self._read = reading(traced)
        self._scheduler = scheduler
        self.program: Program = split(traced, lambda node: False, rewrites=setup.rewrites.program)
        self._code = PlanCode(self.program, scheduler.count_relaid)

    def runnable(self, sizes: Range, label: str) -> Callable[..., tuple[Any, ...]]:
        spans = list(self._bounds)
        if spans:
            spans[self._ranged] = sizes
        box, scheduler = Box(tuple(spans)), self._scheduler
        pieces, symbols = self.program.compilable, dict(self.program.traced.symbols)
        names = [label if len(pieces) == 1 else f"{label} part {i}" for i in range(len(pieces))]
        runs: list[Callable[..., Any]] = [
            scheduler.artifact(piece, symbols, box, name).run
            for piece, name in zip(pieces, names, strict=True)
        ]
        laid = [self._code.lay_piece(i, scheduler.compiler) for i in range(len(runs))]
        checked = [_fitted(run, fit, len(spans)) for run, fit in zip(runs, laid, strict=True)]
        read, plan, first = self._read, self._code.plan(runs), self._code.plan(checked)
        pending = True

        def run(*inputs: Any) -> tuple[Any, ...]:
            nonlocal pending, plan
            t, b, own = read(inputs)
            if not pending:
                return plan(t, b, *own)
            # The first call looks at what the compiler's code returns, and so do all where it was
            # not what was promised: the engine compiled what follows for the layouts traced.
            outputs = first(t, b, *own)
            pending = False
            if any(fit.drifts for fit in laid):
                plan = first
            return outputs

        return run


def _first_size(graph: torch.fx.Graph) -> Any:
    """The symbol of the first input that is a size."""
    values = (n.meta.get("example_value") for n in graph.nodes if n.op == "placeholder")
    return next((expression(v) for v in values if isinstance(v, torch.SymInt)), None)


def _fitted(run: Callable[..., Any], fit: Callable[..., Any], dims: int) -> Callable[..., Any]:
    return lambda *args: fit(run(*args), *args[:dims])


def _line(made: Artifact) -> str:
    where = "from the compile store" if made.stored else f"by {made.compiler}"
    shared = f", shared by {len(made.shared_by)} more" if made.shared_by else ""
    why = f"; {made.note}" if made.note else f"; not kept: {made.unkept}" if made.unkept else ""
    return f"{made.owner} for {made.box}: {made.seconds:.2f} s {where}{shared}{why}"
