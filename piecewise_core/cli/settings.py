"""What the environment sets: the compile store, and piecewise's variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from piecewise_core.config_cache import store_directory

__all__ = ["Settings", "settings"]

_SECRET = ("SIGN", "KEY", "TOKEN", "URL", "PASSWORD")
"""Parts of names whose values are not shown."""


@dataclass(frozen=True)
class Settings:
    """``store``, ``mode``: where compiled pieces are kept, and whether they are.

    ``nbytes``, ``files``: what lies there now. ``variables``: those that begin with PIECEWISE_;
    values that may be secret are "(set)".
    """

    store: str
    mode: str
    nbytes: int
    files: int
    variables: Mapping[str, str]

    def __str__(self) -> str:
        named = ", ".join(f"{name}={value}" for name, value in self.variables.items())
        return (
            f"compile store {self.store} ({self.mode}): {self.nbytes / 1e6:.1f} MB in "
            f"{self.files} files\nvariables: {named or 'no PIECEWISE_ variable is set'}"
        )


def settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """What ``environ`` sets. Makes nothing."""
    root = store_directory(None, environ)
    sizes = list(_sizes(root))
    given = sorted(name for name in environ if name.startswith("PIECEWISE_"))
    return Settings(
        str(root),
        environ.get("PIECEWISE_CACHE_MODE", "").strip() or "readwrite",
        sum(sizes),
        len(sizes),
        {name: _shown(name, environ[name]) for name in given},
    )


def _shown(name: str, value: str) -> str:
    return "(set)" if any(part in name for part in _SECRET) else value


def _sizes(root: Path) -> list[int]:
    """Of the files below ``root``; one that goes meanwhile is left out."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                found.append(os.stat(os.path.join(folder, name)).st_size)
            except OSError:
                continue
    return found
