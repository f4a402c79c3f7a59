"""Cut the outputs of a padded replay back to the call's own sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from piecewise_core.graph.sizes import SizeWriter, expression
from piecewise_core.graph.split import Program
from piecewise_core.ranges import Sizes

__all__ = ["can_cut", "cut_back"]


def can_cut(program: Program) -> bool:
    """Whether padding can be cut off every output.

    It can where each dim of an output is one of the call's own dims, with its rows in order, or
    fixed. Rows of a dim that is computed (two batches joined, batch and length flattened) may lie
    anywhere.
    """
    symbols = set(program.traced.symbols)
    return all(
        not _varies(size) or expression(size) in symbols
        for example in map(_example, program.values)
        if isinstance(example, torch.Tensor)
        for size in example.shape
    )


def cut_back(program: Program, captured: Sizes) -> Callable[[Sequence[Any], Sizes], list[Any]]:
    """``cut(outputs, sizes)``: every output as a call of ``sizes`` would have given it.

    Dims of an output that follow from the call's sizes are narrowed to what they would be;
    results that are sizes are computed anew.
    """
    write = SizeWriter(program.traced.symbols)
    names: dict[str, Any] = {"math": math, "torch": torch}
    items = []
    for place, value in enumerate(program.values):
        example = _example(value)
        if isinstance(example, torch.Tensor):
            text = f"o[{place}]"
            for axis, size in enumerate(example.shape):
                if _varies(size):
                    text += f".narrow({axis}, 0, {write(size)})"
            items.append(text)
        elif _varies(example):
            items.append(write(example))
        else:
            items.append(f"o[{place}]")
    dims = "".join(f"s{i}, " for i in range(len(captured)))
    source = f"def cut(o, sizes):\n {f'{dims}= sizes' if dims else 'pass'}\n"
    source += f" return [{', '.join(items)}]"
    exec(compile(source, "<piecewise cut>", "exec"), names)
    cut: Callable[[Sequence[Any], Sizes], list[Any]] = names.pop("cut")
    return cut


def _example(value: Any) -> Any:
    return value.meta.get("example_value") if isinstance(value, torch.fx.Node) else value


def _varies(size: Any) -> bool:
    found = expression(size)
    return isinstance(found, sympy.Basic) and bool(found.free_symbols)
