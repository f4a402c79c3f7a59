"""A compiled piece as the function that Inductor generated and what torch puts around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from piecewise_core.compile.native_code import Call, NativeCode, from_module
from piecewise_core.compile.wrapper_source import NotPortable
from piecewise_core.torch_compat.aot import (
    entry_of,
    generated_module,
    without_autocast,
    wrappers_from,
    wrappers_of,
)
from piecewise_core.torch_compat.switches import any_autocast

__all__ = ["around", "native_code"]


def native_code(artifact: Any) -> tuple[NativeCode, Call]:
    """The code behind what ``standalone_compile(aot=True)`` returned, and its function as loaded.

    Raises NotPortable.
    """
    entry = entry_of(artifact)
    graph = entry.compiled_fw.result
    if graph.constants or getattr(graph, "torchbind_constants", None):
        raise NotPortable("it holds constant tensors or objects")
    if graph.inputs_to_check:
        raise NotPortable("it copies misaligned inputs")
    module = generated_module(graph.cache_key)
    if module is None:
        raise NotPortable("its generated module is not in Inductor's cache")
    code = from_module(graph.source_code, module, wrappers_of(entry))
    code = replace(code, autocast=any_autocast())
    call: Call = module.call
    return code, call


def around(code: NativeCode) -> Callable[[Call], Call] | None:
    """What puts torch's wrappers around a generated function; None where there are none.

    Code that was compiled inside of autocast has its conversions, and runs without.
    """
    inner = wrappers_from(code.wrappers) if code.wrappers else None
    if not code.autocast:
        return inner
    return lambda call: _without_autocast(call if inner is None else inner(call))


def _without_autocast(call: Call) -> Call:
    def run(args: list[Any]) -> Any:
        with without_autocast():
            return call(args)

    return run
