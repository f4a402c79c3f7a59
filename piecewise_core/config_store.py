"""Fields of Config that say where compiled code is kept, and whose is believed."""

from __future__ import annotations

from typing import Any, Literal

from piecewise_core import config_fields

__all__ = ["Trust", "checked"]

Trust = Literal["own", "signed"]


def checked(config: Any) -> dict[str, object]:
    """The fields in their normal form. Raises ConfigError, which never shows ``sign_key``."""
    config_fields.choice("trust", config.trust, ("own", "signed"))
    return {
        "cache_dir": config_fields.path("cache_dir", config.cache_dir),
        "sign_key": config_fields.path("sign_key", config.sign_key, shown="this"),
    }
