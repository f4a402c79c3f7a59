"""Private parts of Inductor and of what torch puts around its code; all uses are here.

Read in torch 2.11.0 and 2.13.0, alike in both: ``standalone_compile(aot=True)`` returns an
AOTCompiledArtifact, whose ``inner_fn.compiled_fn.serialize_fn()`` is a BundledAOTAutogradResult
holding a CompiledFxGraph without its code; ``PyCodeCache.modules`` holds that code's module under
the graph's ``cache_key``. ``torch._inductor.config._config`` holds each switch's ``default``.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from piecewise_core.compile.native_code import Call, NativeCode, from_module
from piecewise_core.compile.wrapper_source import NotPortable
from piecewise_core.graph.torch_private import any_autocast

__all__ = ["around", "native_code", "switch_defaults"]


def native_code(artifact: Any) -> tuple[NativeCode, Call]:
    """The code behind what ``standalone_compile(aot=True)`` returned, and its function as loaded.

    Raises NotPortable.
    """
    entry = artifact.inner_fn.compiled_fn.serialize_fn()
    graph = entry.compiled_fw.result
    if graph.constants or getattr(graph, "torchbind_constants", None):
        raise NotPortable("it holds constant tensors or objects")
    if graph.inputs_to_check:
        raise NotPortable("it copies misaligned inputs")
    module = _module(graph.cache_key)
    code = from_module(graph.source_code, module, b"" if _is_bare(entry) else _wrappers(entry))
    code = replace(code, autocast=any_autocast())
    call: Call = module.call
    return code, call


def _module(key: str) -> Any:
    from torch._inductor.codecache import PyCodeCache

    for module in reversed(PyCodeCache.modules):
        if getattr(module, "key", None) == key:
            return module
    raise NotPortable("its generated module is not in Inductor's cache")


def _is_bare(entry: Any) -> bool:
    """Whether torch's wrappers would do nothing around the generated function."""
    from torch._functorch._aot_autograd.schemas import OutputType

    meta = entry.runtime_metadata
    plain = (OutputType.non_alias, OutputType.unsafe_view_alias)
    return (
        entry.compiled_bw is None
        and entry.maybe_subclass_meta is None
        and not any(getattr(w, "needs_post_compile", True) for w in entry.dispatch_wrappers)
        and not meta.num_mutated_inp_runtime_indices
        and not meta.num_intermediate_bases
        and not meta.tokens
        and not meta.num_graphsafe_rng_states
        and not torch._functorch.config.functionalize_rng_ops
        and all(info.output_type in plain for info in meta.output_info)
    )


def _wrappers(entry: Any) -> bytes:
    """Torch's entry without the code, which is kept beside it."""
    slim = copy.copy(entry)
    slim.compiled_fw = None
    slim.aot_joint_graph_str = slim.aot_forward_graph_str = slim.aot_backward_graph_str = None
    slim.guards_expr = None  # sizes are judged by core, per range
    return pickle.dumps(slim)


def around(code: NativeCode) -> Callable[[Call], Call] | None:
    """What puts torch's wrappers around a generated function; None where there are none.

    Code that was compiled inside of autocast has its conversions, and runs without.
    """
    inner = _torchs_wrappers(code.wrappers) if code.wrappers else None
    if not code.autocast:
        return inner
    return lambda call: _without_autocast(call if inner is None else inner(call))


def _without_autocast(call: Call) -> Call:
    disabled: Any = torch._C._DisableAutocast

    def run(args: list[Any]) -> Any:
        with disabled():
            return call(args)

    return run


def _torchs_wrappers(wrappers: bytes) -> Callable[[Call], Call]:
    from torch._functorch._aot_autograd.aot_autograd_result import InductorOutput
    from torch._inductor.cudagraph_utils import BoxedDeviceIndex
    from torch._inductor.utils import BoxedBool
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from piecewise_core.torch_compat.fakes import FakeTensorMode, TracingContext, tracing

    class Ready(InductorOutput[Any]):
        """The generated function, in place of a graph that would load it."""

        def __init__(self, call: Call) -> None:
            self._call = call

        def pre_save(self) -> None:
            """Nothing is saved from here."""

        def load(self, example_inputs: Any) -> Any:
            """A function of its own: torch sets attributes on it."""
            return lambda args: self._call(args)

        def post_compile(self, result: Any, fx_config: Any) -> Any:
            """Nothing: what there is to do on a GPU, for static graphs or alignment."""
            return result

    def wrapped(call: Call) -> Call:
        entry = pickle.loads(wrappers)
        entry.compiled_fw = Ready(call)
        kinds = {
            "cudagraphs": BoxedBool(False),
            "boxed_forward_device_index": BoxedDeviceIndex(None),
        }
        with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
            made: Call = entry.wrap_post_compile([], entry.sanitized_aot_config, kinds)
        return made

    return wrapped


def switch_defaults() -> dict[str, Any]:
    """Inductor's switches and the values that they have unless somebody changes them."""
    from torch._inductor import config

    entries: dict[str, Any] = getattr(config, "_config")  # noqa: B009  # unseen by type checkers
    return {name: entry.default for name, entry in entries.items()}
