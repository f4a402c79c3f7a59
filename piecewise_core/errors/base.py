"""What every error of piecewise is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PiecewiseError", "said"]


class PiecewiseError(Exception):
    """Base of every error that piecewise raises on purpose."""

    def having(self, **fields: Any) -> Self:
        """The error, with fields that its class declares set; to be raised."""
        for name, value in fields.items():
            if not hasattr(type(self), name):
                raise AttributeError(f"{type(self).__name__} has no field {name!r}")
            setattr(self, name, value)
        return self


def said(error: Exception, pattern: str) -> str:
    """What a message names, by the first group of ``pattern``; "" where it names none."""
    found = re.search(pattern, str(error))
    return found[1] if found else ""
