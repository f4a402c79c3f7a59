"""What the models of one process share: the compiler of their pieces, and their static graphs."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import piecewise_core as pw

__all__ = ["compiler", "report", "say"]

logger = logging.getLogger("vllm.piecewise")


@functools.cache
def compiler(device_type: str, keep: bool) -> pw.GraphCompiler:
    """Compiles the pieces of all models on ``device_type``. ``keep``: in the compile store."""
    import piecewise_core as pw

    config = pw.Config().with_env()
    made = pw.GraphCompiler(config, device_type=device_type, name="vLLM", keep=keep)
    made.graphs.tell = functools.partial(logger.warning, "piecewise-vllm: %s")
    return made


@functools.cache
def say(made: Any, model: str = "") -> None:
    """Log the summary of a compiler, of a model, or of static graphs, once."""
    logger.info("piecewise-vllm: %s", made.summary())


def report(worker: object = None) -> str:
    """What was compiled, loaded and captured in this process, a line for each.

    Takes and ignores a worker, so that ``llm.collective_rpc(report)`` asks the engine's.
    """
    from vllm.platforms import current_platform

    kind = str(current_platform.device_type)
    found = [made for made in (compiler(kind, True), compiler(kind, False)) if made.artifacts]
    lines = [line for made in found for line in (made.summary(), made.explain())]
    return "\n".join([*lines, *compiler(kind, True).graphs.lines()]) or "nothing was compiled here"
