"""Trace one region of sizes to one whole graph, and say where its inputs come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from piecewise_core.config import Config
from piecewise_core.errors import PiecewiseError, TraceFailed
from piecewise_core.graph import call, guards, questions
from piecewise_core.graph.assumptions import Assumptions
from piecewise_core.graph.branches import Branch, branches
from piecewise_core.graph.cleaning import clean
from piecewise_core.graph.effects import written_by_layout
from piecewise_core.graph.forgotten import forgotten
from piecewise_core.graph.frame import Capture, capture
from piecewise_core.graph.heldsizes import held_otherwise
from piecewise_core.graph.locks import refused_lock
from piecewise_core.graph.memory import values
from piecewise_core.graph.origins import Bind, GraphInput, read_off
from piecewise_core.graph.outputcode import OutputCode
from piecewise_core.graph.sizes import expression
from piecewise_core.graph.structure import Structure
from piecewise_core.graph.untraceable import (
    refuse_addresses,
    refuse_traced,
)
from piecewise_core.graph.unwrapping import unwrap
from piecewise_core.graph.wording import cut_short
from piecewise_core.ranges import Box, Sizes
from piecewise_core.torch_compat import dynamo

__all__ = ["Traced", "hints", "trace"]

_LINE = 1000
"""Characters of a line of Dynamo's that are shown."""


@dataclass(frozen=True)
class Traced:
    """One region's graph.

    ``graph``: flat; its output is a flat tuple. ``inputs``: one per placeholder. ``symbols``:
    symbol -> place of its dim. ``box``: the sizes over which the graph holds. ``output``:
    rebuilds the call's result. ``assumptions``: what must hold of the model, where it was noted.
    ``asks_layout``: whether another layout of an input may have been traced to another graph.
    ``reads_layout``: whether code that was traced called for a tensor's strides. ``words``: what
    it names of `graph.questions.WATCHED`. ``cuts``: the guards that keep the box from being
    larger, and the lines that asked. ``keeps``: places of Python
    objects to which code that was traced writes what they hold.
    """

    graph: torch.fx.GraphModule
    inputs: tuple[GraphInput, ...]
    symbols: Mapping[sympy.Symbol, int]
    box: Box
    output: OutputCode
    assumptions: Assumptions | None = None
    asks_layout: bool = False
    reads_layout: bool = False
    words: frozenset[str] = frozenset()
    cuts: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    branches: tuple[Branch, ...] = ()

    @property
    def asked(self) -> frozenset[str]:
        """What calls must answer as the traced one, since its code names the question."""
        found = {kind for kind, names in questions.FACTS.items() if names & self.words}
        return frozenset(found | {"apart"} if questions.IDENTITY in self.words else found)

    @property
    def unsettled(self) -> bool:
        """Whether a size in the graph is none that follows from the dims."""
        for node in self.graph.graph.nodes:
            for value in values(node.meta.get("example_value")):
                sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
                for size in map(expression, sizes):
                    if isinstance(size, sympy.Basic) and size.free_symbols - set(self.symbols):
                        return True
        return False


def hints(cell: Box) -> Sizes:
    """Sizes to trace with: distinct ones of at least 2 where the cell has them.

    Never the sizes of a call: a model is not specialised by what it happened to see first.
    """
    found: list[int] = []
    for place, bounds in enumerate(cell.ranges):
        size = bounds.nearest(5 + 2 * place)
        while size in found and size < bounds.end:
            size = bounds.nearest(size + 1)
        found.append(size)
    return tuple(found)


