"""Where module trees keep their tensors, and which modules and modes a trace depends on."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from piecewise_core.graph.wrappers import (
    descriptions_differ,
    held_by,
    in_slots,
    is_wrapper,
    kind_of,
)

__all__ = [
    *("InnerPlace", "Place", "mode_readers", "outer_places", "places_of", "rewrapped", "tree_of"),
]


@dataclass(frozen=True)
class Place:
    """Where a module tree keeps a tensor: the path of submodules, the dict, and the key."""

    root: torch.nn.Module
    path: tuple[str, ...]
    holder: str
    key: str

    def owner(self) -> torch.nn.Module:
        """The module that holds the tensor now. Raises KeyError when the path is gone."""
        module = self.root
        for name in self.path:
            module = module._modules[name]  # type: ignore[assignment]
        return module

    def dictionary(self) -> dict[str, Any]:
        """The dict that holds the tensor now."""
        owner = self.owner()
        return vars(owner) if self.holder == "" else getattr(owner, self.holder)

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lies there now."""
        try:
            return self.dictionary()[self.key] is tensor
        except (KeyError, AttributeError):  # a module on the way is gone
            return False


@dataclass(frozen=True)
class InnerPlace(Place):
    """Where a tensor lies that another, at ``outer``, wraps: an attribute of that one."""

    outer: Place

    def dictionary(self) -> dict[str, Any]:
        """The dict of the tensor around it, as it is now; one made of its slots, in a slot."""
        around = self.wrapper()
        return vars(around) if self.key in vars(around) else {**in_slots(around)}

    def owner(self) -> torch.nn.Module:
        """The module that holds the outermost tensor now. Raises KeyError when that is gone."""
        return self.outer.owner()

    def wrapper(self) -> torch.Tensor:
        """The tensor around it now. Raises KeyError when it is gone."""
        found = self.outer.dictionary()[self.outer.key]
        if not isinstance(found, torch.Tensor):
            raise KeyError(self.outer.key)
        return found


def _inner(place: Place, wrapper: torch.Tensor) -> Iterator[tuple[torch.Tensor, Place]]:
    """The tensors that ``wrapper``, which lies at ``place``, holds, however deep."""
    for name, held in held_by(wrapper).items():
        if vars(wrapper).get(name) is not held and name not in in_slots(wrapper):
            continue
        path = (*place.path, place.key)
        inner = InnerPlace(place.root, path, "wrapper", name, place)
        yield held, inner
        if is_wrapper(held):
            yield from _inner(inner, held)


def places_of(roots: Sequence[torch.nn.Module]) -> dict[int, list[Place]]:
    """Every place of every tensor in the module trees, by the tensor's id.

    Those that other tensors wrap are among them.
    """
    found: dict[int, list[Place]] = {}
    seen: set[int] = set()

    def walk(root: torch.nn.Module, module: torch.nn.Module, path: tuple[str, ...]) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        for holder in ("_parameters", "_buffers", ""):
            place = Place(root, path, holder, "")
            held = vars(module) if holder == "" else getattr(module, holder)
            for key, value in held.items():
                if isinstance(value, torch.Tensor):
                    at = replace(place, key=key)
                    found.setdefault(id(value), []).append(at)
                    if is_wrapper(value):
                        for held, inner in _inner(at, value):
                            found.setdefault(id(held), []).append(inner)
        for name, child in module._modules.items():
            if child is not None:
                walk(root, child, (*path, name))

    for root in roots:
        walk(root, root, ())
    return found


def outer_places(places: Iterable[Sequence[Place]]) -> list[Place]:
    """Where the tensors lie that are around those at ``places``, each once."""
    found: dict[Place, None] = {}
    waiting = [place for known in places for place in known]
    while waiting:
        place = waiting.pop()
        if isinstance(place, InnerPlace) and place.outer not in found:
            found[place.outer] = None
            waiting.append(place.outer)
    return list(found)


def rewrapped(outer: Iterable[tuple[Place, Any]]) -> bool:
    """Whether a tensor around others, at one of these places, is of another kind than it was."""
    try:
        return any(descriptions_differ(kind_of(p.dictionary()[p.key]), was) for p, was in outer)
    except (KeyError, AttributeError):  # gone, or it wraps nothing
        return True


def tree_of(roots: Sequence[torch.nn.Module]) -> list[tuple[torch.nn.Module, bool]]:
    """Every module, once, with its mode."""
    return [*dict.fromkeys((m, m.training) for root in roots for m in root.modules())]


def mode_readers(roots: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
    """The roots, and every module whose code asks whether it is training."""
    modules = [m for root in roots for m in root.modules()]
    kinds = {kind for kind in set(map(type, modules)) if _reads_mode(kind)}
    return [m for m in modules if type(m) in kinds or m in roots]


def _reads_mode(kind: type[torch.nn.Module]) -> bool:
    """Whether a method of the class mentions ``training``, or hides its code."""
    classes = kind.__mro__[: kind.__mro__.index(torch.nn.Module)]
    methods = [inspect.unwrap(f) for c in classes for f in vars(c).values() if callable(f)]
    codes = [getattr(f, "__code__", None) for f in methods if not isinstance(f, type)]
    return any(code is None or "training" in code.co_names for code in codes)
