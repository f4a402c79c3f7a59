"""A plan's statements, and where each local variable is let go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Line", "freeing"]


@dataclass(frozen=True)
class Line:
    """One statement. ``locals``: the variables that it reads or sets. ``depth``: of its block."""

    text: str
    locals: frozenset[str] = frozenset()
    depth: int = 0


def freeing(lines: Iterable[Line]) -> list[str]:
    """The source of ``lines``, every local variable deleted behind its last use.

    As a model's own would be: a plan would otherwise hold every value between pieces until it
    returns. The last line returns, which lets go of what it uses.
    """
    *before, last = lines
    found = [_indented(last.text, last.depth)]
    done = set(last.locals)
    for line in reversed(before):
        over = sorted(line.locals - done)
        done |= line.locals
        if over:
            found.append(_indented(f"del {', '.join(over)}", line.depth))
        found.append(_indented(line.text, line.depth))
    return found[::-1]


def _indented(text: str, depth: int) -> str:
    return " " * depth + text
