"""What the models of one process share: the compiler of their pieces, and the graphs' books."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import piecewise_core as pw
    from piecewise_vllm.captures import Captures

__all__ = ["captures", "compiler", "report", "summary"]


@functools.cache
def compiler(device_type: str, keep: bool) -> pw.GraphCompiler:
    """Compiles the pieces of all models on ``device_type``. ``keep``: in the compile store."""
    import piecewise_core as pw

    config = pw.Config().with_env()
    return pw.GraphCompiler(config, device_type=device_type, name="vLLM", keep=keep)


@functools.cache
def captures(device_type: str) -> Captures:
    """The static graphs of all models on ``device_type``."""
    from piecewise_vllm.captures import Captures

    return Captures(compiler(device_type, True).declared)


def report(worker: object = None) -> str:
    """What was compiled, loaded and captured in this process, a line for each.

    Takes and ignores a worker, so that ``llm.collective_rpc(report)`` asks the engine's.
    """
    from vllm.platforms import current_platform

    kind = str(current_platform.device_type)
    found = [made for made in (compiler(kind, True), compiler(kind, False)) if made.artifacts]
    lines = [line for made in found for line in (summary(made), made.explain())]
    return "\n".join([*lines, *captures(kind).lines()]) or "nothing was compiled here"


def summary(made: pw.GraphCompiler) -> str:
    """One line: how many pieces there are, and where their code is from."""
    stats, seconds = made.stats(), sum(a.seconds for a in made.artifacts)
    return (
        f"{stats.compilable_pieces} pieces, {stats.unique_pieces} of them distinct: "
        f"{stats.compilations} compiled, {stats.cache_hits} loaded, {stats.dedup_hits} shared, "
        f"{seconds:.1f} s"
    )
