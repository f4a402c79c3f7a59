"""Where module trees keep their tensors, and which modules and modes a trace depends on."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = ["Place", "mode_readers", "places_of", "tree_of"]


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


def places_of(roots: Sequence[torch.nn.Module]) -> dict[int, list[Place]]:
    """Every place of every tensor in the module trees, by the tensor's id."""
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
                    found.setdefault(id(value), []).append(replace(place, key=key))
        for name, child in module._modules.items():
            if child is not None:
                walk(root, child, (*path, name))

    for root in roots:
        walk(root, root, ())
    return found


def tree_of(roots: Sequence[torch.nn.Module]) -> list[tuple[torch.nn.Module, bool]]:
    """Every module, with its mode."""
    return [(m, m.training) for root in roots for m in root.modules()]


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
