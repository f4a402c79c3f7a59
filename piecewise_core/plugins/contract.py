"""Compare what a plugin made with the Protocols, by name and by signature.

``isinstance`` with a runtime-checkable Protocol looks at names only and accepts a method with
the wrong parameters; core would meet those in mid-call. Here each difference is found at load
and printed.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from typing import Any

from piecewise_core.errors import PluginError
from piecewise_core.protocols import (
    AbstractPiecewiseBackend,
    Capabilities,
    CompilerAdaptor,
    CompilerExtras,
    DeviceRuntime,
    GraphDriver,
    GraphExtras,
    Platform,
    PlatformExtras,
    Rewrite,
    RuntimeExtras,
    SymmetricMemory,
)

__all__ = ["check_compiler", "check_platform", "check_rewrite", "differences"]

_ABSENT = object()


def check_platform(platform: Any, origin: object) -> None:
    """Raise PluginError listing every difference between ``platform`` and the Protocols.

    ``origin``: who made it, for the message.
    """
    wrong = differences(platform, Platform, PlatformExtras)
    if not wrong:
        wrong += differences(platform.device, DeviceRuntime, RuntimeExtras)
        wrong += _compiler(platform.compiler)
        if platform.graphs is not None:
            wrong += differences(platform.graphs, GraphDriver, GraphExtras)
            wrong += _value(platform.graphs, "GraphDriver", "runs_captures", bool)
        wrong += _capabilities(platform.capabilities)
        wrong += _backend(_read(platform, "piecewise_backend"))
        for name in ("name", "device_type"):
            wrong += _value(platform, "Platform", name, str)
    _refuse(wrong, f"{origin}: {type(platform).__name__} is not a Platform")


def check_compiler(compiler: Any, origin: object) -> None:
    """Raise PluginError listing every difference between ``compiler`` and CompilerAdaptor."""
    _refuse(_compiler(compiler), f"{origin}: {type(compiler).__name__} is not a CompilerAdaptor")


def check_rewrite(rewrite: Any, origin: object) -> None:
    """Raise PluginError listing every difference between ``rewrite`` and Rewrite."""
    wrong = _attributes(rewrite, Rewrite) + _methods(rewrite, Rewrite, required=True)
    for name, kind in (("name", str), ("key", str), ("lowered", bool)):
        wrong += _value(rewrite, "Rewrite", name, kind)
    level = _read(rewrite, "level")
    if level is not _ABSENT and level not in ("program", "piece"):
        wrong.append(f'Rewrite.level is {level!r}, not "program" or "piece"')
    _refuse(wrong, f"{origin}: {type(rewrite).__name__} is not a Rewrite")


def differences(thing: Any, required: type, optional: type) -> list[str]:
    """Say how ``thing`` departs from Protocol ``required``, and from ``optional`` where present.

    A public method that is neither, and whose name is nearly that of one it lacks, is misspelt.
    """
    return (
        _attributes(thing, required)
        + _methods(thing, required, required=True)
        + _methods(thing, optional, required=False, label=required.__name__)
        + misspelt(thing, required, optional)
    )


def misspelt(thing: Any, required: type, optional: type) -> list[str]:
    """Name methods of ``thing`` that core would silently never call."""
    known = [*_declared(required), *inspect.get_annotations(required), *_declared(optional)]
    absent = [name for name in known if _read(thing, name) is _ABSENT]
    wrong = []
    for name in dir(thing):
        if name.startswith("_") or name in known:
            continue
        near = [n for n in difflib.get_close_matches(name, absent) if _is_slip(name, n)]
        if near and callable(_read(thing, name)):
            wrong.append(
                f"{required.__name__}.{name} is not a method that core calls; did you mean "
                f"{near[0]}? Begin its name with an underscore if it is your own"
            )
    return wrong


def _is_slip(name: str, known: str) -> bool:
    """Whether ``name`` is ``known`` mistyped, and not a word of its own like ``memory_used``."""
    close = difflib.SequenceMatcher(None, name, known).ratio() >= 0.85
    return close and abs(len(name) - len(known)) <= 2


def _compiler(compiler: Any) -> list[str]:
    wrong = differences(compiler, CompilerAdaptor, CompilerExtras)
    return wrong or _value(compiler, "CompilerAdaptor", "name", str)


def _capabilities(declared: Any) -> list[str]:
    if not isinstance(declared, Capabilities):
        return [f"capabilities is {declared!r}, not a Capabilities"]
    size, memory, wrong = declared.alignment, declared.symmetric_memory, []
    if type(size) is not int or size <= 0 or size & (size - 1) != 0:
        wrong.append(f"Capabilities.alignment is {size!r}, not a power of two in bytes")
    return wrong if memory is None else [*wrong, *differences(memory, SymmetricMemory, object)]


def _backend(declared: Any) -> list[str]:
    """A class in place of PiecewiseBackend is made and called with what core has for it."""
    if declared is _ABSENT or declared is None:
        return []
    if not inspect.isclass(declared):
        return [f"Platform.piecewise_backend is {declared!r}, not a class"]
    title = "Platform.piecewise_backend"
    wrong = _signature(title, declared, _parameters(AbstractPiecewiseBackend.__init__))
    called = any("__call__" in vars(kind) for kind in declared.__mro__)
    return wrong if called else [*wrong, f"{title}.__call__(*args) is missing"]


def _value(thing: Any, title: str, name: str, kind: type) -> list[str]:
    value = _read(thing, name)
    if value is _ABSENT or isinstance(value, kind):
        return []
    return [f"{title}.{name} is {value!r}, not a {'string' if kind is str else kind.__name__}"]


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
    for name, declared in _declared(protocol).items():
        method, title = _read(thing, name), f"{label or protocol.__name__}.{name}"
        expected = _parameters(declared)
        if method is _ABSENT:
            wrong += [f"{title}{_show(expected)} is missing"] if required else []
        elif not callable(method):
            wrong.append(f"{title} is {method!r}, not a method")
        else:
            wrong += _signature(title, method, expected)
    return wrong


@functools.cache
def _declared(protocol: type) -> dict[str, Any]:
    """The public methods of a Protocol."""
    found = vars(protocol).items()
    return {n: m for n, m in found if not n.startswith("_") and inspect.isfunction(m)}


def _signature(title: str, method: Any, expected: list[inspect.Parameter]) -> list[str]:
    """The difference, if ``method`` cannot be called the way core calls it."""
    try:
        actual = inspect.signature(method)
    except (TypeError, ValueError):  # builtins may not say
        return []
    positional = [p.name for p in expected if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = {p.name: None for p in expected if p.kind is p.KEYWORD_ONLY}
    try:
        actual.bind(*positional, **keywords)
    except TypeError as exc:
        taken = _show(list(actual.parameters.values()))
        return [f"{title} must accept {_show(expected)}, takes {taken}: {exc}"]
    return []


@functools.cache
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
