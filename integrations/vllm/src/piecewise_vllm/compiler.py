"""vLLM's compiler interface over piecewise's scheduler and store."""

from collections.abc import Callable
from typing import Any

from vllm.compilation.compiler_interface import CompilerInterface, set_inductor_config
from vllm.platforms import current_platform

import piecewise_core as pw
from piecewise_core.building_blocks import inductor_settings
from piecewise_vllm.engine import compiler, say

__all__ = ["PiecewiseCompiler"]


class PiecewiseCompiler(CompilerInterface):  # type: ignore[misc]
    """Compiles each distinct piece once per range, of all models of the process.

    vLLM makes one for each model, and is given no handles to keep: it asks for every piece at
    every start, and what was compiled before comes from the compile store.
    """

    name = "piecewise"

    def __init__(self) -> None:
        self._keep, self._model = True, ""

    def _compiler(self) -> pw.GraphCompiler:
        return compiler(str(current_platform.device_type), self._keep)

    def initialize_cache(
        self, cache_dir: str, disable_cache: bool = False, prefix: str = ""
    ) -> None:
        self._keep, self._model = not disable_cache, f"{self._model} {prefix}".strip()

    def compute_hash(self, vllm_config: Any) -> str:
        self._model = str(getattr(vllm_config.model_config, "model", "")).rpartition("/")[2]
        try:
            return self._compiler().fingerprint()
        except pw.errors.StoreError:
            return ""  # what vLLM keeps under it is the traced graph, which holds all the same

    def compile(
        self,
        graph: Any,
        example_inputs: Any,
        compiler_config: Any,
        compile_range: Any,
        key: Any = "",
    ) -> tuple[Callable[..., Any] | None, Any | None]:
        settings, index = dict(compiler_config or {}), str(key).rpartition("_")[2]
        set_inductor_config(settings, compile_range)
        sizes = pw.Range(compile_range.start, compile_range.end)
        with inductor_settings(settings):  # vLLM's passes are among them, and so in the key
            run = self._compiler().compile(graph, sizes, f"{self._model} piece {index}")
        return (self._saying(run) if index == "0" else run), None

    def _saying(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The first piece: at its first call all pieces are there, which the log tells once."""

        def first(*args: Any) -> Any:
            say(self._compiler(), self._model)
            return run(*args)

        return first
