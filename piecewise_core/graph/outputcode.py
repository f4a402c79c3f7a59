"""The code that makes a call's result of graph outputs, and sets what a forward keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

__all__ = ["OutputCode", "Stored"]


@dataclasses.dataclass(frozen=True)
class Stored:
    """Attribute ``name`` of ``module`` is set to graph output ``place``, which may be returned."""

    module: torch.nn.Module
    name: str
    place: int
    returned: bool


@dataclasses.dataclass(frozen=True)
class OutputCode:
    """``rebuild(outs, tensors, bound)`` makes the call's result.

    ``outs``: graph outputs. ``tensors``: flat inputs, only when ``uses_inputs``. ``bound``:
    parameters and held tensors. ``single``: the graph output's place when the result is just
    that, else None. ``used``: places of the graph outputs that a call needs. ``floats``: those
    that the result holds as Python floats. ``stores``: what attributes a call sets.
    """

    source: str
    rebuild: Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Any]
    uses_inputs: bool
    single: int | None
    used: tuple[int, ...]
    floats: tuple[int, ...]
    stores: tuple[Stored, ...] = ()

    @classmethod
    def of(cls, source: str, names: Mapping[str, Any], **rest: Any) -> OutputCode:
        """The code of ``source``, which defines ``rebuild`` over ``names``."""
        namespace = dict(names)
        exec(compile(source, "<piecewise outputs>", "exec"), namespace)
        return cls(source, namespace.pop("rebuild"), **rest)

    def serving(self, *, copies: bool = False) -> Callable[..., Any]:
        """``rebuild`` for calls, which sets attributes besides.

        ``copies``: outputs lie in memory that is used again; what is no result is copied.
        """
        if not self.stores:
            return self.rebuild

        def rebuild(outs: Sequence[Any], tensors: Sequence[Any], bound: Sequence[Any]) -> Any:
            own: dict[int, Any] = {}  # of attributes that are one tensor, one copy
            for each in self.stores:
                if each.place not in own:
                    value = outs[each.place]
                    own[each.place] = value.clone() if copies and not each.returned else value
                setattr(each.module, each.name, own[each.place])
            return self.rebuild(outs, tensors, bound)

        return rebuild

    def storing(self, found: Iterable[tuple[torch.nn.Module, str, int]]) -> OutputCode:
        """The same, setting attributes: each module, name, and place of a graph output."""
        stores = tuple(Stored(*each, each[-1] in self.used) for each in found)
        used = tuple(sorted({*self.used, *(each.place for each in stores)}))
        return dataclasses.replace(self, stores=stores, used=used)

    def follow(self, successors: Mapping[int, Any]) -> None:
        """From now on results hold other objects of the call: by the id of the one before."""
        names: dict[str, Any] = getattr(self.rebuild, "__globals__")  # noqa: B009
        names.update({n: successors[id(v)] for n, v in names.items() if id(v) in successors})
