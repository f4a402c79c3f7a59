"""Looks that a trace took at the model, read off Dynamo's guards, as questions to ask again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType, NoneType
from typing import Any

import torch

from piecewise_core.graph.structure import is_plain

__all__ = ["ATTRIBUTES", "TENSOR", "Look", "asked_of", "by_key", "met_twice", "questions"]

_LENGTHS = frozenset({"SEQUENCE_LENGTH", "EMPTY_NN_MODULE_HOOKS_DICT"})
_WHOLE = frozenset({"CONSTANT_MATCH", "EQUALS_MATCH"})
_OF_EVERY_MODULE = ("._global_forward_hooks", "._global_forward_pre_hooks")
_CODE = (type, FunctionType, BuiltinFunctionType, ModuleType)
_FROM_NUMPY = "___from_numpy("
_INHERITED = re.compile(r"dict\((type\(.*\)\.__mro__)\[(\d+)\]\.__dict__\)\[('[^']*')\]")
_OF_FRAME = re.compile(r"(?<!\w)L\[")
_OF_PLACE = re.compile(r"list\(dict\.keys\((G[^()]*)\)\)\[(\d+)\]")
TENSOR = ("tensor", "")
ATTRIBUTES = ("attributes", "")


@dataclass(frozen=True)
class Look:
    """One look that a trace took. ``source``: an expression; ``kind``: what it asked; ``key``: of
    which attribute or entry.
    """

    source: str
    kind: str
    key: Any = None


def asked_of(look: Look) -> Iterator[Look]:
    """``look`` as expressions that can be evaluated."""
    inherited = _INHERITED.fullmatch(look.source)
    if look.source.startswith(_FROM_NUMPY):
        yield Look(look.source[len(_FROM_NUMPY) : -1], "NUMPY")
    elif look.kind == "DUPLICATE_INPUT":
        # Of two places that hold one object, the trace looked into the first only.
        if look.key:
            yield Look(f"({look.source}) is ({look.key})", "CONSTANT_MATCH")
    else:
        yield look
    if look.kind == "TYPE_MATCH" and look.source.endswith(_OF_EVERY_MODULE):
        yield Look(look.source, "SEQUENCE_LENGTH")
    if inherited:  # no class before that one had it
        classes, place, key = inherited.groups()
        for before in range(int(place)):
            yield Look(f"{key} in {classes}[{before}].__dict__", "CONSTANT_MATCH")


def by_key(values: Mapping[str, Any], source: str) -> str:
    """The expression with the keys of globals' entries in place of where in their dicts they lie,
    which depends on what else is loaded; what has no text stays.
    """
    with suppress(Exception):  # not there
        while met := _OF_PLACE.search(source):
            key = list(dict.keys(values[met[1]]))[int(met[2])]
            if type(key) not in (str, int, float, bool, NoneType):
                break
            source = source[: met.start()] + repr(key) + source[met.end() :]
    return source


def met_twice(values: Mapping[str, Any], names: Iterable[str]) -> Iterator[Look]:
    """Looks at what a trace met both as a global and otherwise: Dynamo guards none of these.

    ``names``: of all that it read, in order. ``values``: evaluates them.
    """
    first: dict[int, str] = {}
    for name in names:
        with suppress(Exception):  # nobody else can look it up
            value = values[name]
            if not is_plain(value) and not isinstance(value, _CODE):
                other = first.setdefault(id(value), name)
                if bool(_OF_FRAME.search(other)) != bool(_OF_FRAME.search(name)):
                    yield Look(name, "DUPLICATE_INPUT", other)


def questions(look: Look, value: Any) -> list[tuple[str, Any] | None]:
    """What a look asks: a length is that of a list, or of a tuple."""
    question = _question(look, value)
    return [None, question] if look.kind == "SEQUENCE_LENGTH" else [question]


def _question(look: Look, value: Any) -> tuple[str, Any] | None:
    """What is asked of a value beyond what it is."""
    if look.kind == "NUMPY":
        return ("numpy", "")
    if isinstance(value, torch.Tensor) and look.kind in ("TENSOR_MATCH", "TYPE_MATCH", "ID_MATCH"):
        return TENSOR
    if look.kind in ("HASATTR", "NOT_PRESENT_IN_GENERIC_DICT"):
        return (look.kind, look.key)
    if look.kind in ("DICT_CONTAINS", "DICT_NOT_CONTAINS"):
        return ("DICT_CONTAINS", look.key) if isinstance(look.key, (str, int)) else None
    if look.kind == "DICT_KEYS_MATCH":  # the keys of hooks are numbers that torch gives out
        return ("length" if look.source.endswith("_hooks") else "keys", "")
    if look.kind in _WHOLE:
        return ("contents", "")
    return ("length", "") if look.kind in _LENGTHS else None
