"""Remember, per machine, that a check succeeded; a failure is never remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from piecewise_core.building_blocks import make_private

__all__ = ["Memo"]

log = logging.getLogger(__name__)


class Memo:
    """One remembered success. ``factors``: all that it depends on; a change of any forgets it.

    Every file operation may fail (read-only home, no home): then nothing is remembered, and the
    check runs again in the next process. Files are written whole, by rename.
    """

    def __init__(self, directory: Path, factors: Mapping[str, str]) -> None:
        text = json.dumps(dict(factors), sort_keys=True, indent=1)
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        self._text = text
        self._path = directory / f"{digest}.json"

    def known(self) -> bool:
        """Whether this very success is on record."""
        try:
            return self._path.read_text(encoding="utf-8") == self._text
        except (OSError, UnicodeDecodeError):
            return False

    def record(self) -> None:
        """Put the success on record."""
        try:
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.stem)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self._text)
            os.replace(name, self._path)
        except OSError as exc:
            log.debug("not remembering the C++ compiler check: %s", exc)

    @contextmanager
    def single_flight(self, timeout: float) -> Iterator[None]:
        """Let one process check while others wait, ``timeout`` seconds at most, for its record."""
        lock = None
        try:
            make_private(self._path.parent)
            lock = FileLock(str(self._path) + ".lock")
            lock.acquire(timeout=timeout)
        except (OSError, NotImplementedError, Timeout) as exc:
            log.debug("checking the C++ compiler without a lock: %s", exc)
            lock = None
        try:
            yield
        finally:
            if lock is not None:
                lock.release()
