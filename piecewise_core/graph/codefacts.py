"""Which Python functions a trace ran through, and whether they are still the same.

A function is known by module and qualified name, and compared by a digest of its code: not by its
file, which lies elsewhere on another machine.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from piecewise_core.graph.codedigests import TORCH, code_behind, code_digest, file_digest
from piecewise_core.torch_compat.targets import marked_constant

__all__ = [
    "CodeFact",
    "Found",
    "changed",
    "code_facts",
    "lists_attributes",
    "unaskable",
]

OURS = "<piecewise"
"""How the file names of code that core makes begin."""
_LISTS_ALL = frozenset({"__dict__", "dir", "vars"})
"""Names by which a program looks at all that an object has, which nobody notes."""


@dataclass(frozen=True, order=True)
class CodeFact:
    """One function. ``file``: digest of its file, for a function that cannot be found by name."""

    module: str
    name: str
    digest: str
    file: str


@dataclass(frozen=True)
class Found:
    """``facts``: functions that can be found by name, and compared. ``unasked``: code that cannot
    be asked for again, one sentence each.
    """

    facts: tuple[CodeFact, ...]
    unasked: tuple[str, ...]


def code_facts(codes: Iterable[CodeType], values: Iterable[Any] = ()) -> Found:
    """The functions of ``codes``, but for torch's, whose version counts.

    ``values``: what is compared by its own digest; code that it holds need not be found by name.
    """
    wanted = {code for code in codes if not code.co_filename.startswith((TORCH, OURS))}
    modules = _modules({code.co_filename for code in wanted})
    digested: set[CodeType] | None = None
    facts, unasked = set(), []
    for code in wanted:
        module = modules.get(code.co_filename)
        if module is not None and _is_named(sys.modules[module], code):
            digest, file = code_digest(code), file_digest(code.co_filename)
            facts.add(CodeFact(module, _name(code), digest, file))
            continue
        if digested is None:
            digested = set(_held(values))
        if code not in digested:
            where = f"{code.co_filename}:{code.co_firstlineno}"
            unasked.append(f"the code of {_name(code)} ({where}), which cannot be imported")
    return Found(tuple(sorted(facts)), tuple(unasked))


def _modules(files: set[str]) -> dict[str, str]:
    """The names of the modules that are from ``files``.

    Most can be guessed from the path. Going through all the modules that there are takes longer
    than all else that is noted about a trace.
    """
    found: dict[str, str] = {}
    for file in files:
        for name in _guesses(file):
            if getattr(sys.modules.get(name), "__file__", None) == file:
                found[file] = name
                break
    rest = {file for file in files - found.keys() if os.path.isabs(file)}
    if rest:
        for name, module in list(sys.modules.items()):
            path = getattr(module, "__file__", None)
            if path in rest:
                found[path] = name
    return found


def _guesses(file: str) -> Iterator[str]:
    """The names that a module of that path may have, and that of the program itself."""
    parts = os.path.splitext(file)[0].split(os.sep)
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    yield from (".".join(parts[place:]) for place in range(len(parts) - 1, -1, -1))
    yield "__main__"


def lists_attributes(codes: Iterable[CodeType]) -> bool:
    """Whether some of ``codes`` look at all that an object has, which nobody notes."""
    return any(
        _LISTS_ALL.intersection(code.co_names)
        for code in codes
        if not code.co_filename.startswith((TORCH, OURS))
    )


def unaskable(values: Iterable[Any]) -> Iterator[str]:
    """Why what some of ``values`` do cannot be told from what others of their kind do."""
    for function in (f for value in values for f in _functions(value)):
        if marked_constant(function):
            yield f"the result of {function.__qualname__}, which was declared constant"
        elif function.__code__.co_names and not _is_of_a_module(function.__globals__):
            yield f"the globals of {function.__qualname__}, which are those of no module"


def _is_of_a_module(scope: dict[str, Any]) -> bool:
    named = sys.modules.get(str(scope.get("__name__")))
    return any(
        getattr(module, "__dict__", None) is scope
        for module in itertools.chain((named,), list(sys.modules.values()))
    )


def _functions(value: Any) -> Iterator[FunctionType]:
    """The functions that ``value`` is, or has as methods that do not come from torch."""
    if isinstance(value, (FunctionType, MethodType)):
        found = inspect.unwrap(value)
        found = getattr(found, "__func__", found)
        if isinstance(found, FunctionType) and not found.__code__.co_filename.startswith(TORCH):
            yield found
        return
    kind = value if isinstance(value, type) else type(value)
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] not in ("builtins", "torch"):
            for held in vars(base).values():
                if marked_constant(held):
                    yield held


def _held(values: Iterable[Any]) -> Iterator[CodeType]:
    """The code that the digests of ``values`` are over."""
    bases: dict[type, None] = {}
    for value in values:
        yield from _with_nested(value)
        kind = value if isinstance(value, type) else type(value)
        bases.update(dict.fromkeys(kind.__mro__))
    for base in bases:
        if base.__module__ != "builtins":
            for held in vars(base).values():
                yield from _with_nested(held)


def _with_nested(value: Any) -> Iterator[CodeType]:
    for code in code_behind(value):
        yield code
        yield from _nested(code)


def _is_named(module: ModuleType, code: CodeType) -> bool:
    """Whether ``code`` is what goes by its name in ``module``."""
    codes = _codes(module, _name(code))
    return (codes is None and not hasattr(CodeType, "co_qualname")) or code in (codes or ())


def changed(facts: Iterable[CodeFact]) -> Iterator[str]:
    """What is no longer as it was, one sentence each."""
    for fact in facts:
        try:
            module = importlib.import_module(fact.module)
        except ImportError as error:
            yield f"module {fact.module} cannot be imported ({error})"
            continue
        codes = _codes(module, fact.name)
        if codes is None:
            same = file_digest(getattr(module, "__file__", None) or "") == fact.file
        else:
            same = fact.digest in map(code_digest, codes)
        if not same:
            what = "is not there" if codes is None else "changed"
            yield f"the code of {fact.module}.{fact.name} {what}"


def _name(code: CodeType) -> str:
    return getattr(code, "co_qualname", code.co_name)  # Python 3.10 knows the last part only


def _codes(module: ModuleType, name: str) -> list[CodeType] | None:
    """The code of every function that goes by ``name`` in ``module``; None: none to be had."""
    if not hasattr(CodeType, "co_qualname"):
        return None
    outer, _, inner = name.partition(".<locals>.")
    value: Any = module
    for part in outer.split("."):
        try:
            value = inspect.getattr_static(value, part)
        except AttributeError:
            return None
    whole = [c for c in code_behind(value) if _name(c) == outer]
    return whole if not inner else [c for code in whole for c in _nested(code) if _name(c) == name]


def _nested(code: CodeType) -> Iterator[CodeType]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield value
            yield from _nested(value)
