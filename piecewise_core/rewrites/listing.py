"""The rewrites of one model, in the order in which they run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from piecewise_core.config import Config
from piecewise_core.config_fields import nearest
from piecewise_core.errors import ConfigError
from piecewise_core.plugins import Audience, Selected, all_passes, all_rewrites, name_of
from piecewise_core.protocols import CompilerAdaptor, Rewrite
from piecewise_core.ranks.sharing import Sharing
from piecewise_core.rewrites.contiguous_crossings import CROSSINGS, order_crossings
from piecewise_core.rewrites.entry import GraphRewrite, ListedRewrite
from piecewise_core.rewrites.mask_terms import lift_masks
from piecewise_core.rewrites.residual_sums import residual_sums
from piecewise_core.rewrites.shared_heads import share_heads
from piecewise_core.rewrites.small_all_reduces import NAME, SmallAllReduces

__all__ = ["Rewrites", "list_rewrites"]

log = logging.getLogger(__name__)

_OURS = (
    *("shared_heads", "mask_terms", CROSSINGS, "residual_sums", NAME),
    *("one_row_kernels", "one_row_products", "onednn_products", "few_rows_products"),
)
"""Names of core's own and of its three platforms', so that one Config serves on all of them."""


@dataclass(frozen=True)
class Rewrites:
    """``listed``: every rewrite, those switched off too: programs', pieces', lowered pieces'."""

    listed: tuple[ListedRewrite, ...] = ()

    @property
    def program(self) -> tuple[ListedRewrite, ...]:
        """What changes the traced graph before it is cut."""
        return tuple(r for r in self._on if r.of.level == "program" and not r.of_layouts)

    @property
    def of_layouts(self) -> tuple[ListedRewrite, ...]:
        """What changes it when it is known where it is cut, and how all lies in memory."""
        return tuple(r for r in self._on if r.of_layouts)

    @property
    def piece(self) -> tuple[ListedRewrite, ...]:
        """What changes a piece as it was traced."""
        return tuple(r for r in self._on if r.of.level == "piece" and not r.lowered)

    @property
    def lowered(self) -> tuple[ListedRewrite, ...]:
        """What changes a piece in ATen operators."""
        return tuple(r for r in self._on if r.of.level == "piece" and r.lowered)

    def without_lowered(self) -> Rewrites:
        """For what runs as written: it is not lowered."""
        return Rewrites(tuple(r for r in self.listed if not r.lowered))

    def only_lowered(self) -> Rewrites:
        """For a graph that the others changed already."""
        return Rewrites(self.lowered)

    @property
    def passes(self) -> tuple[Callable[..., Any], ...]:
        """The graph passes among them, as functions: the compile store reads their code."""
        return tuple(r.graph_pass for r in self._on if r.graph_pass is not None)

    @property
    def keys(self) -> tuple[str, ...]:
        """What tells the others apart from other versions of them."""
        found = [r for r in self._on if r.graph_pass is None]
        return tuple(f"{r.by} {r.of.level} {r.of.name} {r.of.key}" for r in found)

    @property
    def sharing(self) -> Sharing | None:
        """The memory for small all-reduces; None where nothing asks for any."""
        found = [r.of for r in self._on]
        return next((r.sharing for r in found if isinstance(r, SmallAllReduces)), None)

    @property
    def _on(self) -> tuple[ListedRewrite, ...]:
        return tuple(r for r in self.listed if r.on)


def list_rewrites(selected: Selected, config: Config, compiler: CompilerAdaptor) -> Rewrites:
    """Every rewrite for a model on ``selected``: core's, the compiler's passes, the plugins'.

    ``config``: with the name of ``compiler``. Raises ConfigError for a name in ``rewrites_off``
    that no rewrite has.
    """
    audience = Audience(selected)
    own, title = getattr(compiler, "passes", None), f"compiler {config.compiler!r}"
    brought = [
        *map(ListedRewrite, _first(config)),
        *(_of_pass(one, title, name_of(one)) for one in (own() if callable(own) else ())),
        *(_of_pass(p, str(p.origin), p.name) for p in all_passes(audience)),
        *(
            ListedRewrite(r, str(entry))
            for entry, r in all_rewrites(selected.platform, config, audience)
        ),
        *map(ListedRewrite, _last(selected, config)),
    ]
    found = _distinct(brought)
    _refuse_unknown(config.rewrites_off, found)
    off = frozenset(config.rewrites_off)
    order = sorted(found, key=lambda r: (r.of.level != "program", r.lowered))
    return Rewrites(tuple(replace(r, on=r.of.name not in off) for r in order))


def _first(config: Config) -> Iterable[GraphRewrite]:
    yield GraphRewrite("shared_heads", "program", "1", lambda g, test: share_heads(g.graph, test))
    yield GraphRewrite("mask_terms", "program", "1", lambda g, test: lift_masks(g.graph, test))
    if config.compiler == "inductor":
        change = lambda g, test: order_crossings(g.graph, test)  # noqa: E731
        yield GraphRewrite(CROSSINGS, "program", "3", change, of_layouts=True)


def _last(selected: Selected, config: Config) -> Iterable[Rewrite]:
    """Behind what plugins do: products that they take apart leave no sum to keep."""
    if config.compiler == "inductor" and selected.info.device_type != "cpu":
        yield residual_sums()
    memory = selected.platform.capabilities.symmetric_memory
    if memory is not None:
        yield SmallAllReduces(memory)


def _of_pass(function: Callable[..., Any], by: str, name: str) -> ListedRewrite:
    rewrite = GraphRewrite(name, "piece", "", lambda graph, test: function(graph))
    return ListedRewrite(rewrite, by, graph_pass=function)


def _distinct(brought: Iterable[ListedRewrite]) -> list[ListedRewrite]:
    """Of rewrites of one name the first: switching one off must not switch two off."""
    found: dict[str, ListedRewrite] = {}
    for one in brought:
        first = found.setdefault(one.of.name, one)
        if first is not one and one.graph_pass is None:
            log.warning(
                "skipping rewrite %r of %s: %s has one of that name; give it another",
                *(one.of.name, one.by, first.by),
            )
        elif first is not one:
            found[f"{one.of.name} {len(found)}"] = one
    return list(found.values())


def _refuse_unknown(off: Iterable[str], found: Iterable[ListedRewrite]) -> None:
    known = sorted({*_OURS, *(r.of.name for r in found)})
    for name in off:
        if name not in known:
            raise ConfigError(
                f"Config.rewrites_off: {name!r} is no rewrite{nearest(name, known)}; there are: "
                f"{', '.join(known)}"
            )
