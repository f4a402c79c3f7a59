"""One row times up to three weights in one launch of a Triton kernel. Importing it imports Triton.

An operator that compilers see through: Inductor takes the kernel into the code that it makes, so
that it is built, kept and bundled as Inductor's own kernels are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["MOST", "rows_times_weights"]

MOST = 3
"""Weights of one launch: query, key and value."""

_WARPS = 4
_LONG = 4096
"""Inner sizes from which one program has enough to read with one output."""


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _some_outputs(  # type: ignore[no-untyped-def]  # Triton looks annotations up
    row,
    weight,
    added,
    out,
    program,
    inner: tl.constexpr,
    outputs: tl.constexpr,
    stride: tl.constexpr,
    many: tl.constexpr,
    block: tl.constexpr,
):
    """``many`` outputs of one weight, of program number ``program``."""
    places = program * many + tl.arange(0, many)
    held = places < outputs
    columns = tl.arange(0, block)
    starts = weight + places.to(tl.int64)[:, None] * stride + columns[None, :]
    total = tl.zeros((many, block), tl.float32)
    for at in range(0, inner, block):
        if inner % block == 0:
            mask = held[:, None]
            x = tl.load(row + at + columns)
        else:
            mask = held[:, None] & (at + columns < inner)[None, :]
            x = tl.load(row + at + columns, mask=at + columns < inner, other=0.0)
        # Weights are read once a step: they should not drive out what the next kernel reads.
        w = tl.load(starts + at, mask=mask, other=0.0, eviction_policy="evict_first")
        total += w.to(tl.float32) * x.to(tl.float32)[None, :]
    result = tl.sum(total, 1)
    if added is not None:
        result += tl.load(added + places, mask=held, other=0.0).to(tl.float32)
    tl.store(out + places, result.to(out.dtype.element_ty), mask=held)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def rows_kernel(  # type: ignore[no-untyped-def]
    row,
    weight0,
    weight1,
    weight2,
    added0,
    added1,
    added2,
    out0,
    out1,
    out2,
    inner: tl.constexpr,
    outputs0: tl.constexpr,
    outputs1: tl.constexpr,
    outputs2: tl.constexpr,
    stride0: tl.constexpr,
    stride1: tl.constexpr,
    stride2: tl.constexpr,
    many: tl.constexpr,
    block: tl.constexpr,
):
    """out_i = row @ weight_i.T + added_i, summed in float32 and rounded once.

    ``row``: ``inner`` numbers. ``weight_i``: [outputs_i, inner], rows ``stride_i`` apart. None and
    0 outputs for weights that are not there; None for nothing added.
    """
    program = tl.program_id(0)
    first: tl.constexpr = (outputs0 + many - 1) // many
    second: tl.constexpr = first + (outputs1 + many - 1) // many
    if program < first:
        _some_outputs(row, weight0, added0, out0, program, inner, outputs0, stride0, many, block)
    elif program < second:
        if outputs1 > 0:
            _some_outputs(
                row, weight1, added1, out1, program - first, inner, outputs1, stride1, many, block
            )
    else:
        if outputs2 > 0:
            _some_outputs(
                row, weight2, added2, out2, program - second, inner, outputs2, stride2, many, block
            )


def _launched(
    row: torch.Tensor, weights: Sequence[torch.Tensor], added: Sequence[torch.Tensor | None]
) -> list[torch.Tensor]:
    """``row``: [1, inner], contiguous. ``weights``: [outputs, inner], inner stride 1."""
    inner, absent = row.shape[1], MOST - len(weights)
    many = 1 if inner >= _LONG else 2
    outs = [row.new_empty((1, weight.shape[0])) for weight in weights]
    programs = sum(-(-weight.shape[0] // many) for weight in weights)
    none, nothing = [None] * absent, [0] * absent
    launch: Any = torch.library.wrap_triton(rows_kernel)
    launch[(programs,)](
        row,
        *weights,
        *none,
        *added,
        *none,
        *outs,
        *none,
        inner,
        *(weight.shape[0] for weight in weights),
        *nothing,
        *(weight.stride(0) for weight in weights),
        *nothing,
        many,
        min(1024, triton.next_power_of_2(inner)),
        num_warps=_WARPS,
    )
    return outs


torch.library.triton_op(
    "piecewise_cuda::rows_times_weights",
    _launched,
    mutates_args=(),
    schema="(Tensor row, Tensor[] weights, Tensor?[] added) -> Tensor[]",
)

rows_times_weights: Any = torch.ops.piecewise_cuda.rows_times_weights.default
"""``(row, weights, added)`` -> the outputs, as of ``_launched``."""
