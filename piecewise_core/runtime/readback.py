"""Whether code goes by what it notes: a number that it only counts up is nobody's but a reader's.

A replay runs no Python, so what a recorded function counts up stays as it is. Where its code reads
the number for anything else, to compare it perhaps, a later call may take another path.
"""

from __future__ import annotations

import dis
from collections.abc import Collection, Iterable
from types import CodeType

__all__ = ["names_read"]


def names_read(functions: Iterable[Iterable[CodeType]], among: Collection[str]) -> frozenset[str]:
    """Those names of attributes, globals, cells and items that are read, but to be counted up."""
    if not among:
        return frozenset()
    read = frozenset(name for parts in functions for code in parts for name in _names(code, among))
    return read & frozenset(among)


def _names(code: CodeType, among: Collection[str]) -> Iterable[str]:
    # Code that mentions none of them need not be taken apart, which takes long.
    text = [each for each in code.co_consts if isinstance(each, str)]
    if not {*code.co_names, *text, *code.co_freevars, *code.co_cellvars}.intersection(among):
        return
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "NOP")]
    for place, step in enumerate(steps):
        loads = step.opname.startswith("LOAD_") and "FAST" not in step.opname
        writes = _is_stored(steps, place) or _is_counted_up(steps, place)
        if loads and isinstance(step.argval, str) and not writes:
            yield step.argval


def _is_stored(steps: list[dis.Instruction], place: int) -> bool:
    """Whether an item is set under this name: ``held["name"] = ...``."""
    return steps[place].opname == "LOAD_CONST" and _opname(steps, place + 1) == "STORE_SUBSCR"


def _is_counted_up(steps: list[dis.Instruction], place: int) -> bool:
    """Whether the next thing stored is the same, by an augmented assignment."""
    for later in range(place + 1, len(steps)):
        name = steps[later].opname
        if "JUMP" in name or name.startswith(("RETURN", "YIELD")):
            return False
        if name.startswith("STORE_"):
            same = name == "STORE_SUBSCR" or steps[later].argval == steps[place].argval
            return same and _is_augmented(steps, later)
    return False


def _is_augmented(steps: list[dis.Instruction], store: int) -> bool:
    before = store - 1
    while _opname(steps, before).startswith(("SWAP", "ROT_")):
        before -= 1
    return (
        "=" in steps[before].argrepr
        if _opname(steps, before) == "BINARY_OP"
        else _opname(steps, before).startswith("INPLACE_")
    )


def _opname(steps: list[dis.Instruction], place: int) -> str:
    return steps[place].opname if 0 <= place < len(steps) else ""
