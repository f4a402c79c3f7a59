"""Who serves one model together: every rank that its groups connect, and where they meet."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from piecewise_core.errors import RanksDisagree
from piecewise_core.ranks.meeting import Meeting, Silence, within
from piecewise_core.torch_compat.collectives import default_store

__all__ = ["gather"]

_PAUSE = 0.005


def gather(groups: Iterable[Any], timeout: float) -> Meeting:
    """The meeting of all ranks that ``groups`` connect, of each's groups in turn.

    Who is in a group numbers the models that it serves with it, so that several do not mix.
    Raises RanksDisagree for one that does not come.
    """
    import torch.distributed as dist

    me = dist.get_rank()
    named = [(g.group_name, sorted(dist.get_process_group_ranks(g))) for g in groups]

    def met(alive: Callable[[], None]) -> Meeting:
        store = default_store()
        mine = [(_prefix(store, me, name, ranks), ranks) for name, ranks in named]
        text = json.dumps(mine)
        for prefix, _ in mine:
            store.set(f"{prefix}/joins/{me}", text)
        ranks, prefixes = _connected(store, me, mine, timeout, alive)
        return Meeting(store, f"{min(prefixes)}/rounds", sorted(ranks), me, timeout)

    found: Meeting = within(timeout, met, "its first collective")
    return found


def _prefix(store: Any, me: int, name: str, ranks: Sequence[int]) -> str:
    """Of the keys of this process's next model of a group."""
    digest = hashlib.sha256(f"{name} {ranks}".encode()).hexdigest()[:16]
    return f"piecewise/{digest}/{store.add(f'piecewise/models/{digest}/{me}', 1)}"


def _connected(
    store: Any,
    me: int,
    mine: Sequence[tuple[str, Sequence[int]]],
    timeout: float,
    alive: Callable[[], None],
) -> tuple[set[int], set[str]]:
    """All ranks that groups connect, and the prefixes of these groups."""
    silent, known, prefixes = Silence(store, timeout), {me}, {prefix for prefix, _ in mine}
    todo = list(mine)
    while todo:
        prefix, ranks = todo.pop()
        for rank in ranks:
            key = f"{prefix}/joins/{rank}"
            if rank in known:
                continue
            while not store.check([key]):
                alive()
                if silent([rank]):
                    raise RanksDisagree(
                        f"rank {rank} did not come to the first collective of a model within "
                        f"{timeout:g} s: it is dead or slow (Config.ranks_timeout), or its model "
                        "has no collective there; set Config.ranks alike on all",
                        rank=rank,
                        difference="did not come to the first collective of the model",
                    )
                time.sleep(_PAUSE)
            known.add(rank)
            found = [(p, r) for p, r in json.loads(store.get(key)) if p not in prefixes]
            prefixes |= {p for p, _ in found}
            todo += found
    return known, prefixes
