"""What importing a plugin does to the process besides importing it.

A plugin module is imported whenever it is in question, also when another platform is selected: it
must print nothing and change nothing. What it prints is kept from standard output, where
``piecewise doctor --json`` and users' programs write; what it changes is reported, with its author.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

__all__ = ["noted_changes", "watched_import"]

log = logging.getLogger(__name__)


@contextmanager
def watched_import(who: object) -> Iterator[None]:
    """Log, as a warning that names ``who``, what the block prints and what it changes.

    Nothing is put back: some device stacks find their libraries through what they set.
    """
    before, printed = _state(), io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        changed = _differences(before, _state())
        if changed:
            log.warning(
                "%s: importing its plugin module changed %s for the whole process; move that to "
                "create(), or undo it",
                who,
                ", ".join(changed),
            )
        if printed.getvalue():
            log.warning(
                "%s: importing its plugin module printed %r; use logging, in create() at the "
                "earliest",
                who,
                printed.getvalue()[:200],
            )


@contextmanager
def noted_changes() -> Iterator[list[str]]:
    """A list that holds, behind the block, what the block changed for the whole process."""
    before: dict[str, Any] = _state()
    changed: list[str] = []
    yield changed
    changed += _differences(before, _state())


def _state() -> dict[str, Any]:
    """What a module could change for everybody, by the name that a person knows it by."""
    return {name: read() for name, read in _READERS.items()} | _torch_state()


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    changed = []
    for name, was in before.items():
        now = after[name]
        if was == now:
            continue
        if name == "os.environ":
            keys = sorted(k for k in {*was, *now} if was.get(k) != now.get(k))
            changed.append(f"os.environ ({', '.join(keys)})")
        else:
            changed.append(name)
    return changed


def _handlers() -> list[Any]:
    root = logging.getLogger()
    return [root.level, *map(id, root.handlers)]


def _where() -> str | None:
    """The working directory; None where somebody has removed it."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _signals() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


_READERS: Mapping[str, Callable[[], Any]] = {
    "os.environ": lambda: dict(os.environ),
    "the working directory": _where,
    "sys.path": lambda: list(sys.path),
    "sys.stdout": lambda: id(sys.stdout),
    "sys.stderr": lambda: id(sys.stderr),
    "sys.excepthook": lambda: sys.excepthook,
    "the warnings filters": lambda: list(warnings.filters),
    "the root logger": _handlers,
    "signal handlers": _signals,
    "gc": lambda: (gc.isenabled(), gc.get_threshold()),
    "the state of random": random.getstate,
    "threads": lambda: sorted(t.name for t in threading.enumerate()),
}


def _torch_state() -> dict[str, Any]:
    """Torch's settings, where torch is loaded; a plugin that loads it changes nothing else."""
    torch: Any = sys.modules.get("torch")
    names = (
        *("get_default_dtype", "get_num_threads", "is_grad_enabled", "get_default_device"),
        *("get_float32_matmul_precision", "are_deterministic_algorithms_enabled"),
    )
    readers = {n: getattr(torch, n, None) for n in names}
    return {f"torch.{n}()": r() if callable(r) else None for n, r in readers.items()}
