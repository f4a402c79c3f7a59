"""Say on standard error how far a warm-up is: a bar on a terminal, else lines now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["told"]

Tell = Callable[[str, int, int], None]
"""Told what is done now, and how much of all is done."""

_EVERY = 3.0
"""Seconds between lines; a line waits for the compilation under way."""


@contextmanager
def told(wanted: bool) -> Iterator[Tell]:
    """What to tell; ``wanted``: whether anything is said."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    if not wanted:
        yield lambda what, done, total: None
    elif console.is_terminal:
        yield from _bar(console)
    else:
        yield _Lines()


class _Lines:
    """A line every few seconds: for logs. Nothing for what is over before."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= _EVERY:
            self._last = now
            line = f"warm-up: {done} of {total}, {what}, {now - self._begun:.0f} s"
            print(line, file=sys.stderr, flush=True)


def _bar(console: Console) -> Iterator[Tell]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("warm-up"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("tracing", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total
        )
