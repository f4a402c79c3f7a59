"""One worker process that compiles while the model serves.

In-process threads cannot do this: Inductor's settings do not reach them. The worker is a fresh
interpreter, so it never imports the user's ``__main__``.
"""

from __future__ import annotations

import itertools
import logging
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from piecewise_core.compile.messages import Answer, Request, read_message, write_message

__all__ = ["WorkerPool"]

logger = logging.getLogger(__name__)

_TIMEOUT = 900.0
"""Seconds after which a compilation counts as hung; the worker is then replaced."""


class WorkerPool:
    """Sends requests to one worker and calls back with its answers, on a thread of its own.

    ``submit`` never blocks. ``close`` ends the worker; it also ends with this object.
    """

    def __init__(self, timeout: float = _TIMEOUT) -> None:
        self._timeout = timeout
        self._serial = itertools.count()
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._jobs.put, None)

    def submit(self, make: Callable[[int], Request], done: Callable[[Answer], None]) -> None:
        """Compile what ``make(serial)`` describes; ``done(answer)`` comes on the pool's thread."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=_run, args=(self._jobs, self._timeout), name="piecewise-pool", daemon=True
            )
            self._thread.start()
        self._jobs.put((make, next(self._serial), done))

    def close(self) -> None:
        """End the worker after what it is doing."""
        self._jobs.put(None)


def _run(jobs: queue.SimpleQueue[Any], timeout: float) -> None:
    worker: subprocess.Popen[bytes] | None = None
    try:
        while (job := jobs.get()) is not None:
            make, serial, done = job
            if worker is None or worker.poll() is not None:
                worker = _start()
            answer = _ask(worker, make, serial, timeout)
            try:
                done(answer)
            except Exception:
                logger.exception("could not take in a compiled piece")
    finally:
        if worker is not None:
            worker.kill()
            worker.wait()


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "piecewise_core.compile.worker"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _ask(
    worker: subprocess.Popen[bytes], make: Callable[[int], Request], serial: int, timeout: float
) -> Answer:
    """One round trip; a worker that dies or hangs gives an answer with an error."""
    watchdog = threading.Timer(timeout, worker.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        write_message(worker.stdin, make(serial))  # type: ignore[arg-type]
        answer = read_message(worker.stdout)  # type: ignore[arg-type]
    except Exception as error:
        return Answer(serial, None, f"{type(error).__name__}: {error}", 0.0)
    finally:
        watchdog.cancel()
    if answer is None:
        return Answer(serial, None, f"the worker process ended (code {worker.wait()})", 0.0)
    found: Answer = answer
    return found
