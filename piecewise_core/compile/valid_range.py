"""One compilation and its valid range: the sizes on which a compiler's own guards hold.

A compiler may decide something from the example sizes and note it as a guard, expecting to be
called again when it fails. Nobody checks such guards at run time here, so they are read after
each compilation, and sizes that break one are not served by the code.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from piecewise_core.compile.artifact import NO_CODE
from piecewise_core.compile.examples import Job
from piecewise_core.compile.lowering import rewritten
from piecewise_core.config import Config
from piecewise_core.errors import PieceDeclined
from piecewise_core.graph.conditions import evaluator, implied
from piecewise_core.protocols import CompiledGraph, CompilerAdaptor
from piecewise_core.ranges import Box
from piecewise_core.rewrites import Rewrites
from piecewise_core.torch_compat.symbols import unreplaced

__all__ = ["Compilation", "compile_job", "valid_range"]

_LAYOUT_ONLY = ("_compute_stride", "_prims_common", "is_contiguous", "fake_impls.py")
"""Where a fake tensor's strides are worked out. Guards from there say that a dim is not 1 or 0;
they choose the stride of a dim that has at most one index, which no address depends on."""

_REPEATED = ("autograd_cache.py", "codecache.py")
"""Where Inductor's caches add again, as one, all the guards of the time when an entry was made."""

_DENSE = 1 << 14

NONE = Rewrites()


@dataclass(frozen=True)
class Compilation:
    """``serves``: the part of the job's box on which the code holds, None when nowhere. ``why``:
    the reason when that is not all of it.
    """

    compiled: CompiledGraph
    serves: Box | None
    why: str


def compile_job(
    adaptor: CompilerAdaptor,
    make: Callable[[], Job],
    key: str,
    config: Config,
    rewrites: Rewrites = NONE,
) -> Compilation:
    """Compile what ``make()`` gives. Raises what rewrites and compiler raise.

    A compiler's own cache repeats the guards of the first making without their places. When they
    cost sizes, the job is compiled once more under a key that no cache knows.
    """
    made, job = _attempt(adaptor, make, key, config, rewrites)
    if made.serves != job.box and _repeated_guards(job):
        made, _ = _attempt(adaptor, make, f"{key}-{secrets.token_hex(8)}", config, rewrites)
    return made


def _attempt(
    adaptor: CompilerAdaptor,
    make: Callable[[], Job],
    key: str,
    config: Config,
    rewrites: Rewrites,
) -> tuple[Compilation, Job]:
    job = make()
    with torch.inference_mode(), job.context():
        graph = rewritten(job.graph, job.inputs, rewrites)
        try:
            compiled = adaptor.compile(graph, job.inputs, key=key, config=config)
        except PieceDeclined as error:
            why = f"compiler {adaptor.name!r} declined it: {error}; it runs as written"
            return Compilation(NO_CODE, None, why), job
    return Compilation(compiled, *_served(adaptor.name, compiled, job)), job


def _served(name: str, compiled: CompiledGraph, job: Job) -> tuple[Box | None, str]:
    """Where the code holds, by its guards and by what the compiler says of it."""
    box, why = valid_range(job)
    said = compiled.serves
    if said is None or box is None:
        return box, why
    if len(said.ranges) != job.sizes or not all(r.is_whole for r in said.ranges):
        raise ValueError(
            f"CompiledGraph.serves is {said}; give one whole Range for each of the piece's "
            f"{job.sizes} sizes"
        )
    for place, dim in enumerate(job.dims):
        both = box.ranges[place].intersect(said.ranges[dim])
        if both is None:
            return None, f"compiler {name!r} made code for {said} only; it runs as written"
        if both != box.ranges[place]:
            why = f"compiler {name!r} made code for {said} only; other sizes run as written"
        box = box.replaced(place, both)
    return box, why


def valid_range(job: Job) -> tuple[Box | None, str]:
    """The part of the job's box on which its compiled code holds, and why not all of it.

    None when no box can be told; the piece must then run as written.
    """
    env = job.mode.shape_env
    if env is None:
        return job.box, ""
    symbols = _symbols(job)
    box, why = job.box, ""
    fixed = [(sympy.Eq(s, env.replace(s)), "its ranges") for s in symbols if env.replace(s) != s]
    guards = [(g.expr, str(g.sloc)) for g in env.guards]
    for expr, where in (*guards, *fixed):
        if expr == sympy.true or _harmless(expr, where):
            continue
        smaller = box if implied(expr, symbols, box) else _cut(expr, symbols, box)
        if smaller == box:
            continue
        why = f"the compiler fixed {expr} at {where}; other sizes run as written"
        if smaller is None:
            return None, why
        box = smaller
    return box, why


def _repeated_guards(job: Job) -> bool:
    """Whether the code came from a compiler's cache, so that nobody can tell its guards apart."""
    env = job.mode.shape_env
    guards = [] if env is None else env.guards
    return any(name in str(guard.sloc) for guard in guards for name in _REPEATED)


def _symbols(job: Job) -> dict[sympy.Symbol, int]:
    found: dict[sympy.Symbol, int] = {}
    for place, dim in enumerate(job.dims):
        size: Any = job.inputs[dim]
        # The symbol as it was made: by now the compiler may have put a number in its place.
        if hasattr(size, "node") and isinstance(unreplaced(size), sympy.Symbol):
            found[unreplaced(size)] = place
    return found


def _harmless(expr: sympy.Basic, where: str) -> bool:
    if not any(name in where for name in _LAYOUT_ONLY):
        return False
    return not (expr.atoms(sympy.Integer) - {sympy.Integer(0), sympy.Integer(1)})


def _cut(expr: sympy.Basic, symbols: dict[sympy.Symbol, int], box: Box) -> Box | None:
    """The largest end part of ``box`` on which a guard over one size holds."""
    used = list(expr.free_symbols)
    if len(used) != 1 or used[0] not in symbols:
        return None
    place = symbols[used[0]]
    bounds = box.ranges[place]
    if bounds.end - bounds.start > _DENSE:
        return None
    holds = evaluator(expr, used)
    sizes = list(bounds)
    bad = [place for place, size in enumerate(sizes) if not holds(size)]
    # The run of sizes that reaches highest: large sizes are where compiled code pays.
    while bad and bad[-1] == len(sizes) - 1:
        bad.pop()
        sizes.pop()
    if not sizes:
        return None
    served = bounds.clip(sizes[bad[-1] + 1] if bad else sizes[0], sizes[-1])
    return None if served is None else box.replaced(place, served)
