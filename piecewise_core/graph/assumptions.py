"""What a trace took for granted: every value that it looked at, and the code that it ran through.

Read off Dynamo's guards while the trace is fresh. Nobody checks them at a call (what may change at
run time has checks of its own); a saved trace is checked against them, once, when it is bound to a
model again.
"""

from __future__ import annotations

import builtins
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any

import torch

from piecewise_core.graph.codefacts import (
    CodeFact,
    changed,
    class_digest,
    code_digest,
    code_facts,
    function_digest,
)
from piecewise_core.graph.opfacts import changed_ops, op_facts
from piecewise_core.graph.saved.values import NotSavable, Values, place_of
from piecewise_core.graph.structure import is_plain
from piecewise_core.graph.torch_state import torch_state

__all__ = ["Assumptions", "Fact", "Look", "Scope", "assume"]

_SKIPPED = frozenset({"TENSOR_MATCH", "DUPLICATE_INPUT", "SHAPE_ENV", "GRAD_MODE", "GLOBAL_STATE"})
"""Kinds checked elsewhere: the layout of bound tensors, which of them are one, sizes, modes."""

_LENGTHS = frozenset({"SEQUENCE_LENGTH", "EMPTY_NN_MODULE_HOOKS_DICT"})
_WHOLE = frozenset({"CONSTANT_MATCH", "EQUALS_MATCH"})
_BY_PLACE = "list(dict.keys("
"""An entry of a dict by the place of its key: in a dict that is not the model's, which one that is
depends on what else is loaded."""


@dataclass(frozen=True)
class Look:
    """One look that a trace took. ``source``: an expression; ``kind``: what it asked; ``key``: of
    which attribute or entry.
    """

    source: str
    kind: str
    key: Any = None


Scope = dict[str, Any]
"""What expressions of facts are evaluated in: the traced frame's locals ``L`` and globals ``G``."""


@dataclass(frozen=True, eq=False)
class Fact:
    """One answer: to ``question`` of what the expression ``source`` gives."""

    source: str
    question: Any
    answer: Any

    def broken(self, scope: Scope) -> str | None:
        """What does not hold now, in one sentence; None when it holds."""
        try:
            now = _answer(eval(self.source, scope), self.question)
        except Exception as error:
            return f"{_readable(self.source)} is not there ({type(error).__name__}: {error})"
        if _same(now, self.answer):
            return None
        asked = _asked(_readable(self.source), self.question)
        return f"{asked} is {_shown(now)}, and was {_shown(self.answer)}"


@dataclass(frozen=True)
class Assumptions:
    """``facts``: (expression, question) -> answer, as JSON. ``imports``: modules by their name in
    expressions. ``settings``: torch's global switches. ``ops``: operators that are not torch's.
    """

    facts: tuple[tuple[str, Any, Any], ...]
    imports: Mapping[str, str]
    code: tuple[CodeFact, ...]
    settings: Mapping[str, str]
    ops: Mapping[str, str]

    def broken(self, fn: Callable[..., Any], objects: Sequence[Any]) -> Iterator[str]:
        """What does not hold for ``fn`` with the constants ``objects``, one sentence each."""
        yield from changed(self.code)
        yield from changed_ops(self.ops)
        now = _settings()
        for name in sorted({*now, *self.settings}):
            if self.settings.get(name) != now.get(name):
                yield f"{name} is {now.get(name)}, and was {self.settings.get(name)}"
        scope = self.scope(fn, objects)
        yield from (why for fact in self.looks() if (why := fact.broken(scope)) is not None)

    def looks(self) -> list[Fact]:
        """The facts."""
        return [Fact(*fact) for fact in self.facts]

    def scope(self, fn: Callable[..., Any], objects: Sequence[Any]) -> Scope:
        """What the facts' expressions are evaluated in, for ``fn`` with its calls' constants."""
        return _scope(fn, objects, self.imports)


def assume(
    looks: Iterable[Look],
    imports: Mapping[str, str],
    code: Iterable[CodeType],
    graph: torch.fx.GraphModule,
    fn: Callable[..., Any],
    objects: Sequence[Any],
) -> Assumptions:
    """Answer every look now. ``graph``: what was traced."""
    scope = _scope(fn, objects, imports)
    facts: dict[tuple[str, Any], Any] = {}
    for look in (Look("L['fn']", "ID_MATCH"), *looks):
        question = _question(look)
        foreign = _BY_PLACE in look.source and not look.source.startswith("L[")
        if look.kind in _SKIPPED or foreign or (look.source, question) in facts:
            continue
        try:
            answer = _answer(eval(look.source, scope), question)
        except Exception:  # of the traced call itself: its arguments, which the structure describes
            continue
        if answer is not None:
            facts[look.source, question] = answer
    listed = tuple((source, question, answer) for (source, question), answer in facts.items())
    return Assumptions(listed, dict(imports), code_facts(code), _settings(), op_facts(graph))


