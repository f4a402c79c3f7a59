"""What code a function or class is, as text that changes when the code does."""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

__all__ = ["COMPILING", "class_identity", "core_digest", "function_identity", "package_identity"]

_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
COMPILING = ("torch_compat", "graph", "ranks", "rewrites", "store", "compile")
"""The packages of core that have a part in what is compiled."""


def function_identity(function: Any) -> str | None:
    """Name and code of ``function``; None when what it does depends on more than can be read.

    A string ``key`` on it counts for its identity beside its module's source. Otherwise its code,
    its defaults and what it closes over are read, so those must be plain values or functions.
    """
    key = getattr(function, "key", None)
    run = getattr(function, "run", None) if isinstance(key, str) else None
    if run is not None:  # a plugin's pass, which carries the function that its key names
        inner = function_identity(run)
        return None if inner is None else f"{key} {inner}"
    named = function if hasattr(function, "__qualname__") else type(function)
    name = f"{named.__module__}.{named.__qualname__}"
    content = key if isinstance(key, str) else _content(function)
    if content is None:
        return None
    return f"{name} {_short(f'{_source(named)} {content}')}"


def class_identity(cls: type) -> str:
    """The class's name and the sources of the modules that it and its bases are defined in."""
    sources = [_source(base) for base in cls.__mro__ if base is not object]
    return f"{cls.__module__}.{cls.__qualname__} {_short(' '.join(sources))}"


def package_identity(cls: type) -> str:
    """The sources of the package that ``cls``, a plugin's, is defined in.

    What a class does lies in the modules that it imports as well. Empty for core's, which
    ``core_digest`` tells, and for a module without a package.
    """
    return _package(cls.__module__)


@functools.cache
def _package(module: str) -> str:
    top, package = module.partition(".")[0], module.rpartition(".")[0]
    if top == __name__.partition(".")[0]:
        return ""
    file = getattr(sys.modules.get(package), "__file__", None)
    files = sorted(Path(file).parent.rglob("*.py")) if package and file else []
    return _short(" ".join(_file(str(f)) for f in files)) if files else ""


@functools.cache
def core_digest() -> str:
    """A digest of core's own code that traces, splits and compiles."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in COMPILING:
        for path in sorted((root / name).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _content(thing: Any) -> str | None:
    """Code, defaults and captured values; None for a value that nothing can be said about."""
    if isinstance(thing, functools.partial):
        return _all([thing.func, *thing.args, *thing.keywords, *thing.keywords.values()])
    if isinstance(thing, types.MethodType):
        return _all([thing.__func__, thing.__self__])
    if isinstance(thing, types.FunctionType):
        cells = [_cell(cell) for cell in thing.__closure__ or ()]
        defaults = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        rest = _all([*cells, *defaults])
        return None if rest is None else f"{_code(thing.__code__)} {rest}"
    if isinstance(thing, (types.BuiltinFunctionType, type, types.ModuleType)):
        return f"{getattr(thing, '__module__', '')}.{thing.__name__}"
    if isinstance(thing, enum.Enum):  # before plain values, which some of them are as well
        value = _content(thing.value)
        return None if value is None else f"{class_identity(type(thing))}.{thing.name} {value}"
    if isinstance(thing, _PLAIN):
        return repr(thing)
    if isinstance(thing, (tuple, list)):
        return _all(thing)
    if callable(thing) and not hasattr(type(thing), "__slots__"):
        held = vars(thing)
        rest = _all([*sorted(held), *(held[name] for name in sorted(held))])
        return None if rest is None else f"{class_identity(type(thing))} {rest}"
    return None


def _all(things: Iterable[Any]) -> str | None:
    found = []
    for thing in things:
        content = _content(thing)
        if content is None:
            return None
        found.append(content)
    return f"({', '.join(found)})"


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _code(code: types.CodeType) -> str:
    consts = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    text = f"{code.co_code.hex()} {code.co_names} {consts}"
    return _short(text)


def _source(thing: Any) -> str:
    """A digest of the file that ``thing`` is defined in; empty where there is none."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    try:
        path = inspect.getsourcefile(module) if module is not None else None
    except TypeError:
        path = None
    return "" if path is None else _file(path)


@functools.cache
def _file(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
