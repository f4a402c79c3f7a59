"""Sizes that nobody listed: each is captured by itself when it comes again."""

from __future__ import annotations

import logging
from typing import Any

from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.dispatch import Dispatch
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.verifying import Verifier
from piecewise_core.ranges import Box, Sizes
from piecewise_core.replay.replayable import Entry
from piecewise_core.targets import Target

__all__ = ["MOST", "UnlistedSizes"]

logger = logging.getLogger(__name__)

MOST = 32
"""Sizes of one Dynamo graph that are captured unlisted: each has buffers and graphs of its own."""

_KNOWN = 1024
"""Sizes that are remembered."""


class UnlistedSizes:
    """Serves calls of one Dynamo graph, by replay from the call on that captures their size."""

    def __init__(
        self,
        region: Region,
        dispatch: Dispatch,
        capturing: Capturing,
        verifier: Verifier | None,
        exact: bool = False,
    ) -> None:
        self._exact = exact
        self._region, self._dispatch, self._capturing = region, dispatch, capturing
        self._verifier = verifier
        self._serving: dict[Sizes, list[Entry]] = {}
        self._full = False

    def serve(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        """Serve one call."""
        entries = self._serving.get(sizes)
        if entries is None:
            entries = self._begin(sizes)
        return entries[0](t, b, sizes, args, kwargs)

    def forget(self) -> None:
        """No size has graphs any more."""
        self._serving.clear()
        self._full = False

    def _plain(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        dispatch = self._dispatch
        return dispatch.serving[dispatch.find(*sizes)](t, b, sizes, args, kwargs)

    def _begin(self, sizes: Sizes) -> list[Entry]:
        """What serves sizes not seen before, or not lately."""
        region = self._region
        if region.box is None or sizes not in region.box or self._is_full():
            return [self._plain]
        if len(self._serving) >= _KNOWN:
            kept = self._capturing.plans
            self._serving = {s: e for s, e in self._serving.items() if s in kept}
        entries = self._serving[sizes] = self._entries(sizes)
        return entries

    def _is_full(self) -> bool:
        full = len(self._capturing.plans) >= MOST
        if full and not self._full:
            self._full = True
            logger.info(
                "%d sizes of one graph of torch.compile have static graphs; other sizes are served "
                "without. List those that matter in options={'capture_sizes': ...}",
                MOST,
            )
        return full

    def _entries(self, sizes: Sizes) -> list[Entry]:
        entries: list[Entry] = []
        if self._exact:
            self._region.exact.add(sizes)

        def put(_: Sizes, entry: Entry) -> None:
            dropped = sizes in self._capturing.plans.dropped
            entries[0] = self._plain if dropped else entry

        pending = self._dispatch.replay(self._region, sizes, put)

        def first(t: Any, b: Any, own: Sizes, args: Any, kwargs: Any) -> Any:
            plans = self._capturing.plans
            if plans.is_early(sizes) or self._is_full():
                result = self._plain(t, b, own, args, kwargs)
                plans.called.add(sizes)  # not before: a call that lacks code comes again
                return result
            return pending(t, b, own, args, kwargs)

        entries += [first, self._plain]
        if self._verifier is None:
            return entries
        return self._verifier.watch(entries, [(self._region, _target(sizes))])


def _target(sizes: Sizes) -> Target:
    return Target("replayed", Box.single(sizes), sizes)
