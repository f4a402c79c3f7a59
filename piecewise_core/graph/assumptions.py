"""What a trace took for granted: every value that it looked at, and the code that it ran through.

Read off Dynamo's guards while the trace is fresh. Nobody checks them at a call (what may change at
run time has checks of its own); a saved trace is checked against them, once, when it is bound to a
model again.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import itertools
import json
import os
import pickle
import re
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import EnumMeta
from types import CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any

import torch

from piecewise_core.graph.codefacts import (
    CodeFact,
    changed,
    class_digest,
    code_digest,
    code_facts,
    function_digest,
    lists_attributes,
    unaskable,
)
from piecewise_core.graph.opfacts import changed_ops, op_facts
from piecewise_core.graph.savable import NotSavable, Values, place_of
from piecewise_core.graph.structure import is_plain
from piecewise_core.graph.tensorfacts import tensor_facts
from piecewise_core.torch_compat.state import torch_state

__all__ = ["Assumptions", "Fact", "Look", "Scope", "aliases", "assume", "is_number"]

_LENGTHS = frozenset({"SEQUENCE_LENGTH", "EMPTY_NN_MODULE_HOOKS_DICT"})
_WHOLE = frozenset({"CONSTANT_MATCH", "EQUALS_MATCH"})
_BY_PLACE = "list(dict.keys(G["
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

    @property
    def text(self) -> str:
        """The expression as a person would write it."""
        return _readable(self.source)

    def broken(self, scope: Scope) -> str | None:
        """What does not hold now, in one sentence; None when it holds."""
        return self.told(_Values(scope))

    def told(self, values: _Values) -> str | None:
        """``broken`` over ``values``."""
        try:
            now = _answer(values[self.source], self.question)
        except Exception as error:
            return f"{_readable(self.source)} is not there ({type(error).__name__}: {error})"
        if _same(now, self.answer):
            return None
        asked = _asked(_readable(self.source), self.question)
        return f"{asked} is {_shown(now)}, and was {_shown(self.answer)}"


class _Values(dict[str, Any]):
    """What expressions give, each evaluated once."""

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self._scope = scope

    def __missing__(self, source: str) -> Any:
        found = self[source] = eval(source, self._scope)
        return found


@dataclass(frozen=True)
class Assumptions:
    """``facts``: (expression, question) -> answer, as JSON. ``imports``: modules by their name in
    expressions. ``settings``: torch's global switches. ``ops``: operators that are not torch's.
    ``unnamed``: globals of functions that are in no module, by their name in expressions; they are
    of this process. ``unasked``: what the trace rests on and no other process can ask. Where there
    is any of these, the trace cannot be kept.
    """

    facts: tuple[tuple[str, Any, Any], ...]
    imports: Mapping[str, str]
    code: tuple[CodeFact, ...]
    settings: Mapping[str, str]
    ops: Mapping[str, str]
    unnamed: Mapping[str, Any] = field(default_factory=dict, compare=False)
    unasked: tuple[str, ...] = ()

    def broken(self, fn: Callable[..., Any], objects: Sequence[Any]) -> Iterator[str]:
        """What does not hold for ``fn`` with the constants ``objects``, one sentence each."""
        yield from changed(self.code)
        yield from changed_ops(self.ops)
        now = _settings()
        for name in sorted({*now, *self.settings}):
            if self.settings.get(name) != now.get(name):
                yield f"{name} is {now.get(name)}, and was {self.settings.get(name)}"
        scope = self.scope(fn, objects)
        values = _Values(scope)
        for fact in (Fact(*fact) for fact in self.facts):
            why = fact.told(values)
            if why is not None:
                yield why

    def looks(self) -> list[Fact]:
        """The facts to watch while the model is used.

        Not those of tensors, which others look at, nor which attributes objects have: one more
        may be a note of the user's.
        """
        return [Fact(*fact) for fact in self.facts if fact[1] not in (_TENSOR, _ATTRIBUTES)]

    def scope(self, fn: Callable[..., Any], objects: Sequence[Any]) -> Scope:
        """What the facts' expressions are evaluated in, for ``fn`` with its calls' constants."""
        return _scope(fn, objects, self.imports, self.unnamed)


def assume(
    looks: Iterable[Look],
    imports: Mapping[str, str],
    code: Iterable[CodeType],
    graph: torch.fx.GraphModule,
    fn: Callable[..., Any],
    objects: Sequence[Any],
    unnamed: Mapping[str, Any],
) -> Assumptions:
    """Answer every look now. ``graph``: what was traced."""
    values = _Values(_scope(fn, objects, imports, unnamed))
    facts: dict[tuple[str, Any], Any] = {}
    unasked: list[str] = []
    asked = itertools.chain.from_iterable(map(_asked_of, looks))
    for look in (Look("L['fn']", "ID_MATCH"), *asked):
        if _BY_PLACE in look.source or not look.source or _is_argument(look.source):
            continue
        try:
            value = values[look.source]
            for question in _questions(look, value):
                if (look.source, question) not in facts:
                    facts[look.source, question] = _answer(value, question)
        except Exception:
            unasked.append(f"{_readable(look.source)}, which another process cannot look up")
    code = tuple(code)
    facts.update(_of_all(values, tuple(facts), code))
    found = code_facts(code, values.values())
    unasked += [*found.unasked, *unaskable(values.values())]
    return Assumptions(
        tuple((source, question, answer) for (source, question), answer in facts.items()),
        dict(imports),
        found.facts,
        _settings(),
        op_facts(graph),
        dict(unnamed),
        tuple(dict.fromkeys(unasked)),
    )


def _is_argument(source: str) -> bool:
    """Whether an expression is over the traced call's arguments, which the structure describes."""
    return re.search(r"L\['(?!fn'|objects')", source) is not None


