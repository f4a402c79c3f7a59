"""Torch's switches that calls ask for; known in 2.11 to 2.13, those that are missing left out.

Tables of names of functions of torch, or of its C module, that give a plain answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.torch_compat.lookup import needed, optional

__all__ = ["ALWAYS", "CUBLAS", "CUDNN", "MKLDNN", "any_autocast", "asking", "precision_getter"]

with needed():
    any_autocast: Callable[[], bool] = torch._C._is_any_autocast_enabled
    """Whether autocast is on for some device."""

precision_getter: Callable[[str, str], Any] | None = optional("_C._get_fp32_precision_getter")
"""How exactly a backend computes a kind of operator in float32; None where torch has no such."""

ALWAYS = (
    *("get_default_dtype", "is_autocast_cache_enabled"),
    *("_get_deterministic_algorithms", "_get_deterministic_algorithms_warn_only"),
    *("_get_deterministic_fill_uninitialized_memory", "_get_math_sdp_allow_fp16_bf16_reduction"),
    *("_get_flash_sdp_enabled", "_get_mem_efficient_sdp_enabled", "_get_math_sdp_enabled"),
    *("_get_cudnn_sdp_enabled", "_get_overrideable_sdp_enabled", "_get_fa3_sdp_enabled"),
)
CUBLAS = (
    *("_get_cublas_allow_fp16_reduced_precision_reduction", "_get_cublas_allow_fp16_accumulation"),
    "_get_cublas_allow_bf16_reduced_precision_reduction",
)
CUDNN = ("_get_cudnn_enabled", "_get_cudnn_deterministic")
MKLDNN = ("_get_mkldnn_enabled", "_get_mkldnn_deterministic")


def asking(name: str) -> Callable[[], Any] | None:
    """The function of that name; None where torch has none."""
    found: Callable[[], Any] | None = optional(name) or optional(f"_C.{name}")
    return found
