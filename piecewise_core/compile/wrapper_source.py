"""Inductor's generated module, cut down to its ``call`` and what that needs.

The module as generated imports most of Inductor, builds its C++ kernels when it is imported, and
ends in a benchmark. A loaded piece needs none of it: the kernels are built already.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["NotPortable", "WrapperSource", "cut_down"]

_DEFINES = (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef, ast.ClassDef)
_BUILDER = "async_compile"
_KERNEL = f"{_BUILDER}.cpp_pybinding"
_LIBRARY = "extern_kernels"


class NotPortable(Exception):
    """The module does something that its text and its built kernels alone would not repeat."""


@dataclass(frozen=True)
class WrapperSource:
    """``text`` defines ``call(args)``, given the names in ``kernels`` and ``extern_kernels``.

    ``kernels``: names of C++ kernels. ``library``: attributes used of ``extern_kernels``.
    """

    text: str
    kernels: tuple[str, ...]
    library: tuple[str, ...]


def cut_down(source: str) -> WrapperSource:
    """Keep what ``call`` reaches. Raises NotPortable where that needs Inductor's builder."""
    statements = _statements(ast.parse(source))
    kept: dict[str, ast.stmt] = {}
    kernels: list[str] = []
    wanted = ["call"]
    while wanted:
        name = wanted.pop()
        statement = statements.get(name)
        if statement is None or name in kept or name in kernels or name == _LIBRARY:
            continue
        if name == _BUILDER:
            raise NotPortable(f"its code uses {_BUILDER} for more than C++ kernels")
        if _is_kernel(statement):
            kernels.append(name)
            continue
        kept[name] = statement
        wanted += _names(statement)
    if "call" not in kept:
        raise NotPortable("its code defines no call")
    body = list(dict.fromkeys(s for s in statements.values() if s in kept.values()))
    text = "\n".join(ast.unparse(s) for s in body)
    return WrapperSource(text + "\n", tuple(sorted(kernels)), tuple(sorted(_library(body))))


def _statements(module: ast.Module) -> dict[str, ast.stmt]:
    """Each top-level name, in order, and the one statement that defines it."""
    found: dict[str, ast.stmt] = {}
    for statement in module.body:
        if not isinstance(statement, _DEFINES):
            continue  # waiting for kernels, forgetting the builder, the benchmark at the end
        for name in _defined(statement):
            if name in found and not _same_import(found[name], statement):
                raise NotPortable(f"its code defines {name} twice")
            found.setdefault(name, statement)
    return found


def _defined(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        for alias in statement.names:
            yield (alias.asname or alias.name).split(".")[0]
    elif isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            if not isinstance(target, ast.Name):
                raise NotPortable(f"its code assigns to {ast.unparse(target)}")
            yield target.id


def _same_import(one: ast.stmt, other: ast.stmt) -> bool:
    imports = (ast.Import, ast.ImportFrom)
    return isinstance(one, imports) and ast.dump(one) == ast.dump(other)


def _is_kernel(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Call)
        and ast.unparse(statement.value.func) == _KERNEL
    )


def _names(statement: ast.stmt) -> set[str]:
    loads = (n for n in ast.walk(statement) if isinstance(n, ast.Name))
    return {n.id for n in loads if isinstance(n.ctx, ast.Load)}


def _library(body: list[ast.stmt]) -> set[str]:
    nodes = [n for statement in body for n in ast.walk(statement)]
    mentions = [n for n in nodes if isinstance(n, ast.Name) and n.id == _LIBRARY]
    used = [n.attr for n in nodes if isinstance(n, ast.Attribute) and n.value in mentions]
    if len(mentions) != len(used):
        raise NotPortable(f"its code hands {_LIBRARY} around")
    return set(used)
