"""Which hooks a plugin may implement, told from its code without importing it.

Every compiled model asks every plugin for graph passes, and most have none. A module's attribute
comes from a name in its code, so a module whose code nowhere holds the name of a hook does not
implement it. Where that cannot be told, the answer is that it may.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType
from typing import Any

from piecewise_core import hookspecs
from piecewise_core.plugins.discovery import PluginEntry

__all__ = ["may_implement"]

_DYNAMIC = frozenset({"globals", "vars", "setattr", "exec", "eval", "__dict__", "*"})
"""Names by which a module may get attributes that its code does not name; * of an import."""


def may_implement(entry: PluginEntry, hook: str) -> bool:
    """Whether the module of ``entry`` could implement ``hook``; never imports anything."""
    module, _, attribute = (part.strip() for part in entry.module.partition(":"))
    if attribute:
        return True
    if module in sys.modules:  # loading it costs nothing then
        return True
    spec = _find(module)
    loader: Any = spec.loader if spec is not None else None
    read = getattr(loader, "get_code", None)
    try:
        code = read(module) if read is not None else None
    except Exception:  # the import will say what is wrong
        return True
    return code is None or any(_could_be(name, hook) for name in _names(code))


def _could_be(name: str, hook: str) -> bool:
    """Whether ``name`` is the hook, a slip of the pen for it, or a way around names."""
    if name == hook or name in _DYNAMIC:
        return True
    hooklike = name.startswith("piecewise_") and not hasattr(hookspecs, name)
    return hooklike and bool(difflib.get_close_matches(name, [hook], cutoff=0.8))


def _find(module: str) -> ModuleSpec | None:
    """The module's spec, looked for without importing its parents."""
    if not re.fullmatch(r"\w+(\.\w+)*", module):
        return None
    parts = module.split(".")
    path: list[str] | None = None
    spec: ModuleSpec | None = None
    for depth in range(1, len(parts) + 1):
        try:
            spec = PathFinder.find_spec(".".join(parts[:depth]), path)
            path = None if spec is None else list(spec.submodule_search_locations or ())
        except (ImportError, KeyError):  # a namespace package asks for its parent
            return None
        if spec is None:
            return None
    return spec


def _names(code: CodeType) -> Iterator[str]:
    """Names and strings in ``code`` and in what is defined in it."""
    yield from code.co_names
    yield from code.co_varnames
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
        elif isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple):
            yield from (c for c in constant if isinstance(c, str))
