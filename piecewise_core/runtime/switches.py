"""Torch's own switches that a trace or a recording fixes: asked at every call.

Those that change what operators give, or how much a compiled or captured one rounds, are asked for
every model, where asking is cheap; the others where the model's code names them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.backends.mha
import torch.backends.opt_einsum

from piecewise_core.runtime.polls import Switch
from piecewise_core.torch_compat.switches import (
    ALWAYS,
    CUBLAS,
    CUDNN,
    MKLDNN,
    asking,
    precision_getter,
)

__all__ = ["ENVIRONMENT", "switches"]

ENVIRONMENT = "environment"
"""The switch that tells of any variable of the environment."""

_LIBRARIES: Mapping[str, tuple[str, ...]] = {"cpu": MKLDNN, "cuda": (*CUDNN, *CUBLAS)}
"""Those of the libraries that operators call, by device."""

_PRECISIONS = (
    *(("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn")),
    *(("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn")),
)
"""How exactly float32 is computed: backend and kind of operator."""

_ROUNDING: Mapping[str, tuple[tuple[str, str], ...]] = {
    "cpu": (("mkldnn", "matmul"),),
    "cuda": (("cuda", "matmul"), ("cuda", "conv")),
}
"""Those that change an operator, by device."""

_Asked = tuple[str, Callable[[], Any]]


def switches(device_type: str, words: Collection[str]) -> list[Switch]:
    """What to watch. ``words``: what the code names, of `graph.questions.WATCHED`."""
    found = dict([*_always(device_type), *_named(words)])
    made = (Switch(name, ask) for name, ask in found.items())
    return [switch for switch in made if switch.can_be_asked()]


def _always(device_type: str) -> Iterator[_Asked]:
    for name in (*ALWAYS, *_LIBRARIES.get(device_type, ())):
        ask = asking(name)
        if ask is not None:
            yield name.lstrip("_"), ask
    yield from _precisions(_ROUNDING.get(device_type, (("generic", "all"),)))


def _precisions(places: Collection[tuple[str, str]]) -> Iterator[_Asked]:
    if precision_getter is None:
        yield "get_float32_matmul_precision", torch.get_float32_matmul_precision
        return
    for backend, kind in places:
        yield f"{backend}.{kind}.fp32_precision", partial(precision_getter, backend, kind)


def _named(words: Collection[str]) -> Iterator[_Asked]:
    """What code asks for by name, or uses where it says ``autocast``."""
    for word, asks in _BY_WORD.items():
        if word in words:
            yield from asks()


def _autocast() -> Iterator[_Asked]:
    for device in ("cpu", "cuda"):
        yield f'get_autocast_dtype("{device}")', partial(torch.get_autocast_dtype, device)


def _all_precisions() -> Iterator[_Asked]:
    yield from _precisions(_PRECISIONS)


def _functions(*names: str) -> Callable[[], Iterator[_Asked]]:
    """Functions of torch's C module, by their names."""

    def found() -> Iterator[_Asked]:
        for name in names:
            ask = asking(name)
            if ask is not None:
                yield name.lstrip("_"), partial(ask)

    return found


def _matmul() -> Iterator[_Asked]:
    yield from _all_precisions()
    yield "get_float32_matmul_precision", partial(torch.get_float32_matmul_precision)


def _tf32() -> Iterator[_Asked]:
    yield from _all_precisions()
    yield from _functions("_get_cublas_allow_tf32", "_get_cudnn_allow_tf32")()


def _einsum() -> Iterator[_Asked]:
    for name in ("enabled", "strategy"):
        yield f"opt_einsum.{name}", partial(getattr, torch.backends.opt_einsum, name)


def _fastpath() -> Iterator[_Asked]:
    yield "get_fastpath_enabled", partial(torch.backends.mha.get_fastpath_enabled)


class _Variables(dict[Any, Any]):
    """Variables of the environment as an answer; compilers' own do not count, they set some."""

    def __eq__(self, other: object) -> bool:
        return dict.__eq__(self, other) or self._rest() == _Variables._rest(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def _rest(self: Any) -> dict[Any, Any]:
        return {name: self[name] for name in self if not os.fsdecode(name).startswith(_COMPILERS)}


_COMPILERS = ("TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TORCH_WARM_POOL", "TRITON_")


def _environment() -> Iterator[_Asked]:
    held = getattr(os.environ, "_data", os.environ)  # what it decodes at every look: 20 us a call
    yield ENVIRONMENT, partial(_Variables, held)


_BY_WORD: Mapping[str, Callable[[], Iterator[_Asked]]] = {
    "allow_bf16_reduced_precision_reduction": _functions(*CUBLAS),
    "allow_fp16_accumulation": _functions(*CUBLAS),
    "allow_fp16_reduced_precision_reduction": _functions(*CUBLAS),
    "allow_tf32": _tf32,
    "autocast": _autocast,
    "benchmark": _functions("_get_cudnn_benchmark"),
    "cudnn": _functions(*CUDNN),
    "custom_fwd": _autocast,
    "environ": _environment,  # a variable that is not set leaves no guard
    "fp32_precision": _all_precisions,
    "get_autocast_cpu_dtype": _autocast,
    "get_autocast_dtype": _autocast,
    "get_autocast_gpu_dtype": _autocast,
    "get_fastpath_enabled": _fastpath,
    "get_float32_matmul_precision": _matmul,
    "get_num_threads": _functions("get_num_threads"),
    "getenv": _environment,
    "is_anomaly_enabled": _functions("is_anomaly_enabled"),
    "mkldnn": _functions(*MKLDNN),
    "opt_einsum": _einsum,
    "strategy": _einsum,
}
