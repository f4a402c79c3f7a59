"""Locks of a store in a directory: one process at a time makes what a key stands for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from piecewise_core.ownership import make_private

__all__ = ["file_lock"]

logger = logging.getLogger(__name__)


@contextmanager
def file_lock(folder: Path, key: str, timeout: float) -> Iterator[bool]:
    """Hold ``folder/KEY.lock``, waiting ``timeout`` seconds for it; the value: whether it does.

    Without the lock, or file systems that have any, two may make the same.
    """
    lock = _locked(folder, key, timeout)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def _locked(folder: Path, key: str, timeout: float) -> FileLock | None:
    lock = FileLock(folder / f"{key}.lock", timeout=timeout)
    try:
        make_private(folder)
        lock.acquire()
    except (OSError, NotImplementedError, Timeout) as error:
        logger.warning("compiling without the lock of entry %s: %s", key[:12], error)
        return None
    return lock
