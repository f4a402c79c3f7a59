"""From settings to the store that a model uses."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from piecewise_core.config_cache import store_directory
from piecewise_core.config_fields import nearest
from piecewise_core.errors import ConfigError
from piecewise_core.store.fallback import FallbackStore
from piecewise_core.store.files import FileStore
from piecewise_core.store.ledger import Ledger
from piecewise_core.store.memory import MemoryStore
from piecewise_core.store.protocol import Store
from piecewise_core.store.pruning import BoundedStore
from piecewise_core.store.signing import Signer

__all__ = ["LIMIT", "LIMIT_VARIABLE", "MODES", "MODE_VARIABLE", "open_store", "size_limit"]

MODE_VARIABLE = "PIECEWISE_CACHE_MODE"
LIMIT_VARIABLE = "PIECEWISE_CACHE_LIMIT"

MODES = ("readwrite", "readonly", "memory", "off")

LIMIT = 10 << 30
"""Bytes that a store may have unless LIMIT_VARIABLE says otherwise."""

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def open_store(
    cache_dir: str | os.PathLike[str] | None,
    environ: Mapping[str, str],
    signer: Signer | None = None,
    ledger: Ledger | None = None,
    url: str | None = None,
) -> Store | None:
    """The store that the settings ask for; None when they ask for none.

    ``cache_dir``: as in Config. ``signer``, ``ledger``: as in FileStore. ``url``: of the second
    level, as in Config. Nothing is read or made before the store is first used. Raises ConfigError
    for a variable that cannot be read, and for a URL that cannot be opened or trusted.
    """
    mode = environ.get(MODE_VARIABLE, "").strip() or "readwrite"
    if mode not in MODES:
        raise ConfigError(
            f"{MODE_VARIABLE}={mode!r} is not one of {', '.join(MODES)}{nearest(mode, MODES)}"
        )
    limit, root = size_limit(environ), store_directory(cache_dir, environ)
    if mode == "off":
        return None

    def shared(local: Store) -> Store:
        return local if url is None else _fleet(local, url, signer, ledger, mode)

    if mode == "memory":
        return shared(MemoryStore())

    def opened() -> Store:
        store = FileStore(root, writable=mode != "readonly", signer=signer, ledger=ledger)
        return store if mode == "readonly" else BoundedStore(store, limit)

    return shared(FallbackStore(opened, read_only=mode == "readonly"))


def _fleet(
    local: Store, url: str, signer: Signer | None, ledger: Ledger | None, mode: str
) -> Store:
    from piecewise_core.store.fleet.level import Level
    from piecewise_core.store.fleet.store import FleetStore
    from piecewise_core.store.fleet.urls import open_url

    objects = open_url(url, signed=signer is not None and signer.required)
    return FleetStore(local, Level(objects, signer, ledger, writable=mode != "readonly"))


def size_limit(environ: Mapping[str, str]) -> int:
    """The most bytes that entries may have. Raises ConfigError."""
    text = environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return LIMIT
    found = re.fullmatch(r"(\d{1,18})\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if found is None or not int(found[1]):
        raise ConfigError(
            f"{LIMIT_VARIABLE}={text!r} is no size; give bytes, or a number with K, M, G or T (20G)"
        )
    return int(found[1]) << _UNITS[found[2].upper()]
