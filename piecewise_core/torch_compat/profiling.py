"""Names in what torch's profiler records; NVTX ranges too, inside of ``emit_nvtx``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch.profiler import record_function

__all__ = ["named_runs"]

F = TypeVar("F", bound=Callable[..., Any])


def named_runs(run: F, name: str) -> F:
    """``run``, each time under ``name``."""

    @functools.wraps(run, assigned=(), updated=())
    def ranged(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return run(*args, **kwargs)

    return ranged  # type: ignore[return-value]
