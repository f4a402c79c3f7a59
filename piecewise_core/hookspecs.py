"""The hooks a plugin may implement, and the marker to do it with.

A plugin module imports this and nothing heavy; its device stack is imported in ``create()``::

    from piecewise_core.hookspecs import hookimpl
    from piecewise_core.protocols import PlatformInfo

    @hookimpl
    def piecewise_platforms():
        yield PlatformInfo("acme", "acme", (1, 0), probe, create)

and its ``pyproject.toml`` names the module::

    [project.entry-points.piecewise]
    acme = "piecewise_acme.plugin"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from piecewise_core.config import Config
    from piecewise_core.protocols import (
        CompilerAdaptor,
        Passes,
        Platform,
        PlatformInfo,
        Rewrite,
    )

__all__ = ["ENTRY_POINT_GROUP", "PROJECT", "hookimpl", "hookspec"]

PROJECT = "piecewise"
ENTRY_POINT_GROUP = "piecewise"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def piecewise_platforms() -> Iterable[PlatformInfo]:
    """The platforms this plugin brings. Called once, at selection; must import nothing heavy."""
    raise NotImplementedError


@hookspec
def piecewise_compilers() -> Mapping[str, Callable[[], CompilerAdaptor]]:
    """Compilers by the name used in ``Config(compiler=...)``, each a function that makes it."""
    raise NotImplementedError


@hookspec
def piecewise_passes() -> Passes:
    """Graph passes to run over every compilable piece, in order, before it is compiled.

    Each becomes a Rewrite of level "piece", named as the function is: ``"module.function"``.
    """
    raise NotImplementedError


@hookspec
def piecewise_rewrites(platform: Platform, config: Config) -> Iterable[Rewrite]:
    """Rewrites for models on ``platform``, in the order in which they run at their level.

    Called once per compiled model, and only where this plugin announced that platform, or
    announces none. ``config``: the model's, its ``compiler`` by name. Since API 1.1.
    """
    raise NotImplementedError
