"""Libraries that torch's CPU operators call; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

import torch

from piecewise_core.torch_compat.lookup import needed

with needed():
    has_mkl: bool = torch._C.has_mkl
    has_mkldnn: bool = torch._C._has_mkldnn
    mkldnn_is_on = torch._C._get_mkldnn_enabled
    set_mkldnn = torch._C._set_mkldnn_enabled

__all__ = ["has_mkl", "has_mkldnn", "mkldnn_is_on", "set_mkldnn"]
