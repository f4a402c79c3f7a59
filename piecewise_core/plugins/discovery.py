"""Find plugins by reading installed metadata; nothing of theirs is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from piecewise_core.hookspecs import ENTRY_POINT_GROUP

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = ["PluginEntry", "discover"]


@dataclass(frozen=True, order=True)
class PluginEntry:
    """One entry point, as the metadata of its distribution announces it.

    ``distribution``, ``version``: what pip would show; ``name``: the entry point's name, by
    convention the name of its platform; ``module``: what to import, ``"package.module"``.
    """

    distribution: str
    name: str
    version: str
    module: str

    @property
    def project(self) -> str:
        """The distribution's name as package indexes normalise it."""
        return re.sub(r"[-_.]+", "-", self.distribution).lower()

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()


def discover() -> tuple[PluginEntry, ...]:
    """Every installed entry point of group ``piecewise``, by distribution and name.

    The order is for display only; nothing is decided by it.
    """
    # Costs about 10 ms to import, which `import piecewise_core` should not pay.
    from importlib.metadata import entry_points

    entries = set()
    for point in entry_points(group=ENTRY_POINT_GROUP):
        # A distribution whose METADATA file is missing or empty has no name and no version.
        headers = _headers(point.dist)
        entries.add(
            PluginEntry(
                distribution=headers.get("name") or "(unnamed distribution)",
                name=point.name,
                version=headers.get("version") or "(no version)",
                module=point.value,
            )
        )
    return tuple(sorted(entries))


def _headers(distribution: Distribution | None) -> dict[str, str]:
    """The single-line headers of a distribution's metadata.

    The whole file, with the README in it, takes longer to parse than all else of discovery.
    """
    if distribution is None:
        return {}
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    head = text.replace("\r\n", "\n").partition("\n\n")[0]
    lines = (line.partition(":") for line in head.splitlines() if line[:1] not in (" ", "\t"))
    return {name.strip().lower(): value.strip() for name, _, value in lines}
