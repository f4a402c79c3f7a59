"""What a trace looked for in vain: a miss that code catches leaves no guard of Dynamo's."""

from __future__ import annotations

import dis
import inspect
import itertools
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MemberDescriptorType, MethodType
from typing import Any

import torch

from piecewise_core.graph.codedigests import TORCH, is_of_python
from piecewise_core.graph.codefacts import OURS

__all__ = ["missed"]

_ALL = frozenset({"Exception", "BaseException", "suppress"})
"""What catches any error, or one that only an argument names."""
_LOOKING = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_BY_TEXT = frozenset({"getattr", "attrgetter", "__getattribute__", "__getattr__"})
_OF_MODULES = frozenset(vars(torch.nn.Module()))


def missed(
    values: Mapping[str, Any], met: Iterable[str], sources: Iterable[str], code: Iterable[CodeType]
) -> Iterator[tuple[tuple[str, Any], Any]]:
    """What is not there, and code that catches that may have looked for."""
    names, constants = _names_missed(code)
    for source in met if names else ():
        value = values[source]
        own = getattr(type(value), "__getattr__", None)
        if own in (None, torch.nn.Module.__getattr__):  # no code that would run for each name
            for name in sorted(names):
                held = inspect.getattr_static(value, name, names)
                slot = isinstance(held, MemberDescriptorType)  # which may be empty
                if (slot or held is names) and not hasattr(value, name):
                    yield (source, ("HASATTR", name)), False
    if constants is None:
        return
    held = itertools.chain.from_iterable(map(_plainly_held, values.values()))
    keys = {*constants, *(v for v in held if type(v) in (str, int))}
    for source in sources:
        value = values[source]
        owner, _, name = source.rpartition(".")
        kept = name in _OF_MODULES and not isinstance(values.get(owner), torch.nn.ModuleDict)
        if isinstance(value, dict) and not kept and not source.startswith("G['__builtins"):
            for key in sorted(keys - dict.keys(value), key=repr):
                yield (source, ("DICT_CONTAINS", key)), False


def _plainly_held(value: Any) -> Iterator[Any]:
    """``value``, and what a function takes where a call omits arguments."""
    function = getattr(value, "__func__", value) if isinstance(value, MethodType) else value
    yield function
    if isinstance(function, FunctionType):
        yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())


def _names_missed(codes: Iterable[CodeType]) -> tuple[set[str], set[Any] | None]:
    """Attributes, and keys of dicts, that some of ``codes`` may look for and do without; or None.

    Where any code catches a missing key, it may be a constant of any: a function may take it as
    an argument.
    """
    own = [code for code in codes if not code.co_filename.startswith((TORCH, OURS))]
    catch = [c for c in own if not is_of_python(c) and _catches(c, "AttributeError")]
    names = {*itertools.chain.from_iterable(map(_attributes, catch))}
    keys = None
    if any(_catches(code, "KeyError", "LookupError") for code in own):
        keys = {key for code in own for key in code.co_consts if type(key) in (str, int)}
    return {name for name in names if _is_name(name)}, keys


def _attributes(code: CodeType) -> Iterator[Any]:
    """What it looks for by name where an error is met, modules left out; by text where it can."""
    of_module, met, imported = False, _met_at(code), set()
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        if name == "IMPORT_NAME":
            imported.add(value)
        elif name in _LOOKING:
            if not of_module and instruction.offset in met:
                yield value
        else:
            loaded = name == "LOAD_GLOBAL" or (name.startswith("LOAD_FAST") and value in imported)
            of_module = loaded and value in sys.modules
    if not _BY_TEXT.isdisjoint(code.co_names):
        yield from code.co_consts


def _met_at(code: CodeType) -> Container[int]:
    """Offsets of the instructions whose errors ``code`` goes on after."""
    entries = getattr(dis.Bytecode(code), "exception_entries", None)
    if entries is None:  # Python 3.10
        return range(len(code.co_code))
    return {at for entry in entries for at in range(entry.start, entry.end)}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier() and value[:2] != "__"


def _catches(code: CodeType, *errors: str) -> bool:
    """Whether it may catch one of ``errors``, by name or with all others."""
    if not _ALL.union(errors).isdisjoint(code.co_names):
        return True
    if not getattr(code, "co_exceptiontable", b""):  # Python 3.10 has none
        return False
    # ``except:`` drops what was raised at once; ``finally`` and ``with`` do not.
    names = [i.opname for i in dis.get_instructions(code)]
    return ("PUSH_EXC_INFO", "POP_TOP") in itertools.pairwise(names)
