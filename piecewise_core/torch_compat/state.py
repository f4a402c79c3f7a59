"""Torch's own switches: what holds around a trace or a compilation and changes what comes of it.

They are part of every key, by name, and a worker process has them set as its parent has. What is
in force and has no value to compare (a mode written in Python, a transform of torch.func) is
reported by `around`: nothing made then is kept. Names that a torch lacks are left out.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.backends.mha
import torch.backends.opt_einsum
import torch.utils.deterministic

from piecewise_core.torch_compat.dispatcher import count_function_modes
from piecewise_core.torch_compat.functorch import functorch_config
from piecewise_core.torch_compat.lookup import optional
from piecewise_core.torch_compat.switches import any_autocast

__all__ = ["set_torch_state", "switches_as_now", "switches_digest", "torch_state"]

_DEVICES = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "ipu", "xla", "maia", "privateuseone")
_CHECKS = ("check_custom_op_aliasing", "error_on_custom_op_aliasing")


@dataclass(frozen=True)
class _Switch:
    """``read`` gives a plain value; ``write`` sets it, None where nobody need."""

    read: Callable[[], Any]
    write: Callable[[Any], object] | None = None


def torch_state() -> dict[str, Any]:
    """Every switch's value now: plain, equal in every process where it means the same."""
    found = {name: switch.read() for name, switch in _SWITCHES.items()}
    if any_autocast():
        found["autocast"] = _autocast()
    return found


def set_torch_state(values: Mapping[str, Any]) -> None:
    """Set this process's switches to what ``torch_state`` gave in another."""
    for name, switch in _SWITCHES.items():
        if switch.write is not None and switch.read() != values.get(name):
            switch.write(values[name])
    on = {device: dtype for device, dtype, _ in values.get("autocast", ())}
    for device in _DEVICES:
        if torch.is_autocast_enabled(device) != (device in on):
            torch.set_autocast_enabled(device, device in on)
        if device in on:
            torch.set_autocast_dtype(device, on[device])


def switches_as_now() -> Callable[[], None]:
    """What sets switches back that a graph may change: attention's kernels, determinism."""
    before = [(switch, switch.read()) for switch in _IN_GRAPHS]

    def restore() -> None:
        for switch, value in before:
            if switch.write is not None and switch.read() != value:
                switch.write(value)

    return restore


def switches_digest() -> str:
    """What AOTAutograd's switches come to: equal where they make the same code.

    Not among them: whether an operator that returns its own input is an error or a warning. Torch
    makes it an error wherever the environment has CI set (2.13), so a bundle made by continuous
    integration would be refused where it is served.
    """
    ignored = getattr(functorch_config, "_compile_ignored_keys", ())
    values = functorch_config.get_config_copy().items()
    text = "\n".join(f"{n}={v!r}" for n, v in sorted(values) if n not in {*ignored, *_CHECKS})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _autocast() -> tuple[tuple[str, torch.dtype, bool], ...]:
    cached = torch.is_autocast_cache_enabled()
    on = [d for d in _DEVICES if torch.is_autocast_enabled(d)]
    return tuple((d, torch.get_autocast_dtype(d), cached) for d in on)


def _flushes_denormals() -> bool:
    """Torch can set this and not read it: ask the processor."""
    return sys.float_info.min / 2 == 0.0


def _device() -> str:
    """The device of new tensors, without its index where there is none."""
    return str(torch.get_default_device()) if count_function_modes() else "cpu"


def _set_device(name: str) -> None:
    torch.set_default_device(None if name == "cpu" else name)


def _attributes() -> Iterator[tuple[str, _Switch]]:
    """Switches that are attributes of a module of ``torch.backends``."""
    for place, names in _ATTRIBUTES.items():
        owner: Any = torch.backends
        for part in filter(None, place.split(".")):
            owner = getattr(owner, part, None)
        for name in names:
            if hasattr(owner, name):
                yield f"{place}.{name}".lstrip("."), _attribute(owner, name)


def _attribute(owner: Any, name: str) -> _Switch:
    def write(value: Any) -> None:
        setattr(owner, name, value)

    return _Switch(lambda: _plain_precision(getattr(owner, name)), write)


def _plain_precision(value: Any) -> Any:
    """A precision that nobody set is the general one, which is exact unless somebody set that."""
    if value != "none":
        return value
    general = getattr(torch.backends, _PRECISION, "none")
    return "ieee" if general == "none" else general


