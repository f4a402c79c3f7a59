"""One compilation and what became of it: the code, and the sizes that it holds for."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from piecewise_core.compile.examples import Job
from piecewise_core.compile.soundness import repeated_guards, served_box
from piecewise_core.config import Config
from piecewise_core.protocols import CompiledGraph, CompilerAdaptor
from piecewise_core.ranges import Box

__all__ = ["Verdict", "compile_and_judge"]


@dataclass(frozen=True)
class Verdict:
    """``serves``: the part of the job's box on which the code holds, None when nowhere. ``why``:
    the reason when that is not all of it.
    """

    compiled: CompiledGraph
    serves: Box | None
    why: str


def compile_and_judge(
    adaptor: CompilerAdaptor,
    make: Callable[[], Job],
    key: str,
    config: Config,
    passes: Iterable[Callable[[torch.fx.GraphModule], None]] = (),
) -> Verdict:
    """Compile what ``make()`` gives. Raises what passes and compiler raise.

    A compiler's own cache repeats the guards of the first making without their places. When they
    cost sizes, the job is compiled once more under a key that no cache knows.
    """
    verdict, job = _attempt(adaptor, make, key, config, passes)
    if verdict.serves != job.box and repeated_guards(job):
        verdict, _ = _attempt(adaptor, make, f"{key}-{secrets.token_hex(8)}", config, passes)
    return verdict


def _attempt(
    adaptor: CompilerAdaptor,
    make: Callable[[], Job],
    key: str,
    config: Config,
    passes: Iterable[Callable[[torch.fx.GraphModule], None]],
) -> tuple[Verdict, Job]:
    job = make()
    with torch.inference_mode(), job.context():
        for apply in passes:
            apply(job.graph)
        compiled = adaptor.compile(job.graph, job.inputs, key=key, config=config)
    return Verdict(compiled, *served_box(job)), job
