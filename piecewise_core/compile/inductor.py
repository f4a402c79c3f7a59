"""Inductor as a piece compiler, through ``torch._inductor.standalone_compile``.

Version notes, all of them: ``standalone_compile(gm, inputs, dynamic_shapes=..., options=...)``
has the same form in torch 2.11 and 2.13; 2.13 adds keywords that are not used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.experimental import _config as fx_config

from piecewise_core.protocols import CompiledGraph

if TYPE_CHECKING:
    from piecewise_core.config import Config

__all__ = ["InductorCompiler"]

_SETTINGS: Mapping[str, Any] = {
    # Core checks inputs before a piece runs and operators' outputs once per target.
    "size_asserts": False,
    "alignment_asserts": False,
}


class InductorCompiler:
    """Compiles pieces with Inductor.

    ``prepare``: called before the first compilation; raises CompilerUnavailable when the
    compiler's tools are missing, and may point Inductor at answers found on earlier runs.
    ``settings``: Inductor configuration, by its own names.
    """

    name = "inductor"

    def __init__(
        self,
        prepare: Callable[[], None] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._prepare = prepare
        self._settings = {**_SETTINGS, **(settings or {})}

    def compile(
        self,
        graph: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        key: str,
        config: Config,
    ) -> CompiledGraph:
        """Compile ``graph`` for the ranges of the inputs' symbols."""
        from torch._inductor import standalone_compile

        if self._prepare is not None:
            self._prepare()
            self._prepare = None
        with fx_config.patch(backed_size_oblivious=True):  # type: ignore[no-untyped-call]
            artifact = standalone_compile(
                graph,
                list(example_inputs),
                dynamic_shapes="from_tracing_context",
                options={"config_patches": dict(self._settings)},
            )
        return CompiledGraph(artifact, artifact)

    def hash_factors(self) -> Mapping[str, str]:
        """Torch's own key of its code, and the settings."""
        from torch._inductor.codecache import torch_key

        settings = sorted(self._settings.items())
        return {"torch": torch.__version__, "torch_key": torch_key().hex(), **{
            f"inductor.{name}": repr(value) for name, value in settings
        }}  # fmt: skip
