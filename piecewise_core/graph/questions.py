"""Whether traced code may have asked how a tensor lies in memory: Dynamo answers without a guard.

Strides and contiguity are answered from the traced tensors and are gone from the graph. What the
code mentions tells whether anybody may have asked; who really did, only another trace tells.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType
from typing import Any

import torch

__all__ = ["MODES", "asks", "mentions", "named"]

MODES = frozenset({"is_grad_enabled", "is_inference", "is_inference_mode_enabled"})
"""Functions and methods whose answer is another one in inference mode, where all is traced."""

_LAYOUT = frozenset({"dim_order", "is_contiguous", "storage_offset", "stride"})
_OTHER = frozenset({
    "as_strided", "guard_or_false", "guard_or_true", "guard_size_oblivious",
    "statically_known_false", "statically_known_true",
})  # fmt: skip
_TORCH = str(Path(torch.__file__).parent)


def mentions(codes: Iterable[CodeType]) -> bool:
    """Whether any of ``codes`` names a question about layouts, be it by a string.

    Of torch's own code only what calls it: its convolutions have an attribute ``stride``.
    """
    return any(_mentions(code) for code in codes)


def asks(codes: Iterable[CodeType]) -> bool:
    """Whether any of ``codes`` calls a method that asks for a layout."""
    return any(_LAYOUT & _called(code) for code in codes)


def named(answers: Iterable[Any]) -> bool:
    """Whether a value that a trace read names such a question: ``getattr(x, self.question)``."""
    return any(answer == {"value": name} for answer in answers for name in _LAYOUT | _OTHER)


def _mentions(code: CodeType) -> bool:
    if _OTHER & {*code.co_names}:
        return True
    if code.co_filename.startswith(_TORCH):
        return bool(_LAYOUT & {*code.co_names} and _LAYOUT & _called(code))
    texts = {c for c in code.co_consts if isinstance(c, str)}
    return bool((_LAYOUT | _OTHER) & ({*code.co_names} | texts))


def _called(code: CodeType) -> set[str]:
    """Names of methods that ``code`` calls."""
    if not _LAYOUT & {*code.co_names}:
        return set()
    return {i.argval for i in dis.get_instructions(code) if _is_method(i)}


def _is_method(instruction: dis.Instruction) -> bool:
    if instruction.opname == "LOAD_METHOD":
        return True
    loads = instruction.opname == "LOAD_ATTR" and sys.version_info >= (3, 12)
    return loads and bool((instruction.arg or 0) & 1)
