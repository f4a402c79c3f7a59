"""Checks of the settings of models that several processes serve together."""

from __future__ import annotations

from typing import Any

from piecewise_core.errors import ConfigError

__all__ = ["ranks", "ranks_timeout"]


def ranks(value: Any) -> Any:
    """Return "auto", None or a group of torch.distributed; "none" is None, as TOML has no None."""
    if value == "none":
        return None
    group = hasattr(value, "group_name") and callable(getattr(value, "size", None))
    if value is not None and value != "auto" and not group:
        raise ConfigError(
            f"Config.ranks: {value!r} is no group of torch.distributed; give dist.group.WORLD or "
            'what dist.new_group() returns, "auto", or None'
        )
    return value


def ranks_timeout(value: Any) -> float:
    """Return a positive number of seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise ConfigError(
            f"Config.ranks_timeout: {value!r} is no number of seconds above 0; give 5, say"
        )
    return float(value)