def _of_all(
    values: _Values, asked: Iterable[tuple[str, Any]], code: Iterable[CodeType]
) -> Iterator[tuple[tuple[str, Any], Any]]:
    """What is asked of all objects that were met: which are one, and what they have."""
    sources = dict.fromkeys(source for source, question in asked if question is None)
    met = [source for source in sources if _is_object(values[source])]
    if len(met) > 1:
        yield (f"({', '.join(met)})", ("aliases", "")), aliases([values[s] for s in met])
    if lists_attributes(code):
        for source in met:
            if hasattr(values[source], "__dict__"):
                yield (source, _ATTRIBUTES), _answer(values[source], _ATTRIBUTES)


def _scope(
    fn: Callable[..., Any],
    objects: Sequence[Any],
    imports: Mapping[str, str],
    unnamed: Mapping[str, Any],
) -> Scope:
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


# Questions ----------------------------------------------------------------------------


def _asked_of(look: Look) -> Iterator[Look]:
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


_OF_EVERY_MODULE = ("._global_forward_hooks", "._global_forward_pre_hooks")
_FROM_NUMPY = "___from_numpy("
_INHERITED = re.compile(r"dict\((type\(.*\)\.__mro__)\[(\d+)\]\.__dict__\)\[('[^']*')\]")


def _is_object(value: Any) -> bool:
    """Whether code may ask which one ``value`` is."""
    others = (torch.Tensor, type, ModuleType, FunctionType)
    plain = is_plain(value) or isinstance(value, others)
    return not plain and (type(value) is object or hasattr(value, "__dict__"))


def aliases(values: Sequence[Any]) -> list[int]:
    """For each value, the place of the first that is the same object."""
    first: dict[int, int] = {}
    return [first.setdefault(id(value), place) for place, value in enumerate(values)]


def is_number(value: Any) -> bool:
    """Whether ``value`` is a scalar of numpy, which nobody can write to."""
    return any(c.__module__ == "numpy" and c.__name__ == "generic" for c in type(value).__mro__)


_TENSOR = ("tensor", "")
_ATTRIBUTES = ("attributes", "")


def _questions(look: Look, value: Any) -> list[tuple[str, Any] | None]:
    """What a look asks: a length is that of a list, or of a tuple."""
    question = _question(look, value)
    return [None, question] if look.kind == "SEQUENCE_LENGTH" else [question]


def _question(look: Look, value: Any) -> tuple[str, Any] | None:
    """What is asked of a value beyond what it is."""
    if look.kind == "NUMPY":
        return ("numpy", "")
    if isinstance(value, torch.Tensor) and look.kind in ("TENSOR_MATCH", "TYPE_MATCH", "ID_MATCH"):
        return _TENSOR
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
    if kind == "aliases":
        return aliases(value)
    if kind == "numpy":
        held = value.tobytes().hex() if is_number(value) else ""
        return [type(value).__name__, str(value.dtype), list(value.shape), held]
    if kind == "contents":
        return _contents(value)
    if kind == "tensor":
        return tensor_facts(value)
    if kind == "attributes":
        return [str(name) for name in vars(value)]
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
    """What tells ``value`` from others that a trace would treat otherwise."""
    if isinstance(value, torch.Tensor):
        return tensor_facts(value)
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
        found: dict[str, Any] = {
            "object": place_of(value) or f"{value.__module__}:{value.__qualname__}"
        }
        if isinstance(value, EnumMeta):
            members: Mapping[str, Any] = value.__members__
            found["members"] = [[name, _contents(m.value)] for name, m in members.items()]
        # Functions of one name may differ: lambdas, and what another function makes.
        code = function_digest(value) or class_digest(kind)
    else:
        found = {"type": f"{kind.__module__}:{kind.__qualname__}"}
        code = class_digest(kind)  # methods may have been replaced
        if _is_opaque(kind):
            found["held"] = _held(value)
    return {**found, "code": code} if code else found


def _is_opaque(kind: type) -> bool:
    """Whether no attribute tells what an object holds: a compiled pattern, a date, a range."""
    of_python = kind.__module__.partition(".")[0] in sys.stdlib_module_names
    return of_python and bool(kind.__flags__ & _IMMUTABLE) and kind not in _CONTAINERS


def _held(value: Any) -> str:
    """A digest of what it would be rebuilt from; of what cannot be, one that never comes again."""
    try:
        made = pickle.dumps(value, protocol=4)
    except Exception:  # a lock, an iterator
        return f"unknown {next(_UNKNOWN)} {os.urandom(8).hex()}"
    return hashlib.sha256(made).hexdigest()[:32]


_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE
_CONTAINERS = (list, dict, tuple, OrderedDict, deque, defaultdict, MappingProxyType, object)
_UNKNOWN = itertools.count()
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
            return repr(_VALUES.decode(content))
        except ValueError:
            return str(content)
    return f"{tag} {content}{f', code {code[0][1]}' if code else ''}"
