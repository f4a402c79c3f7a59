"""One frame captured by Dynamo: its graph, its own code around that, and what it took for granted.

Of what Dynamo gives back, read in torch 2.11.0 and 2.13.0, where all of it has the same shape:

- ``InstructionTranslator.current_tx().output.side_effects``: what the traced code changed; of its
  ``root_tracer`` the ``traced_sources``, which 2.11 does not have.
- ``DynamoOutput.graph_capture_output(...).get_runtime_env().forward_callable(...)``: the code
  that feeds the graph and rebuilds its outputs; run once, to read off both.
- ``GraphCaptureOutput.output_graph.guards``, ``import_sources`` and ``traced_code``; of a Guard its
  ``name`` (a method in some builds), ``create_fn_name()`` and the keywords of its ``create_fn``.
- In 2.11 a HASATTR guard is of the attribute itself (an ``AttrSource``), later of what may have it.
- In 2.11 the frame's code does not bring its builtins along; they are given to it.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from logging import Logger
from types import CodeType, ModuleType
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.afterfork import after_fork
from piecewise_core.graph.assumptions import Assumptions, assume
from piecewise_core.graph.looks import Look
from piecewise_core.graph.sideeffects import SideEffect, read_side_effects
from piecewise_core.torch_compat.dynamo import (
    AttrSource,
    FunctionsSetting,
    InstructionTranslator,
    NNModuleSource,
    compile_frame,
    dynamo_config,
    dynamo_timed,
    get_compile_id,
    get_frame,
    get_metrics_context,
    oblivious_sizes,
    source_name,
    symbols_at,
    traced_names,
    without_size_choices,
)
from piecewise_core.torch_compat.fakes import (
    CompileContext,
    FakeTensor,
    TracingContext,
    compile_context,
    forget_wrappers,
)

__all__ = ["Capture", "capture"]

_LACKS = frozenset({"DICT_NOT_CONTAINS"})
"""A module's parameters, buffers and modules, in which an attribute that is set is looked for."""


@dataclass(frozen=True)
class Capture:
    """One captured frame.

    ``graph``: flat; parameters and sizes are placeholders. ``run``: the frame's own code, on
    the arguments given and with a function in place of the graph. ``side_effects``: what it would
    change besides tensors; ``kept_up``: of these, attributes that the traced code only sets.
    ``assume(fn, objects)``: what the trace took for granted of them.
    ``code``: all that ran through the tracer.
    """

    graph: torch.fx.GraphModule
    shape_env: ShapeEnv
    run: Callable[[Callable[..., Any], Sequence[Any]], Any]
    side_effects: tuple[SideEffect, ...]
    kept_up: tuple[SideEffect, ...]
    assume: Callable[[Callable[..., Any], Sequence[Any]], Assumptions]
    code: tuple[CodeType, ...]


def capture(
    entry: Callable[..., Any], args: Sequence[Any], counted: Collection[str] = ()
) -> Capture:
    """Capture ``entry(*args)`` as one whole graph. Raises ``dynamo.trace_errors``.

    ``counted``: places of whole numbers that are symbols, by Dynamo's names for them.
    """
    frame = get_frame(entry, tuple(args))
    found: dict[str, Any] = {}
    scope = {"L": frame.locals, "G": frame.globals}

    def keep(graph: torch.fx.GraphModule, _examples: Sequence[Any]) -> torch.fx.GraphModule:
        tx = InstructionTranslator.current_tx()
        found.update(
            graph=graph,
            backend_id=graph.meta["backend_id"],
            shape_env=TracingContext.get().fake_mode.shape_env,  # type: ignore[union-attr]
            side_effects=tuple(read_side_effects(tx.output.side_effects, scope)),
            names=traced_names(tx.output),
        )
        return graph

    captured = _compiled(frame, keep, counted).graph_capture_output(frame.argdefs, frame.kwdefaults)

    def run(compiled_fn: Callable[..., Any], given: Sequence[Any]) -> Any:
        return captured.get_runtime_env().forward_callable(
            found.get("backend_id", "__no_graph"),
            compiled_fn,
            extra_globals={**vars(builtins), **frame.globals},
        )(*given)

    if not found:
        found.update(_nothing())
    looked = tuple(map(_look, captured.output_graph.guards))

    def assumed(fn: Callable[..., Any], objects: Sequence[Any]) -> Assumptions:
        numbers = _symbols_at(env, counted)
        # What is written as it was must go on being so.
        kept = [Look(place, "CONSTANT_MATCH") for effect in effects for place in effect.kept]
        looks = [*(look for look in looked if look.source not in numbers), *kept]
        imports = {**captured.import_sources, **_modules(frame.globals)}
        named = {n: v for n, v in frame.globals.items() if n.startswith("___unnamed_scope")}
        given = looks, imports, captured.traced_code, graph, fn, objects, named
        return assume(*given, _owners(numbers, effects), found["names"])

    graph, env, effects = found["graph"], found["shape_env"], found["side_effects"]
    fakes = (n.meta.get("example_value") for n in graph.graph.nodes)
    forget_wrappers([fake for fake in fakes if isinstance(fake, FakeTensor)][:1])
    set_only = tuple(e for e in effects if e.stored and not _is_asked(e.places, looked))
    return Capture(graph, env, run, effects, set_only, assumed, tuple(captured.traced_code))


