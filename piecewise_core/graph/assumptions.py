"""What a trace took for granted: every value that it looked at, and the code that it ran through.

Read off Dynamo's guards while the trace is fresh. Nobody checks them at a call (what may change at
run time has checks of its own); a saved trace is checked against them, once, when it is bound to a
model again.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch

from piecewise_core.graph.codefacts import (
    CodeFact,
    changed,
    code_facts,
    lists_attributes,
    unaskable,
)
from piecewise_core.graph.facts import (
    OF_CALLS,
    Evaluated,
    Fact,
    Scope,
    aliases,
    answer_of,
    readable,
    scope_of,
)
from piecewise_core.graph.looks import (
    ATTRIBUTES,
    TENSOR,
    Look,
    asked_of,
    by_key,
    met_twice,
    questions,
)
from piecewise_core.graph.misses import missed
from piecewise_core.graph.opfacts import changed_ops, op_facts
from piecewise_core.graph.placed import placed
from piecewise_core.graph.signatures import defaults_of
from piecewise_core.graph.structure import is_plain
from piecewise_core.torch_compat.state import torch_state

__all__ = ["Assumptions", "assume", "is_object", "variables_named"]


@dataclass(frozen=True)
class Assumptions:
    """``facts``: (expression, question) -> answer, as JSON. ``imports``: modules by their name in
    expressions. ``settings``: torch's global switches. ``ops``: operators that are not torch's.
    ``unnamed``: globals of functions that are in no module, by their name in expressions; they are
    of this process. ``unasked``: what the trace rests on and no other process can ask. Where there
    is any of these, the trace cannot be kept. ``counting``: the objects in which every call
    writes numbers, by their expressions.
    """

    facts: tuple[tuple[str, Any, Any], ...]
    imports: Mapping[str, str]
    code: tuple[CodeFact, ...]
    settings: Mapping[str, str]
    ops: Mapping[str, str]
    unnamed: Mapping[str, Any] = field(default_factory=dict, compare=False)
    unasked: tuple[str, ...] = ()
    counting: tuple[str, ...] = ()

    def broken(self, fn: Callable[..., Any], objects: Sequence[Any]) -> Iterator[str]:
        """What does not hold for ``fn`` with the constants ``objects``, one sentence each."""
        yield from changed(self.code)
        yield from changed_ops(self.ops)
        now = _settings()
        for name in sorted({*now, *self.settings}):
            if self.settings.get(name) != now.get(name):
                yield f"{name} is {now.get(name)}, and was {self.settings.get(name)}"
        scope = self.scope(fn, objects)
        values = Evaluated(scope)
        for fact in (Fact(*fact) for fact in self.facts):
            why = fact.broken(values)
            if why is not None:
                yield why

    def looks(
        self,
        of_objects: bool | None = None,
        scope: Scope | None = None,
        trees: Collection[int] = (),
    ) -> list[Fact]:
        """The facts to watch while the model is used; ``of_objects``: of calls' objects, or not.

        Not which attributes modules have: one more may be a note of the user's. Nor tensors of
        objects, or of ``trees`` in ``scope`` where modules hold them: others look at these.
        """
        unwatched = _UNWATCHED[1:] if scope and not of_objects else _UNWATCHED
        values = Evaluated(scope or {})
        return [
            fact
            for place in ((False, True) if of_objects is None else (of_objects,))
            for fact in self._apart[place]
            if fact.question not in unwatched
            and (fact.question != TENSOR or not _of_module(values, fact.source, trees))
        ]

    def of_objects(self, *, unwatched: bool) -> Iterator[Fact]:
        """The facts of calls' objects; ``unwatched``: only those that ``looks`` leaves out."""
        of_calls = self._apart[True]
        return (fact for fact in of_calls if not unwatched or fact.question in _UNWATCHED)

    @functools.cached_property
    def _apart(self) -> dict[bool, list[Fact]]:
        """The facts by whether they are of calls' objects."""
        found: dict[bool, list[Fact]] = {False: [], True: []}
        for fact in self.facts:
            found[OF_CALLS.search(fact[0]) is not None].append(Fact(*fact))
        return found

    def scope(self, fn: Callable[..., Any], objects: Sequence[Any]) -> Scope:
        """What the facts' expressions are evaluated in, for ``fn`` with its calls' constants."""
        return scope_of(fn, objects, self.imports, self.unnamed)