def _scope(fn: Callable[..., Any], objects: Sequence[Any], imports: Mapping[str, str]) -> Scope:
    return {"L": {"fn": fn, "objects": objects}, "G": _Globals(imports)}


class _Globals(dict[str, Any]):
    """The traced entry's globals: modules that Dynamo named, torch, and builtins."""

    def __init__(self, imports: Mapping[str, str]) -> None:
        super().__init__(torch=torch)
        self._imports = imports

    def __missing__(self, name: str) -> Any:
        if name.startswith("__builtins_dict__"):
            return vars(builtins)
        return importlib.import_module(self._imports[name])


# Questions ----------------------------------------------------------------------------


def _question(look: Look) -> tuple[str, Any] | None:
    """What is asked of a value beyond what it is."""
    if look.kind in ("HASATTR", "NOT_PRESENT_IN_GENERIC_DICT"):
        return (look.kind, look.key)
    if look.kind in ("DICT_CONTAINS", "DICT_NOT_CONTAINS"):
        return ("DICT_CONTAINS", look.key) if isinstance(look.key, (str, int)) else None
    if look.kind == "DICT_KEYS_MATCH":  # the keys of hooks are numbers that torch gives out
        return ("length" if look.source.endswith("_hooks") else "keys", "")
    if look.kind in _WHOLE:
        return ("contents", "")
    return ("length", "") if look.kind in _LENGTHS else None


def _answer(value: Any, question: tuple[str, Any] | None) -> Any:
    if question is None:
        return _identity(value)
    kind, key = question
    if kind == "HASATTR":
        return hasattr(value, key)
    if kind == "NOT_PRESENT_IN_GENERIC_DICT":
        return key not in getattr(value, "__dict__", {})
    if kind == "contents":
        return _contents(value)
    if kind == "keys":
        return [_contents(k) for k in value]
    return len(value) if kind == "length" else key in value


def _contents(value: Any) -> Any:
    """``_identity``, of containers with all that is in them."""
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [_contents(v) for v in value]}
    if isinstance(value, dict):
        return {type(value).__name__: [[_contents(k), _contents(v)] for k, v in value.items()]}
    return _identity(value)


def _same(a: Any, b: Any) -> bool:
    """Whether two answers are one: 1 is not True, nor 1.0, and 0.0 is not -0.0."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _identity(value: Any) -> Any:
    """What tells ``value`` from others that a trace would treat otherwise; None: nothing does."""
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, ModuleType):
        return {"module": value.__name__}
    if isinstance(value, CodeType):
        return {"code": code_digest(value)}
    if is_plain(value) and not isinstance(value, type):
        try:
            return {"value": _VALUES.encode(value)}
        except NotSavable:
            return {"value": repr(value)}
    if isinstance(value, (set, frozenset)):
        return {"set": sorted(map(repr, value))}
    kind = value if isinstance(value, type) else type(value)
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        found = {"object": place_of(value) or f"{value.__module__}:{value.__qualname__}"}
        # Functions of one name may differ: lambdas, and what another function makes.
        code = function_digest(value) or class_digest(kind)
    else:
        found = {"type": f"{kind.__module__}:{kind.__qualname__}"}
        code = class_digest(kind)  # methods may have been replaced
    return {**found, "code": code} if code else found


_VALUES = Values()


def _settings() -> dict[str, str]:
    return {f"torch's {name}": str(value) for name, value in torch_state().items()}


# Messages -----------------------------------------------------------------------------


def _readable(source: str) -> str:
    """An expression over a frame as a person would write it over the model."""
    text = source.replace("L['fn'].__self__", "model").replace("L['fn']", "function")
    text = re.sub(r"\._(?:modules|parameters|buffers)\['(\w+)'\]", r".\1", text)
    return re.sub(r"G\['(?:__import_)?(\w+)'\]", lambda m: m[1].replace("_dot_", "."), text)


def _asked(text: str, question: tuple[str, Any] | None) -> str:
    if question is None:
        return text
    kind, key = question
    forms = {
        "contents": text,
        "keys": f"list({text})",
        "HASATTR": f"hasattr({text}, {key!r})",
        "NOT_PRESENT_IN_GENERIC_DICT": f"{key!r} not in vars({text})",
        "DICT_CONTAINS": f"{key!r} in {text}",
        "length": f"len({text})",
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
            return repr(_VALUES.decode(content))
        except ValueError:
            return str(content)
    return f"{tag} {content}{f', code {code[0][1]}' if code else ''}"
