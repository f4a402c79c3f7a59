"""Where piecewise keeps what it may need again, per user."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["cache_directory", "store_directory"]


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Piecewise's directory in the user's cache: PIECEWISE_CACHE_DIR, else the XDG place."""
    chosen = environ.get("PIECEWISE_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "piecewise"


def store_directory(cache_dir: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path:
    """The compile store's directory: in ``cache_dir`` (as in Config), else in the user's cache."""
    base = cache_directory(environ) if cache_dir is None else Path(cache_dir).expanduser()
    return base / "store"