def _nothing() -> dict[str, Any]:
    """What there is of a frame without tensor work."""
    empty = torch.fx.Graph()
    empty.output(())
    graph = torch.fx.GraphModule({}, empty)
    return {"graph": graph, "shape_env": ShapeEnv(), "side_effects": (), "names": ()}


def _owners(numbers: Collection[str], effects: Sequence[SideEffect]) -> list[str]:
    places = *numbers, *(place for effect in effects for place in effect.counts)
    return [place.rpartition(".")[0] for place in places]


def _symbols_at(env: ShapeEnv, places: Collection[str]) -> frozenset[str]:
    """Those of ``places`` whose numbers are symbols."""
    named = (source_name(s) for of in env.var_to_sources.values() for s in of)
    return frozenset(named).intersection(places)


def _is_asked(places: Sequence[str], looks: Sequence[Look]) -> bool:
    """Whether the traced code asked what one of the attributes was before."""
    for of, _, name in (place.rpartition(".") for place in places):
        begins = f"{of}.{name}", f"{of}.__dict__['{name}']"
        for look in looks:
            named = look.key == name and look.source.startswith(of) and look.kind not in _LACKS
            if named or look.source.startswith(begins):
                return True
    return False


def _compiled(frame: Any, keep: Callable[..., Any], counted: Collection[str]) -> Any:
    """What Dynamo makes of a frame as one graph, which ``keep`` is given."""
    settings = dynamo_config.patch(
        assume_static_by_default=True,
        automatic_dynamic_shapes=False,
        specialize_int=True,
        specialize_float=True,
        # Recurrent layers, which Dynamo leaves out by default: traced, each is one operator.
        allow_rnn=True,
        # Loggers' memoized methods, which say a thing once: a later call of theirs does nothing.
        ignore_logger_methods=FunctionsSetting(
            m for m in vars(Logger).values() if hasattr(m, "cache_info")
        ),
    )
    with (
        after_fork.leaves(settings),
        symbols_at(counted),
        oblivious_sizes(),
        after_fork.leaves(without_size_choices()),
        get_metrics_context(),
        dynamo_timed("fullgraph_capture"),
        compile_context(CompileContext(get_compile_id({}))),
    ):
        return compile_frame(
            frame.code,
            frame.globals,
            frame.locals,
            frame.builtins,
            frame.closure,
            compiler_fn=keep,
            one_graph=True,
            restart_reasons=set(),
        )


def _modules(scope: Mapping[str, Any]) -> dict[str, str]:
    """The modules that Dynamo put into the frame's globals under numbers of this process."""
    return {
        name: value.__name__
        for name, value in scope.items()
        if isinstance(value, ModuleType) and re.fullmatch(r"_\d+_c\d+", name)
    }


def _look(guard: Any) -> Look:
    """A guard as the look that the trace took."""
    kind, source = guard.create_fn_name(), guard
    given = getattr(guard.create_fn, "keywords", None) or {}
    key = given.get("attr", given.get("key"))
    if kind == "DUPLICATE_INPUT" and given.get("source_b") is not None:
        key = source_name(given["source_b"])
    if kind == "HASATTR" and key is None:  # torch 2.11
        of = guard.originating_source
        of = of.base if isinstance(of, NNModuleSource) else of
        if isinstance(of, AttrSource):
            source, key = of.base, of.member
    return Look(source_name(source), kind, key)
