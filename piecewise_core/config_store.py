"""Fields of Config that say where compiled code is kept, and whose is believed."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from piecewise_core import config_fields
from piecewise_core.errors import ConfigError

__all__ = ["Trust", "checked"]

Trust = Literal["own", "signed"]


def checked(config: Any) -> dict[str, object]:
    """The fields in their normal form. Raises ConfigError, which never shows ``sign_key``."""
    config_fields.choice("trust", config.trust, ("own", "signed"))
    return {
        "cache_dir": config_fields.path("cache_dir", config.cache_dir),
        "cache_url": _url(config.cache_url),
        "sign_key": config_fields.path("sign_key", config.sign_key, shown="this"),
    }


def _url(value: object) -> str | None:
    """A URL with a scheme and without a password, or None; nothing is looked up."""
    if value is None:
        return None
    if not isinstance(value, str) or re.match(r"[a-z][a-z0-9+.-]*://", value) is None:
        shown = repr(value)[:60] if isinstance(value, str) and "@" not in value else "this"
        raise ConfigError(
            f"Config.cache_url: {shown} is not a URL; give one such as s3://bucket/path, "
            "file:///shared/path, or None"
        )
    parts = urlsplit(value)
    if parts.password is not None or parts.query:
        raise ConfigError(
            "Config.cache_url: it holds a password or a query, which would be shown; give "
            "credentials as the file system's own settings or environment variables have them"
        )
    if parts.scheme == "file" and (parts.netloc not in ("", "localhost") or parts.path == ""):
        raise ConfigError(f"Config.cache_url: {value!r} names no directory; write file:///path")
    return value
