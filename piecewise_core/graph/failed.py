"""What is said of a model that cannot be traced."""

from __future__ import annotations

from piecewise_core.errors import TraceFailed
from piecewise_core.graph.forgotten import forgotten
from piecewise_core.graph.heldsizes import held_otherwise
from piecewise_core.graph.locks import refused_lock
from piecewise_core.graph.structure import Structure
from piecewise_core.graph.wording import cut_short
from piecewise_core.ranges import Sizes
from piecewise_core.torch_compat import dynamo

__all__ = ["failed"]

_LINE = 1000
"""Characters of a line of Dynamo's that are shown."""


def failed(error: Exception, structure: Structure, hint: Sizes) -> TraceFailed:
    """What to raise for what Dynamo, or the code, raised when it was traced at ``hint``."""
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
