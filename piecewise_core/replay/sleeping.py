"""Sizes whose graphs were released: they have none until they are asked for again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from piecewise_core.config import Config
from piecewise_core.errors import ConfigError
from piecewise_core.ranges import Sizes

__all__ = ["Sleep", "chosen"]


_MOVED = (
    "a tensor that the graphs read was replaced or moved, as beam search moves a cache's; "
    "restore() captures again, and so does another cache in its place"
)

_MOST = 3
"""Objects in a row whose tensors were moved, after which another one's are expected to be."""


class Sleep:
    """The sizes that sleep: some, or every one, also those that nobody listed.

    ``why``: they do, in words.
    """

    def __init__(self) -> None:
        self._every = self._moved = False
        self._moves = 0
        self._some: frozenset[Sizes] = frozenset()
        self.why = ""

    def __contains__(self, sizes: object) -> bool:
        return self._every or self._moved or sizes in self._some

    def __bool__(self) -> bool:
        return self._every or self._moved or bool(self._some)

    def begin(self, sizes: Iterable[Sizes] | None, *, moved: bool) -> None:
        """``sizes`` sleep from now on; None: all do. ``moved``: what they read lies elsewhere."""
        self.why = _MOVED if moved else "released"
        self._moves += moved
        self._moved |= moved and sizes is None
        self._every |= not moved and sizes is None
        self._some |= frozenset(sizes or ())

    def follow(self) -> None:
        """Calls hold another object from now on: what moved the last one's tensors is over.

        Unless it was so with several in a row, each of which had graphs for one call.
        """
        if not self._moved:
            self._moves = 0
        elif self._moves < _MOST:
            self._moved, self.why = False, "released"

    def end(self, sizes: Iterable[Sizes] | None = None, listed: Iterable[Sizes] = ()) -> None:
        """``sizes`` are to have graphs again; None: all are. ``listed``: the capture sizes."""
        before = frozenset(listed) if self._every or self._moved else self._some
        self._every = self._moved = False
        self._some = frozenset() if sizes is None else before - frozenset(sizes)


def chosen(config: Config, sizes: object, method: str) -> tuple[Sizes, ...] | None:
    """``sizes``, written as in ``Config.capture_sizes``, of which they must be; None for all.

    ``method``: whose argument it is. Raises ConfigError.
    """
    if sizes is None:
        return None
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        raise ConfigError(f"{method}(sizes={sizes!r}): give a list of capture sizes, or None")
    asked = list(sizes)
    found = tuple(tuple(s) if isinstance(s, Sequence) else (s,) for s in asked)
    for place, wanted in enumerate(found):
        if wanted not in config.captures or any(isinstance(n, bool) for n in wanted):
            listed = [s[0] if len(s) == 1 else s for s in config.captures]
            raise ConfigError(
                f"{method}(sizes=...): {asked[place]!r} is no capture size; they are "
                f"{', '.join(map(str, listed)) or 'none'}"
            )
    return found
