"""Inductor as a piece compiler, through ``torch._inductor.standalone_compile``.

Version notes, all of them: ``standalone_compile(gm, inputs, dynamic_shapes=..., options=...)``,
``CompiledArtifact.save`` and ``load`` have the same form in torch 2.11 and 2.13; 2.13 adds
keywords that are not used here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.compiler.config
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import TracingContext
from torch.fx.experimental.proxy_tensor import make_fx

from piecewise_core.compile.residuals import keep_sums_fusable
from piecewise_core.graph import torch_private
from piecewise_core.protocols import CompiledGraph

if TYPE_CHECKING:
    from piecewise_core.config import Config

__all__ = ["InductorCompiler"]

logger = logging.getLogger(__name__)

_SETTINGS: Mapping[str, Any] = {
    # Core checks inputs before a piece runs, and operators' outputs once per target.
    "size_asserts": False,
    "alignment_asserts": False,
}


class InductorCompiler:
    """Compiles pieces with Inductor.

    ``prepare``: called before the first compilation; raises CompilerUnavailable when the
    compiler's tools are missing, and returns further settings for this machine. ``settings``:
    Inductor configuration, by its own names.
    """

    name = "inductor"

    def __init__(
        self,
        prepare: Callable[[], Mapping[str, Any] | None] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._prepare = prepare
        self._settings: dict[str, Any] = {**_SETTINGS, **(settings or {})}

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

        self.get_ready()
        # Inductor's own caches know a symbol by its name, not by its range, and code may rest on
        # the range: without a tag, code for [1, 8] would be handed out for [33, 64].
        tag = f"{torch.compiler.config.cache_key_tag}piecewise:{key.partition('-')[2]}"
        with (
            torch_private.oblivious_sizes(),
            torch.compiler.config.patch(cache_key_tag=tag),  # type: ignore[attr-defined]
        ):
            lowered = _lowered(graph, example_inputs)
            if _on_gpu(example_inputs):
                keep_sums_fusable(lowered.graph)
                lowered.recompile()
            artifact: Any = standalone_compile(
                lowered,
                list(example_inputs),
                dynamic_shapes="from_tracing_context",
                options={"config_patches": dict(self._settings)},
            )
        return CompiledGraph(artifact, lambda: _dump(artifact))

    def load(self, handle: bytes) -> CompiledGraph:
        """Load what a handle gave, in any process of this machine with this torch."""
        from torch._inductor.standalone_compile import CompiledArtifact

        with tempfile.TemporaryDirectory(prefix="piecewise-") as folder:
            path = Path(folder) / "artifact"
            path.write_bytes(handle)
            return CompiledGraph(CompiledArtifact.load(path=str(path), format="binary"))

    def hash_factors(self) -> Mapping[str, str]:
        """Torch's own key of its code, the settings, and the threads kernels are made for."""
        from torch._inductor.codecache import torch_key

        settings = {f"inductor.{n}": repr(v) for n, v in sorted(self._settings.items())}
        return {
            "torch": torch.__version__,
            "torch_key": torch_key().hex(),
            "threads": str(torch.get_num_threads()),
            **settings,
        }

    def get_ready(self) -> None:
        """Make the compiler's one-time checks now rather than in the first compilation."""
        if self._prepare is not None:
            self._settings.update(self._prepare() or {})
            self._prepare = None


def _on_gpu(inputs: Sequence[Any]) -> bool:
    return any(isinstance(i, torch.Tensor) and i.device.type != "cpu" for i in inputs)


def _lowered(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> torch.fx.GraphModule:
    """The graph in ATen operators, which Inductor's caches can key and save.

    Torch functions and tensor methods are what its caches refuse. A graph that cannot be
    lowered by itself is compiled as it is.
    """
    mode = TracingContext.get().fake_mode
    if mode is None:
        return graph
    try:
        with torch.inference_mode(False), torch.no_grad(), enable_python_dispatcher(), mode:
            # A lambda: make_fx counts the parameters of a bound forward wrongly.
            traced = make_fx(lambda *args: graph(*args), _allow_non_fake_inputs=True)(*inputs)
    except Exception as error:
        logger.debug("compiled without lowering first: %s", error)
        return graph
    return traced


def _dump(artifact: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="piecewise-") as folder:
        path = Path(folder) / "artifact"
        artifact.save(path=str(path), format="binary")
        return path.read_bytes()