def trace(
    fn: Callable[..., Any],
    structure: Structure,
    config: Config,
    cell: Box,
    bind: Bind,
    *,
    assume: bool = True,
    hint: Sizes | None = None,
) -> Traced:
    """Trace ``fn`` for sizes in ``cell``, with ``hint`` if it is given.

    ``fn`` is called with tensors of the traced layouts and the structure's constants. ``bind``
    takes a tensor that the model holds and returns its place. ``assume``: whether to note what was
    taken for granted. Raises TraceFailed, SizeBranch, UnsupportedOutput or UnsupportedSideEffect.
    """
    hint = hints(cell) if hint is None else hint
    examples = [call.example(leaf, structure.dims, cell, hint) for leaf in structure.tensors]
    objects = call.constants(structure)
    entry = call.entry(structure)
    try:
        with torch.inference_mode():
            captured = capture(entry, (fn, objects, *examples))
    except PiecewiseError:
        raise
    except Exception as error:  # Dynamo's own kinds, and whatever the model's code raised
        raise _failed(error, structure, hint) from error.with_traceback(None)
    graph = captured.graph
    refuse_traced(captured)
    unwrap(graph)
    symbols = _symbols(captured, structure)
    asked = guards.collect(captured.shape_env)
    held = guards.region(asked, symbols, cell, hint, structure.dims, config.legal_cuts)
    try:
        inputs, output = read_off(captured, structure, (fn, objects), examples, objects, bind)
    finally:
        for effect in captured.side_effects:
            effect.undo()
    clean(graph)
    assumptions = captured.assume(fn, objects) if assume else None
    asks = questions.mentions(captured.code) or bool(written_by_layout(graph.graph))
    answers = () if assumptions is None else (answer for _, _, answer in assumptions.facts)
    words = questions.words(captured.code)
    refuse_addresses(words)
    asks = asks or questions.named(answers) or questions.IDENTITY in words
    read = questions.asks(captured.code)
    keeps = tuple(place for effect in captured.side_effects for place in effect.kept)
    found = () if assume else branches(asked, symbols, structure.dims)
    of = (graph, inputs, symbols, held.box, output, assumptions, asks, read, words)
    return Traced(*of, held.cuts, keeps, tuple(found))


def _failed(error: Exception, structure: Structure, hint: Sizes) -> TraceFailed:
    refused = refused_lock(str(error), dynamo.place_of(error))
    return refused or TraceFailed(_explain(error, structure, hint))


def _explain(error: Exception, structure: Structure, hint: Sizes) -> str:
    dims = structure.dims
    sizes = ", ".join(f'"{d.name}" at {n}' for d, n in zip(dims, hint, strict=True))
    tried = f"\nTraced with dim {sizes}; every size in bounds must work" if sizes else ""
    tried += ", or Dim(min, max) is to be narrowed to those that do." if sizes else ""
    if len(dims) > 1:
        tried += " Dims that are always equal need one Dim name."
    place = dynamo.place_of(error)
    own = isinstance(error, dynamo.trace_errors)
    told = f"{'' if own else f'{type(error).__name__}: '}{str(error).strip()}"
    # The model's own message may hold what it was given.
    what = "\n".join(cut_short(line, _LINE) for line in told.splitlines())
    held = held_otherwise(structure, hint, told)
    if held:
        return f"{held}. Traced{', at ' + place if place else ''}: {what}"
    return (
        f"the model cannot be traced to one whole graph, which piecewise needs"
        f"{', at ' + place if place else ''}: {what}{_told(told)}{tried}"
        f"{forgotten(structure, told)}\n"
        "Change the code named above, compile a submodule that has none of it, or use pw.record."
    )


def _told(told: str) -> str:
    """What to write where the answer to a question depends on data."""
    if "guard on data-dependent expression" not in told:
        return ""
    return (
        "\nA size or a number that data decides is compared there. Where it always compares alike, "
        "say so before: torch._check(rows.shape[0] != 0), torch._check(start + length <= 32); "
        "a call for which it does not hold is then an error. Where both happen, piecewise has no "
        "graph."
    )


def _symbols(captured: Capture, structure: Structure) -> dict[sympy.Symbol, int]:
    """Every symbol that stands for a dim, by the fake tensors that Dynamo made of the examples."""
    place = {d.name: i for i, d in enumerate(structure.dims)}
    env = captured.shape_env
    by_name: dict[str, int] = {}
    for symbol, sources in env.var_to_sources.items():
        for source in sources:
            name = dynamo.source_name(source)
            by_name.setdefault(str(symbol), -1)
            for leaf in structure.tensors:
                for dim, named in leaf.dims.items():
                    if name == f"L['t{leaf.index}'].size()[{dim}]":
                        by_name[str(symbol)] = place[named.name]
    return {s: by_name[str(s)] for s in env.var_to_sources if by_name.get(str(s), -1) >= 0}
