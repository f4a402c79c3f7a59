"""A stand-in for the parts of vLLM 0.32 that piecewise-vllm touches. It is not vLLM.

``modules()`` gives modules to put into ``sys.modules``: the plugin's own code then runs where vLLM
is not installed, on a GPU for one. What they do is what the plugin relies on: settings go through
a platform in vLLM's order, a forward context says how a batch is to run, wrappers know all of
themselves and are lent pools. ``Engine`` makes the calls that vLLM's runner makes. Nothing here
says anything about vLLM's speed.
"""

from __future__ import annotations

import enum
import operator
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

from torch.fx import GraphModule, Node
from torch.fx.passes.split_module import split_module

__all__ = ["BatchDescriptor", "Engine", "cut", "modules", "settings"]

SOURCE = Path(__file__).parents[2] / "integrations" / "vllm" / "src"


class CompilationMode(enum.IntEnum):
    NONE = 0
    STOCK_TORCH_COMPILE = 1
    DYNAMO_TRACE_ONCE = 2
    VLLM_COMPILE = 3


class CUDAGraphMode(enum.Enum):
    NONE = 0
    PIECEWISE = 1
    FULL = 2


@dataclass(frozen=True)
class BatchDescriptor:
    num_tokens: int
    num_reqs: int | None = None
    uniform: bool = False
    has_lora: bool = False
    num_active_loras: int = 0


@dataclass
class _Context:
    cudagraph_runtime_mode: CUDAGraphMode = CUDAGraphMode.NONE
    batch_descriptor: BatchDescriptor | None = None


@dataclass
class _Options:
    debug_log_enable: bool = True
    gc_disable: bool = False
    weak_ref_output: bool = True


class _Wrapper:
    _all_instances: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def __init__(self, runnable, vllm_config, runtime_mode, cudagraph_options=None) -> None:
        self.runnable, self.vllm_config, self.runtime_mode = runnable, vllm_config, runtime_mode
        self.cudagraph_options = cudagraph_options or _Options()
        self.graph_pool = sys.modules["vllm.platforms"].current_platform.get_global_graph_pool()
        self.concrete_cudagraph_entries: dict[Any, Any] = {}
        _Wrapper._all_instances.add(self)

    def clear_graphs(self) -> None:
        self.concrete_cudagraph_entries.clear()


class _Platform:
    device_type = "cpu"
    simple_compile_backend = "inductor"
    _pool: Any = None

    @classmethod
    def get_compile_backend(cls) -> str:
        return cls.simple_compile_backend

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: Any) -> None:
        pass

    @classmethod
    def support_static_graph_mode(cls) -> bool:
        return False

    def graph_pool_handle(self) -> Any:
        return object()

    def get_global_graph_pool(self) -> Any:
        if type(self)._pool is None:
            type(self)._pool = self.graph_pool_handle()
        return type(self)._pool


class _CpuPlatform(_Platform):
    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        config = vllm_config.compilation_config
        if config.mode == CompilationMode.VLLM_COMPILE:
            config.mode, config.backend = CompilationMode.DYNAMO_TRACE_ONCE, "inductor"
        if vllm_config.lora_config is not None:
            config.mode = CompilationMode.NONE


class _CudaPlatform(_Platform):
    device_type = "cuda"

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        pass

    @classmethod
    def support_static_graph_mode(cls) -> bool:
        return True

    def graph_pool_handle(self) -> Any:
        import torch

        return torch.cuda.graph_pool_handle()


class _CompilerInterface:
    name = ""


class _Offloader:
    def sync_prev_onload(self) -> None:
        pass

    def join_after_forward(self) -> None:
        pass


def settings(platform: Any, backend: str = "", **given: Any) -> SimpleNamespace:
    """Settings as vLLM makes them: the platform is asked three times, in this order."""
    mode = given.pop("mode", CompilationMode.VLLM_COMPILE)
    config = SimpleNamespace(
        backend=backend or platform.get_compile_backend(),
        mode=mode,
        compile_sizes=None,
        use_inductor_graph_partition=False,
        custom_ops=[],
    )
    whole = SimpleNamespace(compilation_config=config, lora_config=None, model_config=None)
    for name, value in given.items():
        setattr(whole if hasattr(whole, name) else config, name, value)
    platform.apply_config_platform_defaults(whole)
    config.custom_ops.append("none" if config.backend == "inductor" else "all")
    platform.check_and_update_config(whole)
    return whole


