"""What a traced program cannot do, though Dynamo follows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from piecewise_core.errors import TraceFailed, UnsupportedSideEffect
from piecewise_core.graph import questions
from piecewise_core.graph.effects import writes
from piecewise_core.graph.facts import OF_CALLS
from piecewise_core.graph.frame import Capture
from piecewise_core.graph.memory import storages
from piecewise_core.graph.names import source_of
from piecewise_core.graph.quantized import quantizing
from piecewise_core.graph.sideeffects import SideEffect

__all__ = ["refuse_addresses", "refuse_side_effects", "refuse_traced"]


def refuse_traced(captured: Capture, repeated: Sequence[SideEffect] = ()) -> None:
    """Raise TraceFailed for what a frame holds that no graph can repeat; ``repeated`` can be."""
    repeated = (*repeated, *captured.kept_up)
    others = [effect for effect in captured.side_effects if effect not in repeated]
    refuse_side_effects(others, captured.graph.graph)
    _refuse_quantized(captured.graph.graph)


def refuse_addresses(words: frozenset[str]) -> None:
    """Raise TraceFailed where code names an address."""
    named = sorted(words & questions.ADDRESSES)
    if named:
        raise TraceFailed(
            f"the model's code names Tensor.{named[0]}: where a tensor lies in memory is another "
            "answer at every call, and a trace would keep that of its examples. Take the question "
            "out of the compiled part"
        )


def refuse_side_effects(effects: Sequence[SideEffect], graph: torch.fx.Graph) -> None:
    """Raise UnsupportedSideEffect where one of ``effects`` leaves something else behind."""
    changes = [e for e in effects if e.changes]
    if changes:
        listed = "; ".join(f"{e.what} at {e.where}" for e in changes)
        refusal = UnsupportedSideEffect(
            f"the model changes Python objects that outlive the call: {listed}. A traced program "
            "cannot repeat that: keep the value in a tensor or buffer and write to it in place, or "
            "move the change out of the compiled part"
            + (f". {_ORDER}" if any(e.reorders for e in changes) else "")
        )
        refusal.of_arguments = all(OF_CALLS.search(e.what) for e in changes)
        refusal.writes = _writes_inputs(graph)
        refusal.places = tuple(place for e in changes for place in e.places)
        if all(e.undoable for e in changes) and not refusal.of_arguments:
            refusal.undo = [e.undo for e in changes]
        raise refusal


def _refuse_quantized(graph: torch.fx.Graph) -> None:
    node = quantizing(graph)
    if node is not None:
        raise TraceFailed(
            f"the model makes a quantized tensor at {source_of(node) or 'an unknown line'}, which "
            "torch traces as one of floats. Quantize outside of the compiled part, use torchao, or "
            "torch.compile(backend='piecewise'), where such graphs run as written"
        )


_ORDER = (
    "A memo is served where only calls that fill it write to it: take out what moves entries that "
    "are there (move_to_end), or keep the memo in a plain dict"
)


def _writes_inputs(graph: torch.fx.Graph) -> bool:
    """Whether the program writes to tensors that are not its own."""
    written = frozenset().union(*map(writes, graph.nodes))
    return any(storages(node) & written for node in graph.nodes if node.op == "placeholder")
