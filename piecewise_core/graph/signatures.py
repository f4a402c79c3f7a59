"""How a callable takes its arguments, and what they are called.

Two signatures may differ. What Python does with the arguments of a call is said by the code that
takes them first: a decorator's ``(*args, **kwargs)``, which may look at what the caller wrote.
What the arguments are called is said by the signature that ``inspect`` shows: that of the function
inside the decorator.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

__all__ = [
    *("Names", "defaults_of", "holders_of_defaults"),
    *("names_of", "same_signature", "signature_of"),
]

_ANYTHING = inspect.signature(lambda *args, **kwargs: None)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def signature_of(fn: Callable[..., Any]) -> inspect.Signature:
    """The signature by which Python itself binds a call of ``fn``.

    Two calls that it binds alike look alike from inside. ``(*args, **kwargs)`` where Python cannot
    tell: then every form of a call is one of its own.
    """
    if isinstance(fn, MethodType):
        return _without_first(signature_of(fn.__func__))
    if isinstance(fn, functools.partial):
        return _of_partial(fn)
    if isinstance(fn, FunctionType):
        return _of_function(fn)
    call = inspect.getattr_static(type(fn), "__call__", None)
    return _without_first(_of_function(call)) if isinstance(call, FunctionType) else _ANYTHING


def same_signature(a: inspect.Signature, b: inspect.Signature) -> bool:
    """Whether two bind alike: the same names and kinds, and the same objects as defaults."""
    pairs = zip(a.parameters.values(), b.parameters.values(), strict=False)
    return len(a.parameters) == len(b.parameters) and all(
        (p.name, p.kind) == (q.name, q.kind) and p.default is q.default for p, q in pairs
    )


def defaults_of(fn: Callable[..., Any], source: str) -> Iterator[str]:
    """Expressions of what ``signature_of`` reads of ``fn``, whose own expression is ``source``."""
    if isinstance(fn, MethodType):
        yield from defaults_of(fn.__func__, f"{source}.__func__")
    elif isinstance(fn, functools.partial):
        yield f"{source}.keywords"
        yield from defaults_of(fn.func, f"{source}.func")
    elif isinstance(fn, FunctionType):
        yield from (f"{source}.__defaults__", f"{source}.__kwdefaults__")
    elif isinstance(inspect.getattr_static(type(fn), "__call__", None), FunctionType):
        yield from defaults_of(type(fn).__call__, f"{source}.__call__.__func__")


def holders_of_defaults(fn: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The dicts of which single entries may be replaced that ``signature_of`` reads."""
    if isinstance(fn, MethodType):
        yield from holders_of_defaults(fn.__func__)
    elif isinstance(fn, functools.partial):
        yield fn.keywords
        yield from holders_of_defaults(fn.func)
    elif isinstance(fn, FunctionType):
        yield fn.__kwdefaults__ or {}
    elif isinstance(inspect.getattr_static(type(fn), "__call__", None), FunctionType):
        yield from holders_of_defaults(type(fn).__call__)


def _of_function(fn: FunctionType) -> inspect.Signature:
    if hasattr(fn, "__wrapped__") or hasattr(fn, "__signature__"):
        # Both say how somebody wants the function to look; a copy without them says how it is.
        bare = FunctionType(fn.__code__, {}, fn.__name__, fn.__defaults__, fn.__closure__)
        bare.__kwdefaults__ = fn.__kwdefaults__
        return inspect.signature(bare)
    return inspect.signature(fn)


def _without_first(signature: inspect.Signature) -> inspect.Signature:
    """The signature of a method once it is bound."""
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].kind not in _VARIADIC:
        del parameters[0]
    return signature.replace(parameters=parameters)


def _of_partial(fn: functools.partial[Any]) -> inspect.Signature:
    inner = signature_of(fn.func)
    if any(p.kind in _VARIADIC for p in inner.parameters.values()):
        return _ANYTHING

    def stand_in() -> None:
        """Takes what the partial's function takes."""

    stand_in.__signature__ = inner  # type: ignore[attr-defined]
    try:
        return inspect.signature(functools.partial(stand_in, *fn.args, **fn.keywords))
    except ValueError:  # it holds what its function does not take
        return _ANYTHING


@dataclass(frozen=True)
class Names:
    """What the arguments of calls are called, in settings and in messages.

    ``taken``: the signature that binds. ``shown``: the one that a reader of the code sees.
    """

    taken: inspect.Signature
    shown: inspect.Signature

    def parameter(self, name: str) -> str:
        """The path of a parameter of ``taken`` that takes one argument."""
        parameters = list(self.taken.parameters.values())
        place = [p.name for p in parameters].index(name)
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return (self._shown_at(place) or name) if parameters[place].kind in by_place else name

    def positional(self, place: int) -> str | None:
        """The path of the argument in ``place``; None where a call has no such place."""
        found = self._shown_at(place)
        if found is not None:
            return found
        for first, parameter in enumerate(self.taken.parameters.values()):
            if parameter.kind is parameter.VAR_POSITIONAL:
                return f"{parameter.name}.{place - first}"
        return None

    def _shown_at(self, place: int) -> str | None:
        for here, parameter in enumerate(self.shown.parameters.values()):
            if parameter.kind is parameter.VAR_POSITIONAL:
                return f"{parameter.name}.{place - here}"
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
                return None
            if here == place:
                return parameter.name
        return None

    def keyword(self, key: str) -> str:
        """The path of an argument given by the keyword ``key``."""
        known = self.shown.parameters.get(key)
        if known is not None and known.kind in (known.POSITIONAL_OR_KEYWORD, known.KEYWORD_ONLY):
            return key
        for signature in (self.shown, self.taken):
            for parameter in signature.parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    return f"{parameter.name}.{key}"
        return key

    def takes(self, name: str) -> bool:
        """Whether some call may have an argument ``name``, or one that it lies in."""
        return name.partition(".")[0] in self.shown.parameters


def names_of(fn: Callable[..., Any]) -> Names:
    """How ``fn`` takes its arguments, and what they are called."""
    taken = signature_of(fn)
    try:
        return Names(taken, inspect.signature(fn))
    except (TypeError, ValueError):
        return Names(taken, taken)
