"""Find plugins by reading installed metadata; nothing of theirs is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass

from piecewise_core.hookspecs import ENTRY_POINT_GROUP

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
        metadata = getattr(point.dist, "metadata", None) or {}
        entries.add(
            PluginEntry(
                distribution=metadata.get("Name") or "(unnamed distribution)",
                name=point.name,
                version=metadata.get("Version") or "(no version)",
                module=point.value,
            )
        )
    return tuple(sorted(entries))
