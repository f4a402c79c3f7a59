"""From a compiler's name to its adaptor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.config import Config
from piecewise_core.plugins import find_compiler
from piecewise_core.protocols import CompilerAdaptor, Platform

__all__ = ["configure", "resolve"]


def resolve(name: str | None, platform: Platform) -> CompilerAdaptor:
    """The adaptor called ``name``; None is the platform's own.

    Raises ConfigError with the nearest name when there is none.
    """
    if name is None or name == platform.compiler.name:
        return platform.compiler
    if name == "eager":
        return EagerCompiler()
    if name == "inductor":
        from piecewise_core.compile.inductor import InductorCompiler

        return InductorCompiler()
    return find_compiler(name, known=("inductor", "eager", platform.compiler.name))


def configure(compiler: CompilerAdaptor, config: Config) -> None:
    """Tell ``compiler`` the settings of a model that it is about to compile, if it asks."""
    own: Callable[[Mapping[str, Any]], None] | None = getattr(compiler, "configure", None)
    if own is not None:
        own(config.to_dict())
