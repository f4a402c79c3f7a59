"""What API version 1.1 added to 1.0: not edited once 1.1 is released, see test_frozen.py."""

# ruff: noqa: F821
from __future__ import annotations

from typing import Protocol

API_VERSION = (1, 1)


class Rewrite(Protocol):
    name: str
    level: str
    key: str

    def apply(
        self, graph: torch.fx.GraphModule, is_splitting: Callable[[torch.fx.Node], bool]
    ) -> None: ...


HOOKS = {"piecewise_rewrites": ["platform", "config"]}

FIELDS = {
    "Capabilities": ("symmetric_memory",),
    "CompiledGraph": ("serves", "freezes", "freeze"),
    "ReplayCall": ("host",),
}
"""What values gained, behind the fields that they had."""

METHODS = {
    "RuntimeExtras": {"elapsed": ["self", "run"], "stream_order": ["self"]},
    "GraphExtras": {
        "graph_like": ["self", "other"],
        "executables": ["self", "pool"],
        "wait_stream": ["self", "stream", "other"],
    },
}
"""Optional methods that protocols gained."""

ERRORS = ("PieceDeclined",)

LOWERING = {
    "Layout": ("dtype", "shape", "stride", "offset", "input", "shared"),
    "Lowered": ("graph", "results"),
    "Results": ("layouts", "written", "symbols"),
}
"""Values of `protocols.lowering`, which also has ``lower(graph, example_inputs)``."""

BUILDING_BLOCKS = (
    "AcceleratorGraphDriver",
    "Advice",
    "GraphRewrite",
    "HigherOrderOperator",
    "InductorCompiler",
    "NativePiece",
    "SourceLibrary",
    "TorchDispatchMode",
    "TorchGraphDriver",
    "TorchRuntime",
    "cache_directory",
    "careful_children",
    "changes_itself",
    "config_if_imported",
    "current_device",
    "foreign",
    "has_mkl",
    "host_values",
    "inductor_settings",
    "is_archive",
    "machine_factors",
    "make_private",
    "memory_key",
    "mkldnn_is_on",
    "no_collection",
    "one_row_product",
    "one_row_products",
    "private_caches",
    "pytree",
    "raw_stream",
    "residual_sums",
    "same_addresses",
    "schema_of",
    "schema_or_none",
    "storage_key",
    "torch_build",
    "torch_symmetric_memory",
    "triton_cache_dir",
    "vector_isas",
    "without_modes",
)
