"""Inductor, imported when it is first needed; known in 2.11 to 2.13.

``standalone_compile(gm, inputs, dynamic_shapes=..., options=..., aot=...)`` and
``CompiledArtifact.save`` and ``load`` have the same form in 2.11 and 2.13; 2.13 adds keywords that
are not used here. ``config._config`` holds each switch's ``default``. There is no fallback but for
Triton kernels: ``PyCodeCache.modules`` has the modules of generated code, kernels are globals of
these, each a ``CachingAutotuner`` with ``launchers``, one for each configuration that it may run
in. Where a torch lacks one of these, nothing is known of any kernel.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from piecewise_core.torch_compat.lookup import needed

__all__ = [
    "artifact_class",
    "cache_dir",
    "config_if_imported",
    "configurations",
    "cudagraph_policy_class",
    "force_stride_order",
    "inductor_config",
    "inductor_settings",
    "keep_one",
    "kernel_source",
    "kernels_loaded",
    "lowering_tables",
    "standalone_compile",
    "switch_defaults",
    "torch_key",
    "vector_isas",
]

_TABLES: Mapping[str, tuple[str, ...]] = {
    "torch._inductor.decomposition": ("decompositions", "fast_random_decomps"),
    "torch._inductor.lowering": ("lowerings", "user_lowerings"),
}


def standalone_compile(*args: Any, **kwargs: Any) -> Any:
    """Compile a graph to an artifact."""
    with needed():
        from torch._inductor import standalone_compile as compile_graph
    return compile_graph(*args, **kwargs)


def artifact_class() -> Any:
    """The class of such an artifact, whose ``load`` reads one from a file."""
    with needed():
        from torch._inductor.standalone_compile import CompiledArtifact
    return CompiledArtifact


def inductor_config() -> Any:
    """The module of Inductor's switches."""
    with needed():
        from torch._inductor import config
    return config


def inductor_settings(settings: Mapping[str, Any]) -> AbstractContextManager[None]:
    """A context in which Inductor's switches have these values, by its own names."""
    found: AbstractContextManager[None] = inductor_config().patch(dict(settings))
    return found


def config_if_imported() -> Any:
    """The same, or None while nobody has imported it, which takes a second."""
    return sys.modules.get("torch._inductor.config")


def switch_defaults() -> dict[str, Any]:
    """Inductor's switches and the values that they have unless somebody changes them."""
    with needed():
        entries: dict[str, Any] = inductor_config()._config
        return {name: entry.default for name, entry in entries.items()}


def cache_dir() -> str:
    """Where Inductor keeps what it makes."""
    with needed():
        from torch._inductor.runtime.cache_dir_utils import cache_dir as found
    return found()


def torch_key() -> bytes:
    """A digest of torch's own files."""
    with needed():
        from torch._inductor.codecache import torch_key as found
    return found()


def force_stride_order() -> Any:
    """The operator that lays a tensor out in given strides."""
    with needed():
        from torch._inductor.inductor_prims import force_stride_order as found
    return found


def lowering_tables() -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Inductor's tables of how operators are lowered, of modules that somebody has imported."""
    for module, names in _TABLES.items():
        for name in names:
            table = getattr(sys.modules.get(module), name, None)
            if isinstance(table, Mapping):
                yield name, table


def vector_isas() -> tuple[Any, Any, str, Any]:
    """Inductor's switches, its module of instruction sets, a program that uses them, and a context
    in which it keeps what it builds in a given directory.
    """
    with needed():
        from torch._inductor import config, cpu_vec_isa
        from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

        return config, cpu_vec_isa, cpu_vec_isa.VecISA._avx_code, temporary_cache_dir


@contextmanager
def kernels_loaded() -> Iterator[list[Any]]:
    """Inside, Inductor loads code; behind it the list has the Triton kernels of that code."""
    before = _modules()
    found: list[Any] = []
    known = set(map(id, before))
    yield found
    made = [module for module in _modules() if id(module) not in known]
    kind = getattr(sys.modules.get(_HEURISTICS), "CachingAutotuner", ())
    found += [each for module in made for each in vars(module).values() if isinstance(each, kind)]


_HEURISTICS = "torch._inductor.runtime.triton_heuristics"


def _modules() -> list[Any]:
    cache = getattr(sys.modules.get("torch._inductor.codecache"), "PyCodeCache", None)
    return list(getattr(cache, "modules", ()))


def kernel_source(kernel: Any) -> str:
    """The name of a Triton kernel's source, which tells it from kernels of any other."""
    return os.path.basename(str(getattr(kernel, "filename", "")))


def configurations(kernel: Any) -> list[str]:
    """Those in which a Triton kernel may still run, as text; measured ones have but one."""
    try:
        configs = [launcher.config for launcher in kernel.launchers]
        return [f"{sorted(c.kwargs.items())} {c.num_warps} {c.num_stages}" for c in configs]
    except AttributeError:
        return []


def keep_one(kernel: Any, place: int) -> None:
    """Have a Triton kernel run in the configuration at ``place``, as if it had been measured."""
    kernel.launchers = [kernel.launchers[place]]


def cudagraph_policy_class() -> Any:
    """What ``torch._inductor.config.cudagraph_policy`` takes; None before torch 2.13."""
    try:
        from torch._inductor.cudagraph_utils import CUDAGraphPolicy
    except ImportError:
        return None
    return CUDAGraphPolicy
