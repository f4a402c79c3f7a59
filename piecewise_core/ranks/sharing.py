"""Symmetric memory for one model: on all of its ranks, or on none."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from piecewise_core.graph.sums import Shares, largest, sum_over
from piecewise_core.plugins import error_text
from piecewise_core.protocols import SymmetricMemory

__all__ = ["Sharing"]

Meet = Callable[[str, Any], Mapping[int, Any]]


class Sharing:
    """``why``: why the model goes without, or "". ``slot``: by which operators name its memory.

    ``wanted()``: whether other ranks may serve the model with this one; it goes without else.
    """

    def __init__(self, by: SymmetricMemory) -> None:
        self._shares = Shares(by)
        self.slot = self._shares.slot
        self.wanted: Callable[[], bool] = lambda: False
        self.why = ""
        self._asked = False

    def begin(self, graph: torch.fx.GraphModule, groups: Iterable[Any], meet: Meet) -> None:
        """Once, before the first region that wants it serves: get memory, on all ranks or none.

        ``graph``: the region's, which ranks have alike. ``meet``: as of a Meeting. Raises
        RanksDisagree.
        """
        sums = graph.graph.find_nodes(op="call_function", target=sum_over)
        if self._asked or not any(node.args[-1] == self.slot for node in sums):
            return
        self._asked = True
        named = {group.group_name: _ranks_of(group) for group in groups}
        made, self.why = self._made({name: len(named[name]) for name in sorted(named)})
        said = meet("symmetric memory", {"host": socket.gethostname(), "why": self.why})
        self.why = _first(said, "why") or _apart(said, named.values())
        if self.why:
            return
        failed = self._connected(made)
        self.why = _first(meet("symmetric memory of all", {"why": failed}), "why")
        if not self.why:
            self._shares.of = made

    def _made(self, sizes: Mapping[str, int]) -> tuple[dict[str, torch.Tensor], str]:
        try:
            return {n: self._shares.by.allocate(largest(s)) for n, s in sizes.items()}, ""
        except Exception as error:  # whatever a driver says: it is the way without that serves
            return {}, error_text(error)

    def _connected(self, made: Mapping[str, torch.Tensor]) -> str:
        """In the order of names, or groups that have ranks in common might wait in a circle."""
        try:
            for name, memory in made.items():
                self._shares.by.connect(memory, name)
        except Exception as error:
            return error_text(error)
        return ""


def _ranks_of(group: Any) -> list[int]:
    import torch.distributed as dist

    return sorted(dist.get_process_group_ranks(group))


def _first(said: Mapping[int, Any], name: str) -> str:
    """What the first rank gives for a reason."""
    return next((f"rank {r}: {s[name]}" for r, s in said.items() if s[name]), "")


def _apart(said: Mapping[int, Any], groups: Iterable[Sequence[int]]) -> str:
    """Why a group cannot share memory: its ranks, here or elsewhere, are on several machines."""
    hosts = {said[rank]["host"] for ranks in groups for rank in ranks if rank in said}
    return f"ranks on several machines: {', '.join(sorted(hosts))}" if len(hosts) > 1 else ""
