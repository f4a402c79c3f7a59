"""How long modules and functions may be, in core and in the platform wheels."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ROOTS = (REPOSITORY / "piecewise_core", REPOSITORY / "platforms")
MODULE, FUNCTION = 250, 50
"""Lines of a module, and of a function, its docstring included."""


def too_long(text: str, name: str) -> Iterator[str]:
    """The module at ``name`` and each of its functions that are longer than they may be."""
    if len(text.splitlines()) > MODULE:
        yield name
    for node in ast.walk(ast.parse(text)):
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if is_function and (node.end_lineno or 0) - node.lineno >= FUNCTION:
            yield f"{name}:{node.name}"


def test_no_module_or_function_is_longer_than_it_may_be() -> None:
    found = {
        what
        for root in ROOTS
        for path in root.rglob("*.py")
        for what in too_long(
            path.read_text(encoding="utf-8"), path.relative_to(REPOSITORY).as_posix()
        )
    }
    assert sorted(found) == [], "split it by noun, or delete"


def test_lengths_are_counted_to_the_line() -> None:
    function = "def f():\n" + "    x = 1\n" * (FUNCTION - 1)
    assert list(too_long(function, "m.py")) == []
    assert list(too_long(function + "    x = 1\n", "m.py")) == ["m.py:f"]
    assert list(too_long("x = 1\n" * MODULE, "m.py")) == []
    assert list(too_long("x = 1\n" * (MODULE + 1), "m.py")) == ["m.py"]
