"""Products with weights by oneDNN, where it is faster than the BLAS that torch calls.

Inductor leaves ``x @ weight.T + bias`` to ``torch.addmm``, which is MKL's ``sgemm``. MKL uses the
wide instructions of Intel's processors only; on AMD's, oneDNN takes 0.6 to 0.9 of its time for up
to some hundred rows, and no more beyond. oneDNN's operator has no ``out``, so the result is copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from piecewise_core.building_blocks import GraphRewrite, has_mkl, mkldnn_is_on
from piecewise_cpu.few_rows import FEW_ROWS, Product
from piecewise_cpu.native import Native

__all__ = ["bound", "library_function", "onednn_is_faster", "onednn_products"]

_OTHERS = ("AuthenticAMD", "HygonGenuine")
"""Vendors for whose x86 processors MKL takes its general code."""

_ONEDNN = "onednn_products"


def onednn_products() -> GraphRewrite:
    """The rewrite ``onednn_products``: it names the library and leaves the graph as it is."""
    return GraphRewrite(_ONEDNN, "piece", f"{onednn_is_faster()}", _choose, lowered=True)


def _choose(graph: torch.fx.GraphModule, _: Any) -> None:
    if onednn_is_faster():
        graph.meta["library"] = _ONEDNN


def library_function(chosen: str, name: str, native: Native) -> Callable[..., Any]:
    """What compiled code finds as ``extern_kernels.NAME``: torch's function, or one as good.

    ``chosen``: the library that a rewrite named, or nothing. ``native``: our own code, if there is
    any.
    """
    if chosen == FEW_ROWS and name in ("addmm", "mm"):
        return Product(name, native)
    own: dict[str, Any] = {"addmm": _addmm, "mm": _mm} if chosen == _ONEDNN else {}
    found: Callable[..., Any] = own.get(name) or getattr(torch, name)
    return found


@functools.cache
def onednn_is_faster(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether products go to oneDNN: torch has both, and this is no processor of Intel's.

    ``torch.backends.mkldnn.enabled = False``, set before the first compilation, leaves MKL.
    """
    try:
        torch.ops.mkldnn._linear_pointwise.default  # noqa: B018  # not in every build
        words = cpuinfo.read_text(encoding="utf-8", errors="replace").split(maxsplit=99)
    except (AttributeError, OSError):
        return False
    both = has_mkl and mkldnn_is_on()
    return both and any(vendor in words for vendor in _OTHERS)


def bound(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """A call of a library function on memory that does not move, with nothing left to decide."""
    if isinstance(function, Product):
        return function.bound(*args, **kwargs)
    if function is _addmm:
        bias, x, weight = args
        if _is_plain(bias, kwargs) and _fits(x, weight):
            return _bound(x, weight, bias, kwargs["out"])
    if function is _mm:
        x, weight = args
        if _fits(x, weight):
            return _bound(x, weight, None, kwargs["out"])
    return functools.partial(function, *args, **kwargs)


def _addmm(
    bias: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: torch.Tensor,
    alpha: float = 1,
    beta: float = 1,
) -> torch.Tensor:
    """``torch.addmm(bias, x, weight, alpha=alpha, beta=beta, out=out)``."""
    if _is_plain(bias, {"alpha": alpha, "beta": beta}) and _fits(x, weight):
        return out.copy_(_linear(x, weight.t(), bias))
    return torch.addmm(bias, x, weight, alpha=alpha, beta=beta, out=out)


def _mm(x: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """``torch.mm(x, weight, out=out)``."""
    if _fits(x, weight):
        return out.copy_(_linear(x, weight.t(), None))
    return torch.mm(x, weight, out=out)


def _is_plain(bias: torch.Tensor, factors: Mapping[str, Any]) -> bool:
    """Whether a product is added to one bias for all rows, and nothing is scaled."""
    unscaled = factors.get("alpha", 1) == 1 == factors.get("beta", 1)
    return unscaled and bias.dim() == 1 and bias.is_contiguous()


def _fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether these are rows, and a weight [out, in] in single precision as a layer keeps it."""
    return (
        x.dtype is torch.float32
        and weight.dtype is torch.float32
        and weight.stride() == (1, weight.shape[0])
        and x.is_contiguous()
        and x.numel() > 0
        and weight.numel() > 0
    )


def _bound(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> Callable[[], Any]:
    rows, copy, multiply = weight.t(), out.copy_, torch.ops.mkldnn._linear_pointwise.default
    return lambda: copy(multiply(x, rows, bias, "none", [], ""))


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
        x, weight, bias, "none", [], ""
    )
    return found
