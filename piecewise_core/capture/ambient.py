"""What was in force around a splitting op when it was captured, and is again at every replay.

Replays run outside of the model's own ``with`` blocks: what such a block sets for torch as a
whole, operators inside of it must still see.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from piecewise_core.torch_compat.switches import any_autocast

__all__ = ["Ambient"]

Function = Callable[..., Any]

_ATTENTION: tuple[tuple[SDPBackend, Callable[[], bool]], ...] = (
    (SDPBackend.FLASH_ATTENTION, torch.backends.cuda.flash_sdp_enabled),
    (SDPBackend.EFFICIENT_ATTENTION, torch.backends.cuda.mem_efficient_sdp_enabled),
    (SDPBackend.MATH, torch.backends.cuda.math_sdp_enabled),
    (SDPBackend.CUDNN_ATTENTION, torch.backends.cuda.cudnn_sdp_enabled),
)


class Ambient:
    """The state outside of a model; ``inside(fn)`` keeps what is different now around ``fn``.

    Looked at: autocast, which calls are never made in, and the kernels that attention may use.
    ``device_type``: the platform's; autocast of the CPU counts as well.
    """

    def __init__(self, device_type: str) -> None:
        self._devices = tuple(dict.fromkeys((device_type, "cpu")))
        self._attention = _allowed()

    def inside(self) -> Callable[[Function], Function] | None:
        """Puts around a function what it finds now, for when it is called later; None: nothing."""
        contexts = [*self._autocast(), *self._kernels()]
        return functools.partial(_within, contexts) if contexts else None

    def _autocast(self) -> list[Callable[[], AbstractContextManager[Any]]]:
        if not any_autocast():
            return []
        return [
            functools.partial(
                torch.autocast,
                d,
                torch.get_autocast_dtype(d),
                True,
                torch.is_autocast_cache_enabled(),
            )
            for d in self._devices
            if torch.is_autocast_enabled(d)
        ]

    def _kernels(self) -> list[Callable[[], AbstractContextManager[Any]]]:
        now = _allowed()
        if now == self._attention:
            return []
        return [functools.partial(sdpa_kernel, list(now))]


def _allowed() -> tuple[SDPBackend, ...]:
    return tuple([kernel for kernel, enabled in _ATTENTION if enabled()])


def _within(contexts: list[Callable[[], AbstractContextManager[Any]]], fn: Function) -> Function:
    def run(*args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for make in contexts:
                stack.enter_context(make())
            return fn(*args, **kwargs)

    return run
