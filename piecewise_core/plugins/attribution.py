"""A platform as core uses it: what one of its methods raises names who made it.

Core calls a vendor's methods deep inside of captures and compilations, where an error without an
address is the user's riddle. Stand-ins pass every call through and turn what a declared method
raises into a PlatformFault with distribution, version and method. What is called at every replay
(a replayer's result, a stager's function, compiled code) is handed out as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import MethodType, TracebackType
from typing import Any

from piecewise_core.errors import PiecewiseError, PlatformFault
from piecewise_core.plugins.declared import declared
from piecewise_core.plugins.registry import describe
from piecewise_core.plugins.results import RESULTS
from piecewise_core.plugins.selection import Selected
from piecewise_core.protocols import (
    CompilerAdaptor,
    CompilerExtras,
    DeviceRuntime,
    GraphDriver,
    GraphExtras,
    Platform,
    PlatformExtras,
    RuntimeExtras,
)

__all__ = [
    "AttributedPlatform",
    "attributed",
    "attributed_compiler",
    "error_text",
    "fault",
    "raised",
]


def attributed(selected: Selected) -> AttributedPlatform:
    """The selected platform, its parts in stand-ins that name the plugin it came from."""
    origin = selected.considered[0].origin if selected.considered else None
    name = selected.info.name
    by = str(origin) if origin else f"platform {name!r}, given as an object"
    return AttributedPlatform(selected.platform, by)


def attributed_compiler(compiler: CompilerAdaptor, by: str) -> CompilerAdaptor:
    """A stand-in for ``compiler``, which ``by`` brought."""
    made: Any = _Part(compiler, "CompilerAdaptor", by, (CompilerAdaptor, CompilerExtras))
    found: CompilerAdaptor = made
    return found


def fault(by: str, method: str, error: Exception) -> PlatformFault:
    """What to raise, from ``error``, when ``method`` of what ``by`` made raised it."""
    return PlatformFault(
        f"{by}: {method} raised {describe(error)}; `piecewise doctor` tests every platform, and "
        "platform= or PIECEWISE_PLATFORM chooses another",
        by=by,
        method=method,
    )


def error_text(error: BaseException) -> str:
    """``error`` as its kind and text; a PlatformFault as what was raised, and by whom."""
    if isinstance(error, PlatformFault):
        return f"{describe(raised(error))} ({error.by}: {error.method})"
    return describe(error)


def raised(error: BaseException) -> BaseException:
    """What a platform's method raised, out of its PlatformFault; any other error as it is."""
    if isinstance(error, PlatformFault) and error.__cause__ is not None:
        return error.__cause__
    return error


class AttributedPlatform:
    """Stands for a Platform: the same attributes, its parts attributed to ``by``.

    ``declared``: what those parts have beyond what all have.
    """

    def __init__(self, platform: Platform, by: str) -> None:
        self.by = by
        self.of = platform
        self.device: Any = _Part(
            platform.device, "DeviceRuntime", by, (DeviceRuntime, RuntimeExtras)
        )
        self.graphs: Any = None
        if platform.graphs is not None:
            self.graphs = _Part(platform.graphs, "GraphDriver", by, (GraphDriver, GraphExtras))
        self.compiler = attributed_compiler(platform.compiler, by)
        self.capabilities = platform.capabilities
        own = getattr(platform, "piecewise_backend", None)
        self.piecewise_backend = None if own is None else _backend(own, by)
        self.declared = declared(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # a copy asks before there is anything to ask
            raise AttributeError(name)
        value = getattr(self.of, name)
        declared = inspect.isfunction(getattr(PlatformExtras, name, None))
        return _guarded(value, f"Platform.{name}", self.by, dict) if declared else value


def _backend(own: Any, by: str) -> Callable[..., _Backend]:
    """The platform's class for one piece; making one is attributed, and running it."""
    make = _guarded(own, "Platform.piecewise_backend", by)
    return lambda *args, **kwargs: _Backend(make(*args, **kwargs), by)


class _Backend:
    """Stands for what runs one piece in place of core's PiecewiseBackend."""

    def __init__(self, of: Any, by: str) -> None:
        vars(self).update(of=of, _run=_guarded(of, "Platform.piecewise_backend.__call__", by))

    def __call__(self, *args: Any) -> Any:
        """Run the piece."""
        return self._run(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.of, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.of, name)


class _Part:
    """Stands for one part of a platform; has what it has and nothing else."""

    def __init__(self, of: Any, title: str, by: str, protocols: tuple[type, type]) -> None:
        self._of = of
        self._title = title
        self._by = by
        self._protocols = protocols
        self._methods: dict[str, tuple[Any, Any]] = {}

    @property
    def of(self) -> Any:
        """The part itself."""
        return self._of

    @property
    def by(self) -> str:
        """Who brought it: "piecewise-acme 1.0"."""
        return self._by

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self._of, name)
        known = self._methods.get(name)
        # A bound method is another object each time it is asked for, and equal.
        if known is None or not (known[0] is value or _same_method(known[0], value)):
            self._methods[name] = known = (value, self._standing_for(value, name))
        return known[1]

    def _standing_for(self, value: Any, name: str) -> Any:
        if not any(inspect.isfunction(vars(p).get(name)) for p in self._protocols):
            return value
        title, by = f"{self._title}.{name}", self._by
        method = _guarded(value, title, by, RESULTS.get(name))
        if name in ("stream", "capture_context"):
            return lambda *args: _Context(method(*args), title, by)
        if name == "passes":
            return lambda: tuple(_guarded(p, f"a pass of {title}", by) for p in method())
        return method

    def __repr__(self) -> str:
        return f"<{self._of!r} of {self._by}>"


def _same_method(one: Any, other: Any) -> bool:
    return type(one) is MethodType is type(other) and one == other


def _guarded(
    method: Callable[..., Any],
    title: str,
    by: str,
    convert: Callable[[Any], Any] | None = None,
) -> Callable[..., Any]:
    """``method``, whose errors are attributed; ``convert`` makes of its result what is promised."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            result = method(*args, **kwargs)
            return result if convert is None else convert(result)
        except PiecewiseError:
            raise
        except Exception as error:
            raise fault(by, title, error) from error

    for name in ("__module__", "__qualname__", "__name__"):
        if hasattr(method, name):
            setattr(call, name, getattr(method, name))
    return call


class _Context:
    """A context manager whose own errors are attributed, and those of its block are not."""

    def __init__(self, of: AbstractContextManager[Any], title: str, by: str) -> None:
        self._of = of
        self._title = title
        self._by = by

    def __enter__(self) -> Any:
        try:
            return self._of.__enter__()
        except Exception as error:
            raise fault(self._by, self._title, error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        try:
            return self._of.__exit__(kind, error, trace)
        except Exception as raised:
            if raised is error:
                raise
            raise fault(self._by, self._title, raised) from raised
