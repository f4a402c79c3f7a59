"""What our platform classes add to vLLM's: whose compiler and whose graph wrapper."""

import logging
import os
from typing import Any

__all__ = ["COMPILER", "Extended"]

logger = logging.getLogger("vllm.piecewise")

COMPILER = "piecewise_vllm.compiler.PiecewiseCompiler"


class _Default(str):
    """vLLM's "inductor" where the user named no backend: equal to it, and told apart from it.

    By the backend's name vLLM decides which custom operators there are and how its IR is lowered,
    before a platform has the last word. That is to be as for Inductor, which compiles here too.
    """


class Extended:
    """Comes before a platform class of vLLM's; all but the compiler stays that class's own."""

    @classmethod
    def get_compile_backend(cls) -> str:
        return COMPILER

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: Any) -> None:
        if vllm_config.compilation_config.backend == COMPILER:
            vllm_config.compilation_config.backend = _Default("inductor")
        super().apply_config_platform_defaults(vllm_config)  # type: ignore[misc]

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        from vllm.config import CompilationMode  # while it is imported, it asks for this class

        config, pieces = vllm_config.compilation_config, CompilationMode.VLLM_COMPILE
        ours = isinstance(config.backend, _Default) and config.mode == pieces
        super().check_and_update_config(vllm_config)  # type: ignore[misc]
        # The CPU's class has Inductor compile the whole at once: that is undone. It turns compiling
        # off for some models, and takes the eager backend when asked to: that is not.
        kept = config.mode in (pieces, CompilationMode.DYNAMO_TRACE_ONCE)
        if not ours or not kept or config.backend != "inductor":
            return
        if config.use_inductor_graph_partition:
            _warn(
                "use_inductor_graph_partition has Inductor cut the graph; vLLM's compiler does it"
            )
            return
        if os.environ.get("PIECEWISE_SPLITTING_OPS"):
            _warn("PIECEWISE_SPLITTING_OPS does nothing: vLLM cuts at its own splitting_ops")
        config.mode, config.backend = pieces, COMPILER
        if not cls.support_static_graph_mode():  # type: ignore[attr-defined]
            # vLLM leaves this None there, and then finds no range for any size.
            config.compile_sizes = [s for s in config.compile_sizes or () if isinstance(s, int)]
        # So that vLLM keeps the traced graph, and asks the compiler for its pieces at each start.
        # In the other form it keeps pieces itself, of Inductor's own making only.
        os.environ["VLLM_USE_MEGA_AOT_ARTIFACT"] = "0"


def _warn(what: str) -> None:
    logger.warning("piecewise-vllm: %s", what)
