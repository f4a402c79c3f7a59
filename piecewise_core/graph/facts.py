"""Facts that a trace rests on: an expression over the model, a question, and the answer to it."""

from __future__ import annotations

import builtins
import functools
import importlib
import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch

from piecewise_core.graph.identity import VALUES, contents, identity, is_number, tensor_facts

__all__ = [
    *("CHAIN", "LAST", "OF_CALLS", "Evaluated", "Fact", "Question", "Scope", "aliases"),
    *("answer_of", "firsts", "item_of", "readable", "scope_of"),
]

_STEP = r"\.(\w+)|\['([^'\\]*)'\]|\[(\d+)\]"
CHAIN = re.compile(rf"[LG](?:{_STEP})*")
LAST = re.compile(rf"(?:{_STEP})\Z")
"""Attributes and items of a name, which most expressions are, and the last of these steps."""

OF_CALLS = re.compile(r"(?<!\w)L\['objects'\]")
"""How expressions of the objects that calls bring begin; ``TOTAL['objects']`` is a model's."""

Scope = dict[str, Any]
"""What expressions of facts are evaluated in: the traced frame's locals ``L`` and globals ``G``."""

Question = tuple[str, Any] | None
"""What is asked of a value, and of which of its attributes or entries; None: which one it is."""


class Evaluated(dict[str, Any]):
    """What expressions give, each evaluated once."""

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self._scope = scope

    def __missing__(self, source: str) -> Any:
        found = self[source] = self._value(source)
        return found

    def _value(self, source: str) -> Any:
        last = LAST.search(source) if CHAIN.fullmatch(source) else None
        if last is None or source[: last.start()] in ("L", "G"):
            return eval(_compiled(source), self._scope)
        before = source[: last.start()]
        base = self[before] if before in self else self._value(before)
        name, key, place = last.groups()
        return getattr(base, name) if name else item_of(base, key if place is None else int(place))


@functools.lru_cache(65536)
def _compiled(source: str) -> CodeType:
    return compile(source, "<fact>", "eval")


@dataclass(frozen=True, eq=False)
class Fact:
    """One answer: to ``question`` of what the expression ``source`` gives."""

    source: str
    question: Question
    answer: Any

    @property
    def text(self) -> str:
        """The expression as a person would write it."""
        return readable(self.source)

    def broken(self, values: Evaluated) -> str | None:
        """What does not hold now, in one sentence; None when it holds."""
        try:
            value = values[self.source]
        except Exception as error:
            return self._missing(error)
        return self.contradicted(value)

    def contradicted(self, value: Any) -> str | None:
        """The same, of what the expression gives."""
        try:
            now = answer_of(value, self.question)
        except Exception as error:
            return self._missing(error)
        if _same(now, self.answer):
            return None
        asked = _asked(readable(self.source), self.question)
        return f"{asked} is {_shown(now)}, and was {_shown(self.answer)}"

    def _missing(self, error: Exception) -> str:
        return f"{readable(self.source)} is not there ({type(error).__name__}: {error})"


def item_of(base: Any, key: Any) -> Any:
    """``base[key]``; a dict that makes what is asked for, a defaultdict, makes nothing here."""
    if isinstance(base, dict) and hasattr(type(base), "__missing__") and key not in base:
        raise KeyError(key)
    return base[key]


def scope_of(
    fn: Callable[..., Any],
    objects: Sequence[Any],
    imports: Mapping[str, str],
    unnamed: Mapping[str, Any],
) -> Scope:
    """What expressions over a frame see: ``fn``, its calls' ``objects``, and globals."""
    return {"L": {"fn": fn, "objects": objects}, "G": _Globals(imports, unnamed)}


class _Globals(dict[str, Any]):
    """The traced entry's globals: modules that Dynamo named, torch, and builtins."""

    def __init__(self, imports: Mapping[str, str], unnamed: Mapping[str, Any]) -> None:
        super().__init__(unnamed, torch=torch)
        self._imports = imports

    def __missing__(self, name: str) -> Any:
        if name.startswith("__builtins_dict__"):
            return vars(builtins)
        return importlib.import_module(self._imports[name])


def firsts(keys: Iterable[Hashable]) -> list[int]:
    """For each key, the place of the first that is equal."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(key, place) for place, key in enumerate(keys)]


def aliases(values: Sequence[Any]) -> list[int]:
    """For each value, the place of the first that is the same object."""
    return firsts(map(id, values))


def answer_of(value: Any, question: Question) -> Any:
    """The answer to a question of ``value``, as JSON; two are one where their JSON is."""
    if question is None:
        return identity(value)
    kind, key = question
    if kind == "HASATTR":
        return hasattr(value, key)
    if kind == "NOT_PRESENT_IN_GENERIC_DICT":
        return key not in getattr(value, "__dict__", {})
    if kind == "aliases":
        return aliases(value)
    if kind == "numpy":
        held = value.tobytes().hex() if is_number(value) else ""
        return [type(value).__name__, str(value.dtype), list(value.shape), held]
    if kind == "contents":
        return contents(value)
    if kind == "tensor":
        return tensor_facts(value)
    if kind == "attributes":
        return [str(name) for name in vars(value)]
    if kind == "keys":
        return [contents(k) for k in value]
    return len(value) if kind == "length" else key in value


def _same(a: Any, b: Any) -> bool:
    """Whether two answers are one: 1 is not True, nor 1.0, and 0.0 is not -0.0."""
    if type(a) is type(b) and type(a) in (str, int, bool, type(None)):
        return bool(a == b)  # most are: JSON takes twenty times as long
    if repr(a) == repr(b):
        return True
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def readable(source: str) -> str:
    """An expression over a frame as a person would write it over the model."""
    text = source.replace("L['fn'].__self__", "model").replace("L['fn']", "function")
    text = re.sub(r"\._(?:modules|parameters|buffers)\['(\w+)'\]", r".\1", text)
    return re.sub(r"G\['(?:__import_)?(\w+)'\]", lambda m: m[1].replace("_dot_", "."), text)


def _asked(text: str, question: Question) -> str:
    if question is None:
        return text
    kind, key = question
    forms = {
        "contents": text,
        "numpy": text,
        "aliases": "which of the objects that the model holds are one",
        "keys": f"list({text})",
        "HASATTR": f"hasattr({text}, {key!r})",
        "NOT_PRESENT_IN_GENERIC_DICT": f"{key!r} not in vars({text})",
        "DICT_CONTAINS": f"{key!r} in {text}",
        "length": f"len({text})",
        "tensor": text,
        "attributes": f"list(vars({text}))",
    }
    return forms[kind]


def _shown(answer: Any) -> str:
    if not isinstance(answer, dict):
        return str(answer)
    (tag, content), *code = answer.items()
    if not isinstance(content, str) and tag != "value":
        return f"{tag} {content}"
    if tag == "value":
        try:
            return repr(VALUES.decode(content))
        except ValueError:
            return str(content)
    return f"{tag} {content}{f', code {code[0][1]}' if code else ''}"
