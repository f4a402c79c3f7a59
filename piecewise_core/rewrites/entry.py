"""One rewrite as core lists it, and a rewrite made of a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from piecewise_core.errors import CompileFailed, PiecewiseError, PluginError, TraceFailed
from piecewise_core.protocols import Rewrite

__all__ = ["CORE", "GraphRewrite", "ListedRewrite", "Test"]

CORE = "piecewise-core"

Test = Callable[[torch.fx.Node], bool]


def _never(node: torch.fx.Node) -> bool:
    return False


@dataclass
class GraphRewrite:  # not frozen: attributes of a Protocol may be set
    """A Rewrite whose ``apply`` is the function ``change``; the other fields are a Rewrite's.

    ``of_layouts``: of a program's, whether it goes by how splitting operators' results really lie.
    """

    name: str
    level: Literal["program", "piece"]
    key: str
    change: Callable[[torch.fx.GraphModule, Test], Any]
    lowered: bool = False
    of_layouts: bool = False

    def apply(self, graph: torch.fx.GraphModule, is_splitting: Test) -> None:
        """Change ``graph`` in place."""
        self.change(graph, is_splitting)


@dataclass(frozen=True)
class ListedRewrite:
    """``by``: who brought it, with the version. ``on``: False where a user switched it off.

    ``graph_pass``: the function, where it is a pass that became a rewrite, else None.
    """

    of: Rewrite
    by: str = CORE
    on: bool = True
    graph_pass: Callable[..., Any] | None = None

    @property
    def lowered(self) -> bool:
        """Whether it wants a piece in ATen operators."""
        return bool(getattr(self.of, "lowered", False))

    @property
    def of_layouts(self) -> bool:
        """Whether it wants a program with real strides, all cuts known."""
        return isinstance(self.of, GraphRewrite) and self.of.of_layouts

    @property
    def _kind(self) -> type[PiecewiseError]:
        if self.by != CORE:
            return PluginError
        return TraceFailed if self.of.level == "program" else CompileFailed

    def __call__(
        self, graph: torch.fx.GraphModule, is_splitting: Test = lambda node: False
    ) -> None:
        """Run it. An error names the rewrite and who brought it."""
        name, before = self.of.name, set(graph.graph.nodes)
        try:
            self.of.apply(graph, is_splitting)
        except PiecewiseError:
            raise
        except Exception as error:
            raise self._kind(
                f"{self.by}: its rewrite {name!r} failed with {type(error).__name__}: {error}; set "
                f"rewrites_off=({name!r},), and report it"
            ) from error
        if self.graph_pass is None:
            self._check(graph, before)
        graph.recompile()

    def _check(self, graph: torch.fx.GraphModule, before: set[torch.fx.Node]) -> None:
        """What comes next reads shapes and memory of every node from its ``meta``."""
        entry = "val" if self.lowered else "example_value"
        for node in graph.graph.nodes:
            if node not in before and node.op.startswith("call_") and entry not in node.meta:
                raise self._kind(
                    f"{self.by}: its rewrite {self.of.name!r} made {node.format_node()} without "
                    f"meta[{entry!r}], the fake tensor that it gives; set "
                    f"rewrites_off=({self.of.name!r},) until it does"
                )
