"""Stock Inductor with our static graphs: a policy for its ``cudagraph_policy``.

    with torch._inductor.config.patch(cudagraph_policy=policy()):
        fast = torch.compile(model, mode="reduce-overhead")
        fast(x)  # what is compiled in here has them

Inductor asks a policy on "cuda" only, which is CUDA or ROCm.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.config import Config
from piecewise_core.counters import Counters, Stats, process_counters
from piecewise_core.errors import ConfigError, TorchUnsupported
from piecewise_core.frontend.door.memory import DoorMemories, DoorMemory
from piecewise_core.frontend.door.opaque import OpaqueGraph
from piecewise_core.frontend.setup import Setup, prepare
from piecewise_core.protocols import Platform
from piecewise_core.torch_compat.inductor import cudagraph_policy_class

__all__ = ["policy"]

logger = logging.getLogger(__name__)

_TAKEN = ("capture", "check", "memory_limit")


def policy(platform: str | Platform | None = None, **options: Any) -> Any:
    """A policy that captures what Inductor compiles by ``platform``'s driver, into one pool.

    ``options``: the Config fields ``capture`` (here "lazy" unless given), ``check`` and
    ``memory_limit``. Results are copied out of the graphs' memory. ``policy().stats()`` has the
    counters, ``policy().uncaptured()`` why calls run without. Raises ConfigError, PlatformError,
    and TorchUnsupported before torch 2.13.
    """
    base = cudagraph_policy_class()
    if base is None:
        raise TorchUnsupported(
            f"torch {torch.__version__} has no torch._inductor.config.cudagraph_policy; it came "
            'with torch 2.13. torch.compile(model, backend="piecewise") needs none'
        )
    unknown = sorted(options.keys() - {*_TAKEN})
    if unknown:
        raise ConfigError(
            f"{', '.join(unknown)}: Inductor has cut and compiled; its policy takes "
            f"{', '.join(_TAKEN)}"
        )
    config = Config(compiler="eager", graph_mode="piecewise", clone_outputs=True, **options)
    if "capture" not in options:
        config = config.replace(capture="lazy")
    made: Any = type("PiecewisePolicy", (_Policy, base), {})
    return made(config, platform)


class _Policy:
    """Torch's three questions, answered."""

    def __init__(self, config: Config, platform: Any) -> None:
        self._config = config
        self._platform = platform
        self._memories = DoorMemories()
        self._counters = Counters()
        process_counters.watch(self._counters)
        self._graphs: weakref.WeakSet[OpaqueGraph] = weakref.WeakSet()
        self._reserved: dict[int, DoorMemory] = {}

    def cudagraphify(
        self,
        model: Callable[..., Any],
        example_inputs: Sequence[Any],
        static_input_idxs: Sequence[int] = (),
        *,
        device_index: int,
        is_backward: bool = False,
        is_inference: bool = True,
        mutated_input_idxs: Sequence[int] = (),
        **kwargs: Any,
    ) -> Callable[..., Any]:
        """What serves calls of ``model``, which takes one list of inputs."""
        if is_backward or not is_inference:
            logger.info("graphs that keep tensors for a backward pass are not captured")
            return model
        return self._graph(model, static_input_idxs, mutated_input_idxs, device_index)

    def should_wrap(self, compiled_graph: Any) -> bool:
        """Whether Inductor's code is captured as a whole.

        Where Inductor parted it at what graphs cannot hold, its parts are, and not here.
        """
        parts = getattr(compiled_graph, "partition_maps", None)
        apply = getattr(compiled_graph, "recursively_apply_fns", None)
        if parts is None or apply is None:
            return True
        if compiled_graph.fx_kwargs.get("is_backward") or compiled_graph.disabled_cudagraphs_reason:
            return False
        if parts and compiled_graph.fx_kwargs.get("is_inference"):
            static = {*(compiled_graph.fx_kwargs.get("static_input_idxs") or ())}
            mutated = {*compiled_graph.mutated_input_idxs}
            device = next(iter(compiled_graph.device_idxs))
            apply([self._part(part, static, mutated, device) for part in parts])
        return False

    def _part(self, part: Any, static: set[int], mutated: set[int], device: int) -> Any:
        places = list(enumerate(part.input_index_mapping))
        own_static = tuple(i for i, outer in places if outer in static)
        own_mutated = tuple(i for i, outer in places if outer in mutated)
        return partial(self._graph, static=own_static, mutated=own_mutated, device_index=device)

    def _graph(
        self,
        model: Callable[..., Any],
        static: Sequence[int],
        mutated: Sequence[int],
        device_index: int,
    ) -> Callable[..., Any]:
        setup = self._prepared("cuda")
        memory = self._memories.of(setup, self._platform, f"{device_index}")
        self._reserved[device_index] = memory
        graph = OpaqueGraph(model, static, mutated, setup, self._counters, memory)
        self._graphs.add(graph)
        return graph

    def _prepared(self, kind: str | None) -> Setup:
        """The platform's setup; an instance that was given serves whatever it serves."""
        own = kind if self._platform is None or isinstance(self._platform, str) else None
        return prepare(self._config, self._memories.platform(self._platform, own), own)

    def stats(self) -> Stats:
        """The counters of all graphs under this policy."""
        memories = (memory.counters.stats() for memory in self._reserved.values())
        return sum(memories, self._counters.stats())

    def uncaptured(self) -> tuple[str, ...]:
        """Why calls are served without graphs."""
        return tuple(dict.fromkeys(why for graph in self._graphs for why in graph.uncaptured))
