"""Rewrites and graph passes that plugins bring, each bound to who brought it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from piecewise_core.errors import PlatformError, PluginError
from piecewise_core.plugins.audience import Audience
from piecewise_core.plugins.contract import check_rewrite
from piecewise_core.plugins.discovery import PluginEntry, discover
from piecewise_core.plugins.peek import may_implement
from piecewise_core.plugins.registry import load
from piecewise_core.plugins.results import functions_of
from piecewise_core.protocols import Platform, Rewrite

if TYPE_CHECKING:
    import torch

    from piecewise_core.config import Config

__all__ = ["PluginPass", "all_passes", "all_rewrites", "name_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PluginPass:
    """A graph pass and the plugin it comes from. Call it with a GraphModule, changed in place.

    ``key``: names distribution, version and pass; belongs in the key of whatever it changed.
    """

    origin: PluginEntry
    name: str
    run: Callable[[torch.fx.GraphModule], None]

    @property
    def key(self) -> str:
        return f"{self.origin.project}=={self.origin.version}:{self.name}"

    def __call__(self, graph: torch.fx.GraphModule) -> None:
        """Run the pass. Raises PluginError naming distribution, version and pass."""
        try:
            self.run(graph)
        except Exception as exc:
            raise PluginError(
                f"{self.origin}: its graph pass {self.name} (hook piecewise_passes) failed with "
                f"{type(exc).__name__}: {exc}; update or uninstall {self.origin.distribution}, or "
                f"set rewrites_off=({self.name!r},)"
            ) from exc


def all_passes(audience: Audience | None = None) -> tuple[PluginPass, ...]:
    """The passes of every plugin in ``audience``, ordered by distribution, then as each has them.

    ``audience``: None for every installed plugin. A plugin that fails is logged and left out; one
    that has no passes is not even imported.
    """
    return tuple(
        PluginPass(entry, name_of(function), function)
        for entry, functions in _brought("piecewise_passes", _functions, audience)
        for function in functions
    )


def all_rewrites(
    platform: Platform, config: Config, audience: Audience | None = None
) -> tuple[tuple[PluginEntry, Rewrite], ...]:
    """The rewrites of every plugin in ``audience`` for a model, each with the plugin."""
    asked = {"platform": platform, "config": config}
    return tuple(
        (entry, rewrite)
        for entry, rewrites in _brought("piecewise_rewrites", _rewrites, audience, **asked)
        for rewrite in rewrites
    )


def name_of(function: Callable[..., Any]) -> str:
    """What a graph pass is called: module and name of the function, or of the object's class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _brought(
    hook: str,
    into: Callable[..., tuple[Any, ...]],
    audience: Audience | None,
    **asked: Any,
) -> Iterator[tuple[PluginEntry, tuple[Any, ...]]]:
    for entry in discover() if audience is None else audience.installed:
        try:
            if not may_implement(entry, hook) or not (audience is None or audience.has(entry)):
                continue
            plugin = load(entry) if audience is None else audience.plugin(entry)
            found = plugin.call(hook, partial(into, entry=entry), **asked)
        except PlatformError as exc:
            log.warning("skipping what hook %s of a piecewise plugin gives: %s", hook, exc)
            continue
        yield entry, found or ()


def _rewrites(rewrites: Any, entry: PluginEntry) -> tuple[Rewrite, ...]:
    found = tuple(rewrites)
    for rewrite in found:
        check_rewrite(rewrite, entry)
    return found


def _functions(passes: Any, entry: PluginEntry) -> tuple[Callable[..., Any], ...]:
    return functions_of(passes)
