"""Whether traced code may have asked how a tensor lies in memory: Dynamo answers without a guard.

Strides and contiguity are answered from the traced tensors and are gone from the graph. What the
code mentions tells whether anybody may have asked; who really did, only another trace tells.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

import torch

__all__ = [
    "ADDRESSES",
    "FACTS",
    "IDENTITY",
    "MISREAD",
    "MODES",
    "RANDOM_STATE",
    "THREADS",
    "WATCHED",
    "asks",
    "mentions",
    "named",
    "words",
]

MODES = frozenset({"is_grad_enabled", "is_inference", "is_inference_mode_enabled"})
"""Functions and methods whose answer is another one in inference mode, where all is traced."""

RANDOM_STATE = frozenset({"get_rng_state", "initial_seed"})
"""Functions and methods that tell of a generator, which is in another state while one records."""

THREADS = frozenset({
    "ProcessPoolExecutor", "Thread", "ThreadPool", "ThreadPoolExecutor", "run_in_executor",
    "start_new_thread", "to_thread",
})  # fmt: skip
"""Names with which code has another thread work, whose operators no recording sees."""

FACTS: Mapping[str, frozenset[str]] = {
    "gradients": frozenset({"requires_grad"}),
    "class": frozenset({"Buffer", "Parameter", "__class__", "type"}),
    "attributes": frozenset({"AttributeError", "__dict__", "getattr", "hasattr", "vars"}),
    "no gradients": frozenset({"is_grad_enabled"}),
}
"""What a binder may compare -> the names with which code asks a tensor for it."""

ADDRESSES = frozenset({"_base", "_is_view", "_typed_storage", "untyped_storage"})
"""Names that tell where a tensor lies, or in whose memory: tracing answers for its own tensors."""

IDENTITY = " is "
"""Stands among words for a comparison of two variables by identity."""

MISREAD = "misread numbers"
"""Stands among words for what torch's symbols of sizes answer as no number does, if code may ask
that: ``round`` with digits gives the number itself, ``__class__`` is not ``int``."""

WATCHED = frozenset().union(*FACTS.values()) | ADDRESSES | MODES | RANDOM_STATE | THREADS | {
    "allow_bf16_reduced_precision_reduction", "allow_fp16_accumulation",
    "allow_fp16_reduced_precision_reduction", "allow_tf32", "autocast", "benchmark", "cudnn",
    "custom_fwd", "environ", "fp32_precision", "mkldnn",
    "get_autocast_cpu_dtype", "get_autocast_dtype", "get_autocast_gpu_dtype",
    "get_fastpath_enabled", "get_float32_matmul_precision", "get_num_threads", "getenv",
    "is_anomaly_enabled", "opt_einsum", "strategy",
}  # fmt: skip
"""Names of torch's switches that are asked at every call only where code names them."""

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


def words(codes: Iterable[CodeType]) -> frozenset[str]:
    """Those of ``WATCHED`` that ``codes``, torch's own left out, name, be it by a string."""
    found: set[str] = set()
    for code in codes:
        if not code.co_filename.startswith(_TORCH):
            texts = {c for c in code.co_consts if isinstance(c, str)}
            found |= WATCHED & ({*code.co_names} | texts)
            if _compares_identity(code):
                found.add(IDENTITY)
            if {"__class__", "int"} <= {*code.co_names} or _rounds_to_digits(code):
                found.add(MISREAD)
    return frozenset(found)


_VALUES = ("LOAD_FAST", "LOAD_DEREF", "BINARY_", "CALL")
"""Instructions that give what is no constant and has no name of a module's."""
_PARTS = ("LOAD_ATTR", "LOAD_METHOD")


def _rounds_to_digits(code: CodeType) -> bool:
    """Whether ``code`` calls ``round`` with digits, or hands it on."""
    if {"round", "__round__"}.isdisjoint(code.co_names):
        return False
    depth, open_calls = 0, []
    for instruction in dis.get_instructions(code):
        if instruction.argval in ("round", "__round__") and "LOAD" in instruction.opname:
            open_calls.append((depth, int(instruction.argval == "__round__")))
        has_argument = instruction.opcode >= dis.HAVE_ARGUMENT
        depth += dis.stack_effect(
            instruction.opcode, instruction.arg if has_argument else None, jump=False
        )
        if open_calls and depth <= open_calls[-1][0] + 1 and "CALL" in instruction.opname:
            _, own = open_calls.pop()
            if instruction.opname == "CALL_FUNCTION_EX" or (instruction.arg or 0) + own > 1:
                return True
    return bool(open_calls)


def _compares_identity(code: CodeType) -> bool:
    """Whether ``code`` asks of two values that it holds whether they are one.

    Not where a tensor cannot be among them: ``inspect`` compares callables, and a function that
    compares something with itself, as layers of transformers do, asks nothing of tensors.
    """
    if dis.opmap["IS_OP"] not in code.co_code[::2] or code.co_filename == inspect.__file__:
        return False
    held = False
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IS_OP" and held:
            return True
        held = instruction.opname.startswith(_VALUES) or (held and instruction.opname in _PARTS)
        held = held and not _is_itself(instruction, code)
    return False


def _is_itself(instruction: dis.Instruction, code: CodeType) -> bool:
    """Whether it loads the function that ``code`` is of, by the name that its ``def`` bound.

    A method's name is bound in its class: a variable around that of the same name is another one.
    Python 3.10 does not tell the two apart.
    """
    inner = getattr(code, "co_qualname", "").endswith(f"<locals>.{code.co_name}")
    return inner and instruction.opname == "LOAD_DEREF" and instruction.argval == code.co_name


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
