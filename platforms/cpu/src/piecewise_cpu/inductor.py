"""Inductor, whose pieces tell captures what kernels they call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from piecewise_core.building_blocks import InductorCompiler
from piecewise_core.protocols import CompiledGraph
from piecewise_cpu.driver import CpuGraphDriver
from piecewise_cpu.linear import library_function

if TYPE_CHECKING:
    from piecewise_core.config import Config

__all__ = ["CpuInductor"]


class CpuInductor(InductorCompiler):
    """Inductor for the CPU. ``driver``: whose captures are told."""

    def __init__(
        self, driver: CpuGraphDriver, prepare: Callable[[], Mapping[str, Any] | None]
    ) -> None:
        super().__init__(prepare=prepare)
        self._driver = driver

    def compile(
        self,
        graph: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        key: str,
        config: Config,
    ) -> CompiledGraph:
        """Compile ``graph`` for the ranges of the inputs' symbols."""
        made = super().compile(graph, example_inputs, key=key, config=config)
        return self._announcing(made)

    def load(self, handle: bytes) -> CompiledGraph:
        """Load what a handle gave."""
        return self._announcing(super().load(handle))

    def library(self, chosen: str, name: str) -> Any:
        """OneDNN's products where the piece was made for them, else torch's."""
        return library_function(chosen, name)

    def _announcing(self, made: CompiledGraph) -> CompiledGraph:
        run, driver = made.run, self._driver

        def piece(*args: Any) -> Sequence[Any]:
            recording = driver.recording
            found: Sequence[Any] = run(*args) if recording is None else recording.piece(run, args)
            return found

        return CompiledGraph(piece, made.handle)
