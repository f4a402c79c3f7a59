"""Compare what a plugin made with the Protocols, by name and by signature.

``isinstance`` with a runtime-checkable Protocol looks at names only and accepts a method with
the wrong parameters; core would meet those in mid-call. Here each difference is found at load
and printed.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from piecewise_core.errors import PluginError
from piecewise_core.protocols import (
    Capabilities,
    CompilerAdaptor,
    DeviceRuntime,
    GraphDriver,
    Platform,
)

__all__ = ["check_compiler", "check_platform", "differences"]

_ABSENT = object()


class _RuntimeExtras(Protocol):
    """The optional methods of DeviceRuntime."""

    def memory_info(self) -> Any: ...
    def memory_stats(self) -> Any: ...
    def empty_cache(self) -> Any: ...
    def rng(self) -> Any: ...


class _CompilerExtras(Protocol):
    """The optional methods of CompilerAdaptor."""

    def load(self, handle: Any) -> Any: ...
    def configure(self, options: Any) -> Any: ...
    def passes(self) -> Any: ...


class _GraphExtras(Protocol):
    """The optional methods of GraphDriver."""

    def replayer(self, graph: Any) -> Any: ...
    def weak_ref(self, tensor: Any) -> Any: ...
    def register_generator(self, graph: Any, generator: Any) -> Any: ...
    def resource_budget(self, ctx: Any) -> Any: ...
    def explain(self, exc: Any) -> Any: ...
    def unsafe_ops(self) -> Any: ...
    def capture_context(self) -> Any: ...
    def abort_capture(self, graph: Any) -> Any: ...
    def before_replay(self, graph: Any, call: Any) -> Any: ...
    def pool_bytes(self, pool: Any) -> Any: ...
    def driver_bytes(self, pool: Any) -> Any: ...
    def live_bytes(self, pool: Any) -> Any: ...
    def stager(self, buffers: Any) -> Any: ...
    def dump(self, graph: Any, path: Any) -> Any: ...


class _PlatformExtras(Protocol):
    """The optional methods of Platform."""

    def self_check(self) -> Any: ...


def check_platform(platform: Any, origin: object) -> None:
    """Raise PluginError listing every difference between ``platform`` and the Protocols.

    ``origin``: who made it, for the message.
    """
    wrong = _attributes(platform, Platform) + _methods(platform, _PlatformExtras, required=False)
    if not wrong:
        wrong += differences(platform.device, DeviceRuntime, _RuntimeExtras)
        wrong += _compiler(platform.compiler)
        if platform.graphs is not None:
            wrong += differences(platform.graphs, GraphDriver, _GraphExtras)
        if not isinstance(platform.capabilities, Capabilities):
            wrong.append(f"capabilities is {platform.capabilities!r}, not a Capabilities")
    _refuse(wrong, f"{origin}: {type(platform).__name__} is not a Platform")


def check_compiler(compiler: Any, origin: object) -> None:
    """Raise PluginError listing every difference between ``compiler`` and CompilerAdaptor."""
    _refuse(_compiler(compiler), f"{origin}: {type(compiler).__name__} is not a CompilerAdaptor")


def differences(thing: Any, required: type, optional: type) -> list[str]:
    """Say how ``thing`` departs from Protocol ``required``, and from ``optional`` where present."""
    return (
        _attributes(thing, required)
        + _methods(thing, required, required=True)
        + _methods(thing, optional, required=False, label=required.__name__)
    )


def _compiler(compiler: Any) -> list[str]:
    wrong = differences(compiler, CompilerAdaptor, _CompilerExtras)
    if not wrong and not isinstance(compiler.name, str):
        wrong.append(f"CompilerAdaptor.name is {compiler.name!r}, not a string")
    return wrong


def _attributes(thing: Any, protocol: type) -> list[str]:
    wrong = []
    for name in inspect.get_annotations(protocol):
        value = _read(thing, name)
        if value is _ABSENT:
            wrong.append(f"{protocol.__name__}.{name} is missing")
        elif isinstance(value, _Raises):
            wrong.append(f"{protocol.__name__}.{name} is {value!r}")
    return wrong


def _methods(thing: Any, protocol: type, *, required: bool, label: str | None = None) -> list[str]:
    wrong = []
    for name, declared in vars(protocol).items():
        if name.startswith("_") or not inspect.isfunction(declared):
            continue
        method, title = _read(thing, name), f"{label or protocol.__name__}.{name}"
        expected = _parameters(declared)
        if method is _ABSENT:
            wrong += [f"{title}{_show(expected)} is missing"] if required else []
        elif not callable(method):
            wrong.append(f"{title} is {method!r}, not a method")
        else:
            wrong += _signature(title, method, expected)
    return wrong


def _signature(title: str, method: Any, expected: list[inspect.Parameter]) -> list[str]:
    """The difference, if ``method`` cannot be called the way core calls it."""
    try:
        actual = inspect.signature(method)
    except (TypeError, ValueError):  # builtins may not say
        return []
    positional = [p.name for p in expected if p.kind is not p.KEYWORD_ONLY]
    keywords = {p.name: None for p in expected if p.kind is p.KEYWORD_ONLY}
    try:
        actual.bind(*positional, **keywords)
    except TypeError as exc:
        taken = _show(list(actual.parameters.values()))
        return [f"{title} must accept {_show(expected)}, takes {taken}: {exc}"]
    return []


def _parameters(declared: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(declared).parameters.values())[1:]


def _show(parameters: list[inspect.Parameter]) -> str:
    bare = [p.replace(annotation=p.empty) for p in parameters]
    return str(inspect.Signature(bare))


def _read(thing: Any, name: str) -> Any:
    """The attribute, ``_ABSENT``, or what its reading raised."""
    try:
        return getattr(thing, name, _ABSENT)
    except Exception as exc:
        return _Raises(exc)


class _Raises:
    """Stands for an attribute whose reading raised; shown as such in a difference."""

    def __init__(self, exc: Exception) -> None:
        self._exc = exc

    def __repr__(self) -> str:
        return f"a property that raises {type(self._exc).__name__}: {self._exc}"


def _refuse(wrong: list[str], what: str) -> None:
    if wrong:
        raise PluginError("\n  - ".join([f"{what} (see piecewise_core.protocols):", *wrong]))
