"""What tells one function, one class, from another: digests of code, torch's own left out.

No file and no line number: the same code lies elsewhere on another machine.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import linecache
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any

import torch

from piecewise_core.graph.structure import is_plain

__all__ = [
    "TORCH",
    "class_digest",
    "code_behind",
    "code_digest",
    "file_digest",
    "function_digest",
]

TORCH = os.path.dirname(torch.__file__) + os.sep
"""How the file names of torch's code begin."""

_LIBRARY = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = tuple(os.sep + name + os.sep for name in ("site-packages", "dist-packages"))

_WITHOUT_CODE = frozenset((str, int, bool, float, tuple, dict, list, type(None)))


def is_of_python(code: CodeType) -> bool:
    """Whether ``code`` is Python's own: of its standard library."""
    file = code.co_filename
    if file.startswith("<frozen"):
        return True
    return file.startswith(_LIBRARY) and not any(part in file for part in _INSTALLED)


@functools.lru_cache(4096)
def code_digest(code: CodeType) -> str:
    """A digest of what the code does: no file, no line numbers."""
    return _digest(_content(code))


def function_digest(value: Any) -> str:
    """``code_digest`` of a function or method with its defaults; "" for torch's, whose version
    counts, and others.
    """
    function = inspect.unwrap(value)
    code = getattr(function, "__code__", None)
    if code is None or code.co_filename.startswith(TORCH):
        return ""
    by_name = getattr(function, "__kwdefaults__", None) or {}
    defaults = [*(getattr(function, "__defaults__", None) or ()), *sorted(by_name.items())]
    return _digest((code_digest(code), *map(_default, defaults))) if defaults else code_digest(code)


def class_digest(kind: type) -> str:
    """A digest of the methods of a class and its bases, torch's left out; "" without any.

    A method that somebody added to a class of torch's says nothing: where it was called, the trace
    ran through its code.
    """
    found = [
        (name, code_digest(code))
        for base in kind.__mro__
        if base.__module__ != "builtins"
        for name, code in sorted(_codes_in(base), key=itemgetter(0))
        if not _is_added(kind, base, name)
    ]
    return _digest(found) if found else ""


def _codes_in(base: type) -> Iterator[tuple[str, CodeType]]:
    """The code of what a class has itself, but torch's, by name. Asked of all classes, again and
    again: what plainly has none, or one, is not gone through.
    """
    for name, value in vars(base).items():
        if type(value) in _WITHOUT_CODE:
            continue
        plain = type(value) is FunctionType and not (value.__closure__ or value.__dict__)
        for code in (value.__code__,) if plain else code_behind(value):
            if not code.co_filename.startswith(TORCH):
                yield name, code


def _digest(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def _default(value: Any) -> Any:
    """What a default tells; of what is not compared by value, its type alone."""
    if type(value) in (tuple, list):
        return [_default(item) for item in value]
    if is_plain(value):
        return _content(value)
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _is_added(kind: type, base: type, name: str) -> bool:
    """Whether ``base`` is torch's and did not have ``name`` by itself."""
    file = getattr(sys.modules.get(base.__module__), "__file__", None) or ""
    if not file.startswith(TORCH) or any(name in vars(b) for b in kind.__mro__ if b is not base):
        return False
    return name not in _names_in(file)


@functools.cache
def _names_in(file: str) -> frozenset[str]:
    """Whatever might be a name in a source file."""
    return frozenset(re.findall(r"\w+", "".join(linecache.getlines(file))))


def _content(value: Any) -> Any:
    if isinstance(value, CodeType):
        return (
            value.co_code,
            value.co_names,
            value.co_varnames,
            value.co_freevars,
            value.co_cellvars,
            value.co_argcount,
            value.co_posonlyargcount,
            value.co_kwonlyargcount,
            value.co_flags,
            [_content(c) for c in value.co_consts],
        )
    if isinstance(value, tuple):
        return tuple(map(_content, value))
    if isinstance(value, frozenset):
        return sorted(map(repr, value))  # its own order changes from process to process
    return repr(value)


def file_digest(path: str) -> str:
    """A digest of a whole file; "" where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]
    except OSError:
        return ""


def code_behind(value: Any) -> Iterator[CodeType]:
    """The code of a function, and of what its decorators hold it in."""
    seen: set[int] = set()
    open_ends = [value]
    while open_ends:
        value = open_ends.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType):
            yield value.__code__
            open_ends += [c.cell_contents for c in value.__closure__ or () if _is_function(c)]
        # A ``__getattr__`` of the model's own may raise anything, or note what it is asked.
        ask = inspect.getattr_static if hasattr(type(value), "__getattr__") else getattr
        held = ("__func__", "__wrapped__", "fget", "func")
        open_ends += [found for n in held if (found := ask(value, n, None)) is not None]


def _is_function(cell: CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, FunctionType)
    except ValueError:  # not assigned yet
        return False
