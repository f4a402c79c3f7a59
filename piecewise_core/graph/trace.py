"""Trace one region of sizes to one whole graph, and say where its inputs come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
from piecewise_core.graph.counted import Counted, Counting, countable
from piecewise_core.graph.effects import written_by_layout
from piecewise_core.graph.failed import failed
from piecewise_core.graph.frame import Capture, capture
from piecewise_core.graph.markers import CountUsed
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
from piecewise_core.ranges import Box, Sizes
from piecewise_core.torch_compat import dynamo

__all__ = ["Traced", "hints", "trace"]


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
    objects to which code that was traced writes what they hold. ``counted``: the numbers in objects
    that are others at each call, if there are any. ``counts``: places of such that it changes.
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
    counted: Counted | None = None
    counts: frozenset[str] = frozenset()

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
    counted: Collection[str] | None = None,
) -> Traced:
    """Trace ``fn`` for sizes in ``cell``, with ``hint`` if it is given.

    ``fn`` is called with tensors of the traced layouts and the structure's constants. ``bind``
    takes a tensor that the model holds and returns its place. ``assume``: whether to note what was
    taken for granted. ``counted``: places of numbers that are symbols, none included: numbers that
    are changed and are none are ``counts``, and nothing is to be served then. Raises TraceFailed,
    SizeBranch, UnsupportedOutput or UnsupportedSideEffect.
    """
    hint = hints(cell) if hint is None else hint
    examples = [call.example(leaf, structure.dims, cell, hint) for leaf in structure.tensors]
    objects = call.constants(structure)
    captured = _captured(structure, hint, (fn, objects, *examples), counted or ())
    graph, counting = captured.graph, Counting(captured, counted or (), objects)
    counts = countable(captured, objects) if counted is not None else frozenset()
    refuse_traced(captured, counting.effects if counts else ())
    unwrap(graph)
    symbols = _symbols(captured, structure)
    asked = counting.of_sizes(guards.collect(captured.shape_env))
    held = guards.region(asked, symbols, cell, hint, structure.dims, config.legal_cuts)
    try:
        with counting.marked():
            given = captured, structure, (fn, objects), examples, objects, bind
            inputs, output = read_off(*given, counting.places)
    except CountUsed as error:
        raise TraceFailed(str(error)) from None
    finally:
        for effect in captured.side_effects:
            effect.undo()
    clean(graph)
    assumptions = captured.assume(fn, objects) if assume else None
    asks = questions.mentions(captured.code) or bool(written_by_layout(graph.graph))
    answers = () if assumptions is None else (answer for _, _, answer in assumptions.facts)
    refuse_addresses(words := questions.words(captured.code))
    asks = asks or questions.named(answers) or questions.IDENTITY in words
    keeps = tuple(place for effect in captured.side_effects for place in effect.kept)
    of_sizes = () if assume else tuple(branches(asked, symbols, structure.dims))
    of = (graph, inputs, symbols, held.box, output, assumptions, asks)
    names = questions.asks(captured.code), words
    return Traced(*of, *names, held.cuts, keeps, of_sizes, counting.found(symbols), counts)


def _captured(
    structure: Structure, hint: Sizes, given: Sequence[Any], counted: Collection[str]
) -> Capture:
    """The frame around a call. ``given``: to its entry."""
    entry = call.entry(structure)
    try:
        with torch.inference_mode():
            return capture(entry, given, counted)
    except PiecewiseError:
        raise
    except Exception as error:  # Dynamo's own kinds, and whatever the model's code raised
        raise failed(error, structure, hint) from error.with_traceback(None)


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
