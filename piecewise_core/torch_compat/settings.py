"""Modules of settings of torch's as text that is the same in every process."""

from __future__ import annotations

from typing import Any

__all__ = ["settings_text"]


def settings_text(config: Any) -> str:
    """What torch's own hash of ``config`` covers.

    That hash takes sets as they happen to be ordered, and so is another one in each process.
    """
    ignored = getattr(config, "_compile_ignored_keys", ())
    settings = config.get_config_copy()
    return "; ".join(f"{k}={_settled(v)}" for k, v in sorted(settings.items()) if k not in ignored)


def _settled(value: Any) -> str:
    """``repr`` without an order that is nobody's, and without addresses."""
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_settled, value)))}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{_settled(k)}: {_settled(v)}' for k, v in value.items()))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_settled, value))}]"
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    return repr(value)
