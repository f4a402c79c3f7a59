"""Few rows times a weight, by a loop of our own that reads the weight once, as it lies.

Up to some thirty rows such a product is as fast as its weight can be read, and libraries are not:
they lay the weight out anew at each call, for a loop that wants many rows. Nothing is kept of a
weight here, so one that changes is simply seen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from piecewise_core.building_blocks import GraphRewrite, machine_factors
from piecewise_cpu.native import Native, NativeStep, Step, held_still

__all__ = ["FEW_ROWS", "Product", "few_rows_products"]

FEW_ROWS = "few_rows_products"

_ROWS = 32
"""Beyond, what libraries do pays (docs/adr/0024-few-rows-by-our-own-loop.md)."""

_SMALL = 1 << 15
"""Elements of a weight that one thread has read before a second one is awake."""


def few_rows_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> GraphRewrite:
    """The rewrite ``few_rows_products``: it names the library and leaves the graph as it is."""
    faster = _is_faster(cpuinfo)

    def choose(graph: torch.fx.GraphModule, _: Any) -> None:
        if faster:
            graph.meta["library"] = FEW_ROWS

    return GraphRewrite(FEW_ROWS, "piece", f"{faster}", choose, lowered=True)


@functools.cache
def _is_faster(cpuinfo: Path) -> bool:
    """Whether this is a processor that it was measured on: Intel's, with AVX-512."""
    try:
        words = cpuinfo.read_text(encoding="utf-8", errors="replace").split(maxsplit=99)
    except OSError:
        return False
    return "GenuineIntel" in words and "avx512f" in machine_factors(cpuinfo)["machine.flags"]


class Product:
    """``torch.addmm`` or ``torch.mm`` with ``out=``: by our own loop where it is the faster one."""

    def __init__(self, name: str, native: Native) -> None:
        self._torch: Callable[..., torch.Tensor] = getattr(torch, name)
        self._native = native

    def __call__(self, *args: Any, out: torch.Tensor, **factors: Any) -> torch.Tensor:
        """Compute it."""
        multiply, numbers = self._native.function("rows"), _numbers(args, out, factors)
        if multiply is None or numbers is None:
            return self._torch(*args, **factors, out=out)
        multiply(*numbers)
        return out

    def bound(self, *args: Any, out: torch.Tensor, **factors: Any) -> Step:
        """The same as a step, on memory that does not move."""
        numbers = _numbers(args, out, factors)
        if not self._native or numbers is None:
            return functools.partial(self._torch, *args, **factors, out=out)
        call = functools.partial(self, *held_still(args), out=out, **factors)
        return NativeStep(self._native.address("rows"), numbers, call)


def _numbers(
    args: tuple[torch.Tensor, ...], out: torch.Tensor, factors: dict[str, Any]
) -> tuple[int, ...] | None:
    """What ``piecewise_rows`` takes; None where it cannot do this, or is not the faster one.

    It does rows without gaps and a weight [out, in] as a layer keeps it, both in single precision,
    and one bias for all rows.
    """
    *bias, x, weight = args
    rows, inner = x.shape
    width = weight.shape[1]
    plain = (
        0 < rows <= _ROWS
        and x.dtype is weight.dtype is out.dtype is torch.float32
        and weight.stride() == (1, inner)
        and inner > 0 < width
        and x.is_contiguous()
        and out.is_contiguous()
        and factors.get("alpha", 1) == 1 == factors.get("beta", 1)
    )
    if not plain or any(
        b.dtype is not torch.float32 or b.shape != (width,) or not b.is_contiguous() for b in bias
    ):
        return None
    threads = torch.get_num_threads() if inner * width > _SMALL else 1
    begin = bias[0].data_ptr() if bias else 0
    sizes = rows, width, inner, threads
    return (x.data_ptr(), weight.data_ptr(), begin, out.data_ptr(), *sizes)