_PRECISION = "fp32_precision"

_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "": ("fp32_precision",),
    "cuda.matmul": (
        "fp32_precision",
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    ),
    "cudnn": ("enabled", "benchmark", "benchmark_limit", "deterministic", "fp32_precision"),
    "cudnn.conv": ("fp32_precision",),
    "cudnn.rnn": ("fp32_precision",),
    "mkldnn": ("enabled", "deterministic", "fp32_precision"),
    "mkldnn.matmul": ("fp32_precision",),
    "mkldnn.conv": ("fp32_precision",),
    "mkldnn.rnn": ("fp32_precision",),
    "opt_einsum": ("enabled", "strategy"),
}

_CALLED: Mapping[str, tuple[str, str]] = {
    "default_dtype": ("get_default_dtype", "set_default_dtype"),
    "threads": ("get_num_threads", "set_num_threads"),
    "attention.flash": ("_C._get_flash_sdp_enabled", "_C._set_sdp_use_flash"),
    "attention.efficient": ("_C._get_mem_efficient_sdp_enabled", "_C._set_sdp_use_mem_efficient"),
    "attention.math": ("_C._get_math_sdp_enabled", "_C._set_sdp_use_math"),
    "attention.cudnn": ("_C._get_cudnn_sdp_enabled", "_C._set_sdp_use_cudnn"),
    "attention.overrideable": (
        "_C._get_overrideable_sdp_enabled",
        "_C._set_sdp_use_overrideable",
    ),
    "attention.reduced": (
        "_C._get_math_sdp_allow_fp16_bf16_reduction",
        "_C._set_math_sdp_allow_fp16_bf16_reduction",
    ),
    "attention.order": ("_C._get_sdp_priority_order", "_C._set_sdp_priority_order"),
    "attention.fastpath": (
        "backends.mha.get_fastpath_enabled",
        "backends.mha.set_fastpath_enabled",
    ),
    "blas": ("_C._get_blas_preferred_backend", "_C._set_blas_preferred_backend"),
    "linalg": ("_C._get_linalg_preferred_backend", "_C._set_linalg_preferred_backend"),
    "rocm.attention": ("_C._get_rocm_fa_preferred_backend", "_C._set_rocm_fa_preferred_backend"),
}
"""Functions of torch that read and set a switch."""


def _called() -> Iterator[tuple[str, _Switch]]:
    for name, (getter, setter) in _CALLED.items():
        read = optional(getter)
        if read is None:
            continue
        if isinstance(read(), (bool, int, str, list, torch.dtype)):
            yield name, _Switch(read, optional(setter))
        else:  # an enum of torch's, which does not pickle
            yield name, _Switch(functools.partial(_text_of, read))


def _text_of(read: Callable[[], Any]) -> str:
    return str(read())


def _deterministic() -> tuple[bool, bool, bool]:
    fill: Any = torch.utils.deterministic
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        fill.fill_uninitialized_memory,
    )


def _set_deterministic(value: tuple[bool, bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])
    fill: Any = torch.utils.deterministic
    fill.fill_uninitialized_memory = value[2]


def _default_autocast(device: str) -> _Switch:
    def write(dtype: torch.dtype) -> None:
        torch.set_autocast_dtype(device, dtype)

    return _Switch(lambda: torch.get_autocast_dtype(device), write)


_MIXED = "as its backends say"


def _matmul_precision() -> str:
    """Torch 2.13 raises here once a backend's precision was set through the new interface."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return _MIXED


def _set_matmul_precision(value: str) -> None:
    if value != _MIXED:
        torch.set_float32_matmul_precision(value)


_SWITCHES: Mapping[str, _Switch] = {
    "float32_matmul_precision": _Switch(_matmul_precision, _set_matmul_precision),
    **dict(_called()),
    **dict(_attributes()),
    "default_device": _Switch(_device, _set_device),
    "deterministic": _Switch(_deterministic, _set_deterministic),
    "denormals_flushed": _Switch(_flushes_denormals, torch.set_flush_denormal),
    "autocast.cpu": _default_autocast("cpu"),
    "autocast.cuda": _default_autocast("cuda"),
}

_IN_GRAPHS = [
    switch
    for name, switch in _SWITCHES.items()
    if name.startswith("attention.") or name == "deterministic"
]
