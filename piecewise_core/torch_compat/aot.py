"""What AOTAutograd and Inductor put around generated code; known in 2.11 to 2.13, no fallback.

``standalone_compile(aot=True)`` returns an AOTCompiledArtifact, whose
``inner_fn.compiled_fn.serialize_fn()`` is a BundledAOTAutogradResult holding a CompiledFxGraph
without its code; ``PyCodeCache.modules`` holds that code's module under the graph's ``cache_key``.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.torch_compat.fakes import FakeTensorMode, TracingContext, tracing
from piecewise_core.torch_compat.functorch import functorch_config
from piecewise_core.torch_compat.lookup import needed

__all__ = ["entry_of", "generated_module", "without_autocast", "wrappers_from", "wrappers_of"]

Call = Callable[[list[Any]], Any]

with needed():
    without_autocast: Any = torch._C._DisableAutocast


def entry_of(artifact: Any) -> Any:
    """What torch would save of ``artifact``."""
    with needed():
        return artifact.inner_fn.compiled_fn.serialize_fn()


def generated_module(key: str) -> Any:
    """The module that Inductor generated under ``key``; None where it is not in its cache."""
    with needed():
        from torch._inductor.codecache import PyCodeCache
    found = (m for m in reversed(PyCodeCache.modules) if getattr(m, "key", None) == key)
    return next(found, None)


def wrappers_of(entry: Any) -> bytes:
    """Torch's wrappers without the code, which is kept beside them; empty if they do nothing."""
    with needed():
        if _is_bare(entry):
            return b""
    slim = copy.copy(entry)
    slim.compiled_fw = None
    slim.aot_joint_graph_str = slim.aot_forward_graph_str = slim.aot_backward_graph_str = None
    slim.guards_expr = None  # sizes are judged by core, per range
    return pickle.dumps(slim)


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
        and not functorch_config.functionalize_rng_ops
        and all(info.output_type in plain for info in meta.output_info)
    )


def wrappers_from(saved: bytes) -> Callable[[Call], Call]:
    """What puts the wrappers that ``wrappers_of`` gave around a generated function."""
    with needed():
        from torch._functorch._aot_autograd.aot_autograd_result import InductorOutput
        from torch._inductor.cudagraph_utils import BoxedDeviceIndex
        from torch._inductor.utils import BoxedBool

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
        entry = pickle.loads(saved)
        entry.compiled_fw = Ready(call)
        kinds = {
            "cudagraphs": BoxedBool(False),
            "boxed_forward_device_index": BoxedDeviceIndex(None),
        }
        with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
            made: Call = entry.wrap_post_compile([], entry.sanitized_aot_config, kinds)
        return made

    return wrapped
