"""What a platform's plugin may use of core besides Protocols, hooks, errors and Config.

Part of ``API_VERSION``: a name stays, with what it takes and gives, as long as the major version
does. Nothing here is imported before it is asked for, so that a plugin's module may import
``torch_build`` from here and still not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piecewise_core.capture.accelerator_driver import AcceleratorGraphDriver
    from piecewise_core.capture.hostvalues import host_values
    from piecewise_core.capture.torch_advice import Advice
    from piecewise_core.capture.torch_driver import TorchGraphDriver
    from piecewise_core.capture.torch_runtime import TorchRuntime
    from piecewise_core.compile.inductor import InductorCompiler
    from piecewise_core.compile.native_code import is_archive
    from piecewise_core.compile.native_piece import NativePiece
    from piecewise_core.compile.private_caches import private_caches
    from piecewise_core.compile.source_library import SourceLibrary
    from piecewise_core.config_cache import cache_directory
    from piecewise_core.graph.garbage import no_collection
    from piecewise_core.interpreter import careful_children
    from piecewise_core.ownership import foreign, make_private
    from piecewise_core.plugins.torchbuild import torch_build
    from piecewise_core.rewrites.entry import GraphRewrite
    from piecewise_core.rewrites.one_row_products import one_row_product, one_row_products
    from piecewise_core.rewrites.residual_sums import residual_sums
    from piecewise_core.store.machine import machine_factors
    from piecewise_core.torch_compat import pytree
    from piecewise_core.torch_compat.cuda import current_device, raw_stream, triton_cache_dir
    from piecewise_core.torch_compat.dispatcher import TorchDispatchMode, without_modes
    from piecewise_core.torch_compat.inductor import (
        config_if_imported,
        inductor_settings,
        vector_isas,
    )
    from piecewise_core.torch_compat.libraries import has_mkl, mkldnn_is_on
    from piecewise_core.torch_compat.operators import (
        HigherOrderOperator,
        changes_itself,
        schema_of,
        schema_or_none,
    )
    from piecewise_core.torch_compat.storages import memory_key, same_addresses, storage_key
    from piecewise_core.torch_compat.symmetric import torch_symmetric_memory

__all__ = [
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
]

_HOMES = {
    "AcceleratorGraphDriver": "capture.accelerator_driver",
    "Advice": "capture.torch_advice",
    "GraphRewrite": "rewrites.entry",
    "HigherOrderOperator": "torch_compat.operators",
    "InductorCompiler": "compile.inductor",
    "NativePiece": "compile.native_piece",
    "SourceLibrary": "compile.source_library",
    "TorchDispatchMode": "torch_compat.dispatcher",
    "TorchGraphDriver": "capture.torch_driver",
    "TorchRuntime": "capture.torch_runtime",
    "cache_directory": "config_cache",
    "careful_children": "interpreter",
    "changes_itself": "torch_compat.operators",
    "config_if_imported": "torch_compat.inductor",
    "current_device": "torch_compat.cuda",
    "foreign": "ownership",
    "has_mkl": "torch_compat.libraries",
    "host_values": "capture.hostvalues",
    "inductor_settings": "torch_compat.inductor",
    "is_archive": "compile.native_code",
    "machine_factors": "store.machine",
    "make_private": "ownership",
    "memory_key": "torch_compat.storages",
    "mkldnn_is_on": "torch_compat.libraries",
    "no_collection": "graph.garbage",
    "one_row_product": "rewrites.one_row_products",
    "one_row_products": "rewrites.one_row_products",
    "private_caches": "compile.private_caches",
    "pytree": "torch_compat.pytree",
    "raw_stream": "torch_compat.cuda",
    "residual_sums": "rewrites.residual_sums",
    "same_addresses": "torch_compat.storages",
    "schema_of": "torch_compat.operators",
    "schema_or_none": "torch_compat.operators",
    "storage_key": "torch_compat.storages",
    "torch_build": "plugins.torchbuild",
    "torch_symmetric_memory": "torch_compat.symmetric",
    "triton_cache_dir": "torch_compat.cuda",
    "vector_isas": "torch_compat.inductor",
    "without_modes": "torch_compat.dispatcher",
}
"""Name -> the module of core that defines it, or that it is."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"piecewise_core.{_HOMES[name]}")
    return getattr(home, name, home)


def __dir__() -> list[str]:
    return __all__
