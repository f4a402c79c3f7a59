"""A compiler without a platform of its own, on a CPU without streams and graphs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from piecewise_core.errors import PluginError
from piecewise_core.plugins import PluginEntry
from piecewise_core.plugins.compilers import brought_compiler
from piecewise_core.plugins.contract import check_compiler
from piecewise_core.protocols import Capabilities, CompilerAdaptor, NoStreams

__all__ = ["CompilerUnderTest", "host"]


@dataclass(frozen=True)
class CompilerUnderTest:
    """The compiler called ``name`` in ``Config(compiler=...)``, or "module:attribute" of one."""

    name: str


def host(name: str, origin: PluginEntry) -> tuple[Host, PluginEntry]:
    """A CPU with compiler ``name``, and the plugin that brings it; ``origin`` for one by module.

    Raises ConfigError, PlatformConflict and PluginError.
    """
    if ":" not in name:
        compiler, entry = brought_compiler(name)
        return Host(compiler), entry
    place, _, attribute = name.partition(":")
    try:
        found: Any = getattr(import_module(place), attribute)
        compiler = found() if isinstance(found, type) else found
    except Exception as error:
        raise PluginError(
            f"importing compiler {name!r} failed with {type(error).__name__}: {error}; give "
            '"package.module:name" of a CompilerAdaptor, or of its class'
        ) from error
    check_compiler(compiler, origin)
    return Host(compiler), origin


class Host:
    """The smallest platform around a compiler."""

    device_type = "cpu"

    def __init__(self, compiler: CompilerAdaptor) -> None:
        self.name = compiler.name
        self.device = NoStreams()
        self.graphs = None
        self.compiler = compiler
        self.capabilities = Capabilities()
