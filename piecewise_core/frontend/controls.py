"""Controls of a model: they may make events, which are handed out behind them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["telling"]

Control = TypeVar("Control", bound=Callable[..., Any])


def telling(tell: Callable[[Any], object]) -> Callable[[Control], Control]:
    """Have ``tell(self)`` called behind a method, also where it raises."""

    def around(control: Control) -> Control:
        @functools.wraps(control)
        def told(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return control(self, *args, **kwargs)
            finally:
                tell(self)

        return told  # type: ignore[return-value]

    return around
