"""Processes that stay from round to round; one that dies, or hangs, is replaced."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from tests.kit.ranks.worker import work

__all__ = ["Pool"]


class Waits:
    """Seconds in which processes were ready to run and had no CPU, one after the other."""

    def __init__(self, pids):
        self._before = {pid: self._of(pid) for pid in pids}
        self._longest = dict.fromkeys(pids, 0.0)

    def __call__(self):
        for pid, before in self._before.items():
            self._longest[pid] = max(self._longest[pid], self._of(pid) - before)
        return sum(self._longest.values())

    def _of(self, pid):
        """Of the thread that waited most."""
        found = [0]
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, IndexError):  # it ended; no such statistics
                found.append(int(path.read_text().split()[1]))
        return max(found) / 1e9


class Pool:
    """``world`` processes. ``limit``: seconds after which one that says nothing hangs.

    Seconds in which any of them waited for a CPU are added: on a loaded machine nobody hangs then.
    """

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
        begun, waits = time.monotonic(), Waits([process.pid for process, _ in self._members])
        found = []
        for rank, (process, pipe) in enumerate(self._members):
            try:
                while not (heard := pipe.poll(0.2)):
                    if time.monotonic() - begun - waits() > self.limit:
                        break
                result = pipe.recv() if heard else {"outcome": "hung"}
            except (EOFError, ConnectionError):
                result = {"outcome": "died"}
            result["starved"] = waits()
            if result["outcome"] in ("hung", "died"):
                process.kill()
                process.join()
                self._members[rank] = None
            found.append(result)
        return found
