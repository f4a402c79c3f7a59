"""Where piecewise keeps what it may need again, per user."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from piecewise_core.ownership import foreign, make_private

__all__ = ["cache_directory", "store_directory"]

logger = logging.getLogger(__name__)


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Piecewise's directory in the user's cache: PIECEWISE_CACHE_DIR, else the XDG place.

    Where there is no home (a container's user without an entry), a directory of this user's among
    the temporary files, with one warning.
    """
    chosen = environ.get("PIECEWISE_CACHE_DIR")
    if chosen:
        return _at_home(chosen)
    base = os.path.expanduser(environ.get("XDG_CACHE_HOME", ""))
    if not os.path.isabs(base):  # to be ignored, says the XDG specification
        base = os.path.join("~", ".cache")
    return _at_home(os.path.join(base, "piecewise"))


def store_directory(cache_dir: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path:
    """The compile store's directory: in ``cache_dir`` (as in Config), else in the user's cache."""
    base = cache_directory(environ) if cache_dir is None else _at_home(os.fspath(cache_dir))
    return base / "store"


def _at_home(path: str) -> Path:
    """``path`` with ``~`` and ``~name`` looked up: never a directory of that name."""
    found = os.path.expanduser(path)
    if not found.startswith("~") and os.path.isabs(found) >= path.startswith("~"):
        return Path(found)
    return _homeless(path)


@functools.cache
def _homeless(path: str) -> Path:
    found = _temporary()
    logger.warning(
        "%s is nowhere: this process's user has no home directory; what is compiled is kept in %s. "
        "Set HOME, or PIECEWISE_CACHE_DIR to a directory of your own",
        path,
        found,
    )
    return found


@functools.cache
def _temporary() -> Path:
    """A directory among the temporary files that is this user's alone."""
    found = Path(tempfile.gettempdir(), f"piecewise-{os.getuid() if hasattr(os, 'getuid') else ''}")
    try:
        make_private(found)
        if foreign(found) is None:
            return found
    except OSError as error:
        logger.debug("%s cannot be used: %s", found, error)
    return Path(tempfile.mkdtemp(prefix="piecewise-"))  # of this process
