"""Find plugins by reading installed metadata; nothing of theirs is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    entries = set()
    for distribution in _distributions():
        # A distribution whose METADATA file is missing or empty has no name and no version.
        headers = _headers(distribution)
        for point in distribution.entry_points:
            if point.group == ENTRY_POINT_GROUP:
                entries.add(
                    PluginEntry(
                        distribution=headers.get("name") or "(unnamed distribution)",
                        name=point.name,
                        version=headers.get("version") or "(no version)",
                        module=point.value,
                    )
                )
    return tuple(sorted(entries))


def _distributions() -> Iterator[Distribution]:
    """Those with entry points of ours; of several by one name, what the first on the path has.

    The others' entry points are not parsed: an environment has hundreds, at every compile.
    """
    # Costs about 10 ms to import, which `import piecewise_core` should not pay.
    from importlib.metadata import PackageNotFoundError, distribution, distributions

    for found in distributions():
        if f"[{ENTRY_POINT_GROUP}]" in (found.read_text("entry_points.txt") or ""):
            name = _headers(found).get("name")
            try:
                yield distribution(name) if name else found
            except PackageNotFoundError:  # its folder has another name
                yield found


def _headers(distribution: Distribution) -> dict[str, str]:
    """The single-line headers of a distribution's metadata.

    The whole file, with the README in it, takes longer to parse than all else of discovery.
    """
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    head = text.replace("\r\n", "\n").partition("\n\n")[0]
    lines = (line.partition(":") for line in head.splitlines() if line[:1] not in (" ", "\t"))
    return {name.strip().lower(): value.strip() for name, _, value in lines}
