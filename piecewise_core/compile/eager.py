"""The compiler that compiles nothing: a piece runs as it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from piecewise_core.graph.closing import closing
from piecewise_core.protocols import CompiledGraph

if TYPE_CHECKING:
    import torch

    from piecewise_core.config import Config

__all__ = ["EagerCompiler"]


class EagerCompiler:
    """Runs each piece's operators one by one; for debugging, tests and broken toolchains."""

    name = "eager"

    def compile(
        self,
        graph: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        key: str,
        config: Config,
    ) -> CompiledGraph:
        """Return the graph's own code."""
        return CompiledGraph(closing(graph))

    def hash_factors(self) -> Mapping[str, str]:
        """Nothing: there is no artifact."""
        return {}