def assume(
    looks: Iterable[Look],
    imports: Mapping[str, str],
    code: Iterable[CodeType],
    graph: torch.fx.GraphModule,
    fn: Callable[..., Any],
    objects: Sequence[Any],
    unnamed: Mapping[str, Any],
    counting: Iterable[str] = (),
    names: Iterable[str] = (),
) -> Assumptions:
    """Answer every look now. ``graph``: what was traced. ``names``: of all that it read."""
    code = tuple(code)
    imports = {**imports, _OS: "os"} if any(map(variables_named, code)) else imports
    values = Evaluated(scope_of(fn, objects, imports, unnamed))
    facts: dict[tuple[str, Any], Any] = {}
    unasked: list[str] = []
    looks = [replace(look, source=by_key(values, look.source)) for look in looks]
    looks += met_twice(values, [by_key(values, name) for name in names])
    asked = itertools.chain.from_iterable(map(asked_of, looks))
    # A call that omits an argument is bound with the default that there was.
    own = (Look(source, "CONSTANT_MATCH") for source in defaults_of(fn, "L['fn']"))
    variables = dict.fromkeys(itertools.chain.from_iterable(map(variables_named, code)))
    set_to = (Look(f"G['{_OS}'].environ.get({name!r})", "CONSTANT_MATCH") for name in variables)
    for look in (Look("L['fn']", "ID_MATCH"), *own, *set_to, *asked):
        if not look.source or _is_argument(look.source):
            continue
        try:
            value = values[look.source]
            for question in questions(look, value):
                if (look.source, question) not in facts:
                    facts[look.source, question] = answer_of(value, question)
        except Exception:
            unasked.append(f"{readable(look.source)}, which another process cannot look up")
    facts.update(_of_all(values, tuple(facts), code))
    held = [source for source, question in facts if question in (None, TENSOR)]
    for look in itertools.chain.from_iterable(map(asked_of, placed(values, held))):
        facts[look.source, ("contents", "")] = answer_of(values[look.source], ("contents", ""))
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
        tuple(dict.fromkeys(counting)),
    )


_OS = "_pw_os"
_SAME_TENSORS = ("aliases", "tensors")

_UNWATCHED = (TENSOR, ATTRIBUTES, _SAME_TENSORS)


def _of_module(values: Evaluated, source: str, trees: Collection[int]) -> bool:
    """Whether a module of the trees holds the tensor where ``source`` reads it."""
    before, _, name = source.rpartition(".")
    with suppress(Exception):  # not there any more
        if name.startswith(("_parameters[", "_buffers[")) or name.isidentifier():
            holders = (torch.nn.Module, torch.Tensor)  # a tensor may be made of others
            return id(values[source]) in trees and isinstance(values[before], holders)
    return False


def variables_named(code: CodeType) -> list[str]:
    """What may be names of environment variables in code that asks for some."""
    names = () if {"environ", "getenv"}.isdisjoint(code.co_names) else code.co_consts
    return [name for name in names if isinstance(name, str) and name.isidentifier()]


def _looked_up(code: CodeType) -> list[str]:
    """What may be names of attributes in code that looks at all that an object has."""
    own = lists_attributes((code,))
    return [n for n in code.co_consts if own and isinstance(n, str) and n.isidentifier()]


def _is_argument(source: str) -> bool:
    """Whether an expression is over the traced call's arguments, which the structure describes, or
    what the entry itself calls while it is traced.
    """
    return re.search(r"(?<!\w)(L\['(?!fn'|objects')|G\['_pw_trace)", source) is not None


def _of_all(
    values: Evaluated, asked: Iterable[tuple[str, Any]], code: Iterable[CodeType]
) -> Iterator[tuple[tuple[str, Any], Any]]:
    """What is asked of all objects that were met: which are one, and what they have."""
    sources = dict.fromkeys(source for source, question in asked if question is None)
    met = [source for source in sources if is_object(values[source])]
    tensors = [source for source, question in asked if question == TENSOR]
    for together, question in ((met, ("aliases", "")), (tensors, _SAME_TENSORS)):
        if len(together) > 1:
            yield (f"({', '.join(together)})", question), aliases([values[s] for s in together])
    yield from missed(values, met, sources, code)
    if lists_attributes(code):
        # ``vars(self).get(name)`` of what is not there leaves no guard.
        names = dict.fromkeys(itertools.chain.from_iterable(map(_looked_up, code)))
        for source in met:
            if hasattr(values[source], "__dict__"):
                noted = isinstance(values[source], torch.nn.Module)
                question = ATTRIBUTES if noted else (ATTRIBUTES[0], "watched")
                yield (source, question), answer_of(values[source], question)
                for name in names:
                    lacks = ("NOT_PRESENT_IN_GENERIC_DICT", name)
                    yield (source, lacks), answer_of(values[source], lacks)


def is_object(value: Any) -> bool:
    """Whether code may ask which one ``value`` is."""
    others = (torch.Tensor, type, ModuleType, FunctionType)
    plain = is_plain(value) or isinstance(value, others)
    own = hasattr(value, "__dict__") or hasattr(type(value), "__slots__")
    return not plain and (type(value) is object or own)


def _settings() -> dict[str, str]:
    return {f"torch's {name}": str(value) for name, value in torch_state().items()}
