"""What a piece adds to the key of its artifact, and which pieces have no key that lasts."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from piecewise_core.graph.canonical import Form
from piecewise_core.graph.memory import values
from piecewise_core.graph.sizes import expression
from piecewise_core.graph.split import Piece
from piecewise_core.ranges import Box
from piecewise_core.torch_compat.operators import (
    HigherOrderOperator,
    OpOverload,
    can_decompose,
    decomposition_table,
    higher_order_name,
    overloads_of,
    schema_of,
)

__all__ = ["PieceFactors", "piece_factors"]

_OURS = re.compile(
    r"aten|prims?|inductor(_prims)?|_?quantized(_decomposed)?|quantization|mkldnn|mkl|onednn|sparse"
    r"|rngprims|debugprims|_?c10d(_functional)?|profiler|export|symm_mem"
    r"|piecewise"
)
"""Namespaces of torch's own operators, whose versions torch's version tells; and of ours."""

_PLAIN_HIGHER_ORDER = re.compile(
    r"associative_scan|cond|flex_attention|map_impl|out_dtype|scan|strict_mode|while_loop"
    r"|wrap(_with_autocast|_with_set_grad_enabled)?"
)
"""Higher-order operators that are all in their arguments. Others refer to tables of a process."""

_NAMED = 12
"""Kinds of operations that are named in a factor."""


@dataclass(frozen=True)
class PieceFactors:
    """``factors``: name -> value. ``obstacle``: why the piece cannot be kept; empty if it can."""

    factors: dict[str, str]
    obstacle: str

    def over(self, box: Box) -> dict[str, str]:
        """The factors for code over ``box``, a box over the piece's own dims."""
        return {**self.factors, "box": str(box)}


def piece_factors(piece: Piece, form: Form) -> PieceFactors:
    """Factors of ``piece``, whose canonical form is ``form``.

    ``piece.form`` alone would do for a key. The others say, in words, what changed with it.
    """
    obstacle = next(iter(_obstacles(piece, form)), "")
    return PieceFactors(
        {
            "piece.form": hashlib.sha256(form.text.encode()).hexdigest()[:32],
            "piece.operations": _listed(Counter(piece.ops).most_common(), ", "),
            "piece.graph": _graph(form.text),
            "piece.tensors": _tensors(form.text),
            "piece.operators": "; ".join(_foreign(piece)),
        },
        obstacle,
    )


def _obstacles(piece: Piece, form: Form) -> Iterator[str]:
    for name in form.local:
        yield f"it refers to {name}, which another process cannot tell from others of its kind"
    for target in _targets(piece.graph):
        if isinstance(target, HigherOrderOperator):
            name = str(higher_order_name(target))
            if not _PLAIN_HIGHER_ORDER.fullmatch(name):
                yield f"it calls {name}, which may refer to tables of this process"
        for op in overloads_of(target):
            if _is_foreign(op) and (can_decompose(op) or op in decomposition_table):
                yield (
                    f"it calls {op}, which compilers replace by its Python code, whose version "
                    "nobody declares"
                )


def _graph(text: str) -> str:
    """A digest of all but the kinds of inputs: what is called with which constants and values."""
    lines = [line for line in text.splitlines() if not line.startswith("in ")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _tensors(text: str) -> str:
    """The kinds of input tensors, most frequent first: ``torch.float32 cpu [d0, 8] x3``."""
    lines = [line[3:] for line in text.splitlines() if line.startswith("in torch.")]
    kinds = Counter(re.sub(r"( mem\d+)$", "", line) for line in lines).most_common()
    return _listed(kinds, "; ")


def _listed(counted: list[tuple[str, int]], separator: str) -> str:
    named = [f"{name} x{count}" if count > 1 else name for name, count in counted[:_NAMED]]
    rest = len(counted) - _NAMED
    return separator.join([*named, f"{rest} other kinds"] if rest > 0 else named)


def _foreign(piece: Piece) -> Iterator[str]:
    """Operators that are not torch's: what their schemas and their fake kernels say."""
    names: dict[str, str] = {}
    for node in piece.graph.graph.nodes if piece.graph is not None else ():
        if node.op == "placeholder":  # numbers the symbols, whatever operators do with them
            _layout(node.meta.get("example_value"), names)
        for op in overloads_of(node.target) if node.op == "call_function" else ():
            if _is_foreign(op):
                yield f"{schema_of(op)} gives {_layout(node.meta.get('example_value'), names)}"


def _layout(found: Any, names: dict[str, str]) -> str:
    return str([_value(value, names) for value in values(found)])


def _value(value: Any, names: dict[str, str]) -> str:
    if isinstance(value, torch.Tensor):
        sizes = (*value.shape, *value.stride(), value.storage_offset())
        return f"{value.dtype} {value.device.type} {[_size(s, names) for s in sizes]}"
    return f"{type(value).__name__} {_size(value, names)}"


def _size(size: Any, names: dict[str, str]) -> str:
    """A size with its symbols numbered in the order in which they are met."""

    def number(found: re.Match[str]) -> str:
        return names.setdefault(found[0], f"d{len(names)}")

    return re.sub(r"\b[a-z]+\d+\b", number, str(expression(size)))


def _targets(graph: torch.fx.GraphModule | None) -> Iterator[Any]:
    """What is called, in the bodies of higher-order operators too."""
    for module in graph.modules() if graph is not None else ():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if node.op == "call_function":
                    yield node.target


def _is_foreign(op: OpOverload) -> bool:
    return not _OURS.fullmatch(op.namespace)