def modules(device_type: str = "cpu") -> dict[str, ModuleType]:
    """Name -> module, with a platform of ``device_type`` as the current one."""
    context: list[_Context] = []
    kinds = {"cpu": _CpuPlatform, "cuda": _CudaPlatform}
    offloader = _Offloader()

    @contextmanager
    def capture_pool(pool: Any, vllm_config: Any) -> Iterator[Any]:
        yield pool

    parts: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.config": {"CompilationMode": CompilationMode, "CUDAGraphMode": CUDAGraphMode},
        "vllm.platforms": {
            "current_platform": kinds[device_type](),
            "builtin_platform_plugins": {
                name: (lambda n=name, k=kind: n == device_type and f"vllm.platforms.{n}.{k}")
                for name, kind in (("cpu", "CpuPlatform"), ("cuda", "CudaPlatform"))
            },
        },
        "vllm.platforms.cpu": {"CpuPlatform": _CpuPlatform},
        "vllm.platforms.cuda": {"CudaPlatform": _CudaPlatform},
        "vllm.compilation": {},
        "vllm.compilation.monitor": {"cudagraph_capturing_enabled": True},
        "vllm.compilation.counter": {"compilation_counter": Counter()},
        "vllm.compilation.cuda_graph": {"CUDAGraphWrapper": _Wrapper},
        "vllm.compilation.cudagraph_pool": {"capture_pool": capture_pool},
        "vllm.compilation.compiler_interface": {
            "CompilerInterface": _CompilerInterface,
            "set_inductor_config": lambda config, sizes: None,
        },
        "vllm.forward_context": {
            "is_forward_context_available": lambda: bool(context),
            "get_forward_context": lambda: context[-1],
            "contexts": context,
        },
        "vllm.model_executor": {},
        "vllm.model_executor.offloader": {},
        "vllm.model_executor.offloader.base": {"get_offloader": lambda: offloader},
    }
    made = {}
    for name, content in parts.items():
        made[name] = module = ModuleType(name)
        vars(module).update(content)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(made[parent], own, module)
    return made


def cut(graph: GraphModule, is_cut: Callable[[Node], bool]) -> GraphModule:
    """``graph`` in parts, as vLLM has it: operators of ``is_cut`` alone, all return tuples."""
    part, parts = 0, {}
    for node in graph.graph.nodes:
        alone = is_cut(node)
        part += alone
        parts[node] = part
        part += alone
    return in_parts(graph, parts.__getitem__)


def in_parts(graph: GraphModule, part_of: Callable[[Node], int]) -> GraphModule:
    """``graph`` split, each part returning a tuple.

    From torch 2.13 on ``split_module`` makes tuples itself (``tuple_return``), which vLLM asks for.
    They are made here, so that this runs where an older torch is.
    """
    whole = split_module(graph, None, part_of, keep_original_order=True)
    for node in whole.graph.find_nodes(op="call_module"):
        inner = getattr(whole, node.target)
        end = inner.graph.output_node()
        if isinstance(end.args[0], tuple):
            continue
        end.args = ((end.args[0],),)
        inner.recompile()
        with whole.graph.inserting_after(node):
            first = whole.graph.call_function(operator.getitem, (node, 0))
        first.meta = dict(node.meta)
        node.replace_all_uses_with(first, lambda user, kept=first: user is not kept)
    whole.recompile()
    return whole


@dataclass
class Counter:
    num_cudagraph_captured: int = 0


@dataclass
class Engine:
    """Calls pieces as vLLM's runner does: warm, capture, replay. ``run``: the whole forward."""

    run: Callable[..., Any]
    modes: Any = field(default=CUDAGraphMode)

    def forward(self, *args: Any, tokens: int, mode: CUDAGraphMode = CUDAGraphMode.NONE) -> Any:
        """One forward of ``tokens`` in ``mode``."""
        contexts = sys.modules["vllm.forward_context"].contexts
        contexts.append(_Context(mode, BatchDescriptor(tokens)))
        try:
            return self.run(*args)
        finally:
            contexts.pop()

    def capture(self, *args: Any, tokens: int) -> Any:
        """Warm up, then capture: results of a capture are not computed."""
        self.forward(*args, tokens=tokens)
        return self.forward(*args, tokens=tokens, mode=CUDAGraphMode.PIECEWISE)

    def replay(self, *args: Any, tokens: int) -> Any:
        """Serve one batch by what was captured."""
        return self.forward(*args, tokens=tokens, mode=CUDAGraphMode.PIECEWISE)
