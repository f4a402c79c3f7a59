"""Requests that come at one time become one call: a thread that batches by rows."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch


class Stopped(RuntimeError):
    """The batcher takes no requests any more."""


@dataclass
class _Request:
    rows: torch.Tensor
    answer: Future[torch.Tensor] = field(default_factory=Future)


class Batcher:
    """Calls ``run`` on the rows of several requests at once, in one thread.

    ``run``: from ``(rows, features)`` to a tensor with as many rows, each by itself; it may reuse
    its memory, so answers are copied out. ``most``: rows of a call. ``wait``: seconds that the
    first request of a call waits for others.
    """

    def __init__(
        self, run: Callable[[torch.Tensor], torch.Tensor], most: int, wait: float = 0.002
    ) -> None:
        self._run, self._most, self._wait = run, most, wait
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, rows: torch.Tensor) -> Future[torch.Tensor]:
        """The answer to come. Raises ValueError for too many rows, and Stopped."""
        if not 1 <= len(rows) <= self._most:
            raise ValueError(f"{len(rows)} rows; send 1 to {self._most}")
        request = _Request(rows)
        with self._lock:  # nothing is queued behind the end
            if self._stopped:
                raise Stopped("the server is stopping")
            self._queue.put(request)
        return request.answer

    def stop(self) -> None:
        """Take no more, answer what was taken, and return."""
        with self._lock:
            if not self._stopped:
                self._queue.put(None)
            self._stopped = True
        self._thread.join()

    @torch.inference_mode()
    def _serve(self) -> None:
        left: _Request | None = None
        ended = False
        while not ended:
            first = left or self._queue.get()
            if first is None:
                return
            batch, left, ended = self._gather(first)
            self._answer(batch)
            if ended and left is not None:
                self._answer([left])

    def _gather(self, first: _Request) -> tuple[list[_Request], _Request | None, bool]:
        """What goes into one call with ``first``, what does not fit, and whether that is all."""
        batch, rows, ends = [first], len(first.rows), time.monotonic() + self._wait
        while rows < self._most:
            try:
                found = self._queue.get(timeout=max(ends - time.monotonic(), 0))
            except queue.Empty:
                break
            if found is None:
                return batch, None, True
            if rows + len(found.rows) > self._most:
                return batch, found, False
            batch.append(found)
            rows += len(found.rows)
        return batch, None, False

    def _answer(self, batch: list[_Request]) -> None:
        batch = [each for each in batch if each.answer.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            result = self._run(torch.cat([each.rows for each in batch])).clone()
        except Exception as error:
            for each in batch:
                each.answer.set_exception(error)
            return
        parts = result.split([len(each.rows) for each in batch])
        for each, part in zip(batch, parts, strict=True):
            each.answer.set_result(part)
