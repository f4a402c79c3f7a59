"""Processes that stay from round to round; one that dies, or hangs, is replaced."""

from __future__ import annotations

import multiprocessing
import time
from datetime import timedelta

import torch.distributed as dist

from tests.kit.ranks.worker import work

__all__ = ["Pool"]


class Pool:
    """``world`` processes. ``limit``: seconds after which one that says nothing hangs."""

    def __init__(self, world, limit=30.0):
        self._context = multiprocessing.get_context("spawn")
        self._store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
        )
        self.world, self.limit, self._number = world, limit, 0
        self._members = [None] * world
        self._new = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process, pipe in filter(None, self._members):
            try:
                pipe.send(None)
                process.join(5)
            except OSError:
                pass
            if process.is_alive():
                process.kill()
                process.join()

    def _begin(self, rank):
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=work, args=(rank, self.world, self._store.port, there), daemon=True
        )
        process.start()
        there.close()
        self._new.append((process, here))
        return process, here

    def round(self, spec):
        """What each rank found: its data, "died", or "hung"."""
        self._members = [m or self._begin(rank) for rank, m in enumerate(self._members)]
        for _, pipe in self._new:
            pipe.recv()
        self._new.clear()
        self._number += 1
        for _, pipe in self._members:
            pipe.send((self._number, spec))
        deadline = time.monotonic() + self.limit
        found = []
        for rank, (process, pipe) in enumerate(self._members):
            try:
                heard = pipe.poll(max(deadline - time.monotonic(), 0.01))
                result = pipe.recv() if heard else {"outcome": "hung"}
            except (EOFError, ConnectionError):
                result = {"outcome": "died"}
            if result["outcome"] in ("hung", "died"):
                process.kill()
                process.join()
                self._members[rank] = None
            found.append(result)
        return found
