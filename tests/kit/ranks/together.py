"""Ranks in threads of one process, over one store."""

from __future__ import annotations

import threading

import torch.distributed as dist

__all__ = ["at_once", "meetings"]


def meetings(count, timeout=0.5, store=None):
    from piecewise_core.ranks.meeting import Meeting

    store = store or dist.HashStore()
    return [Meeting(store, "model", range(count), me, timeout) for me in range(count)]


def at_once(*calls):
    """What each call gave or raised, each in a thread of its own."""
    found = [None] * len(calls)

    def run(place, call):
        try:
            found[place] = call()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found
