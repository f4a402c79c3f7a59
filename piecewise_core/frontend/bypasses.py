"""Methods of a compiled module that run the model, or a part of it, past the compiled forward.

``generate()`` of a wrapper calls that of a model inside; ``encode()`` of an autoencoder calls its
encoder. What they run is right and nothing of it is compiled, so the first call says so.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable
from types import FrameType, FunctionType, MethodType
from typing import Any, TypeVar

import torch

from piecewise_core.frontend.session import Session

__all__ = ["Bypasses", "watched_methods"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OF_EVERY_MODULE = frozenset(dir(torch.nn.Module))
_MODULE = torch.nn.Module.__call__.__code__
_SESSION = Session.__call__.__code__


class Bypasses(threading.local):
    """Says once of each method that it ran past the compiled forward of ``session``'s model.

    ``known``: methods of which it is known; made anew for each model, and one for all threads.
    """

    def __init__(self, session: Session, model: torch.nn.Module, known: set[str]) -> None:
        self._session = session
        self._model = model
        self._known = known
        self._within = False

    def call(self, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run ``method(*args, **kwargs)``, which the model has as ``name``."""
        shared = self._session.shared
        methods, result = shared.methods, None
        known = None if methods.running else self._at_once(self._session.forms.objects)
        methods.running += 1
        if shared.memory is not None:
            shared.memory.callers.ask_again()
        try:
            result = self._watched(name, method, args, kwargs)
        finally:
            methods.running -= 1
            if known is not None:
                # What the user gave or gets is called with again, it may be; a cache that the
                # method made is not.
                given = args, kwargs, result
                self._at_once(lambda: self._session.forms.let_go(known, given))
        return result

    def _at_once(self, step: Callable[[], T]) -> T | None:
        """``step()`` under the model's lock, unless another thread has it: no method waits so."""
        if not self._session.lock.acquire(blocking=False):
            return None
        try:
            return step()
        finally:
            self._session.lock.release()

    def _watched(self, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Of methods that call each other, the one that the user called counts."""
        if name in self._known or self._within or sys.getprofile() is not None:
            return method(*args, **kwargs)
        self._within = True
        before = self._calls()
        ran = _FirstCall({id(m) for m in self._model.modules()})
        sys.setprofile(ran.look)
        try:
            result = method(*args, **kwargs)
        finally:
            sys.setprofile(None)
            self._within = False
        self._known.add(name)
        if ran.found and self._calls() == before:
            logger.warning("%s", self._text(name))
        return result

    def _calls(self) -> int:
        return sum(self._session.counters.calls.values())

    def _text(self, name: str) -> str:
        kind = type(self._model).__name__
        parts = ((path, part) for path, part in self._model.named_modules() if path)
        inner = next((path for path, part in parts if _has(part, name)), "")
        calls = f'its part "{inner}"' if inner else "parts of the model"
        write = f"compile that part, pw.compile(model.{inner}, config), and call its {name}()"
        if not inner:
            write = f"compile the method, pw.compile(model.{name}, config), or the parts it calls"
        return (
            f"{kind}.{name}() ran as written: it does not call the compiled forward, it calls "
            f"{calls}. To have that served {write}"
        )


class _FirstCall:
    """Looks for the first call of a module with one of ``ids``, or of a session."""

    def __init__(self, ids: set[int]) -> None:
        self._ids = ids
        self.found = False

    def look(self, frame: FrameType, event: str, _argument: Any) -> None:
        """What ``sys.setprofile`` calls."""
        if event != "call":
            return
        if frame.f_code is _SESSION:
            sys.setprofile(None)
        elif frame.f_code is _MODULE and id(frame.f_locals["self"]) in self._ids:
            self.found = True
            sys.setprofile(None)


def watched_methods(kind: type[torch.nn.Module]) -> dict[str, Any]:
    """The methods of a compiled module of ``kind`` that are not every module's, watched."""
    # A mixin of methods, as generate() of transformers is, may stand behind torch's own class.
    names = {name for c in kind.__mro__ for name in vars(c)}
    found = {name: getattr(kind, name, None) for name in names - _OF_EVERY_MODULE}
    made = {n: _watched(n, f) for n, f in found.items() if type(f) is FunctionType and n[0] != "_"}
    handed_on = kind.__getattr__
    if handed_on is not torch.nn.Module.__getattr__:
        made["__getattr__"] = _of_parts(handed_on)
    return made


def _watched(name: str, method: FunctionType) -> Callable[..., Any]:
    @functools.wraps(method)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        return self._pw_bypasses.call(name, method, (self, *args), kwargs)

    return watched


def _of_parts(handed_on: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """``__getattr__`` of a model that hands on what its parts have: their methods, watched."""

    @functools.wraps(handed_on)
    def getattribute(self: Any, name: str) -> Any:
        found = handed_on(self, name)
        own = isinstance(found, MethodType) and isinstance(found.__self__, torch.nn.Module)
        if not own or name in _OF_EVERY_MODULE or torch.compiler.is_compiling():
            return found

        @functools.wraps(found)
        def watched(*args: Any, **kwargs: Any) -> Any:
            return self._pw_bypasses.call(name, found, args, kwargs)

        return watched

    return getattribute


def _has(part: torch.nn.Module, name: str) -> bool:
    return type(getattr(type(part), name, None)) is FunctionType
