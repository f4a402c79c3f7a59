"""The tensors that a model holds, by where it holds them: what is saved in place of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from piecewise_core.errors import BundleMismatch
from piecewise_core.graph.identity import tensor_facts
from piecewise_core.graph.savable import NotSavable
from piecewise_core.runtime.module_paths import InnerPlace, Place, places_of
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["find_held", "write_held"]


def write_held(
    tensors: Sequence[torch.Tensor], roots: Sequence[torch.nn.Module]
) -> list[dict[str, Any]]:
    """Where each of ``tensors`` is in the module trees, and its kind. Raises NotSavable."""
    index = places_of(roots)
    number = {id(root): i for i, root in enumerate(roots)}
    first: dict[int, int] = {}
    found = []
    for place, tensor in enumerate(tensors):
        known = index.get(id(tensor))
        if not known:
            raise NotSavable(
                f"a tensor of {tensor.dtype}, shape {tuple(tensor.shape)}, that the model reaches "
                "otherwise than as a parameter, buffer or attribute of a module: make it a buffer"
            )
        if isinstance(known[0], InnerPlace):
            raise NotSavable(_wrapped(known[0]))
        memory = first.setdefault(memory_key(tensor), place)
        places = [[number[id(p.root)], list(p.path), p.holder, p.key] for p in known]
        found.append({"places": places, "kind": tensor_facts(tensor), "memory": memory})
    return found


def find_held(
    saved: Sequence[Mapping[str, Any]], roots: Sequence[torch.nn.Module]
) -> list[torch.Tensor]:
    """The tensors now in those places. Raises BundleMismatch naming the first that differs."""
    tensors: list[torch.Tensor] = []
    first: dict[int, int] = {}
    for entry in saved:
        places = [Place(roots[r], tuple(path), h, key) for r, path, h, key in entry["places"]]
        tensor = _at(places[0])
        name = _name(places[0])
        facts = tensor_facts(tensor)
        if facts != entry["kind"]:
            raise BundleMismatch(
                f"the model's {name} is {_text(facts)}, and the bundle was made with "
                f"{_text(entry['kind'])}"
            )
        for other in places[1:]:
            if _at(other) is not tensor:
                raise BundleMismatch(
                    f"the model's {name} and {_name(other)} are two tensors, and were one"
                )
        memory = first.setdefault(memory_key(tensor), len(tensors))
        if memory != entry["memory"]:
            raise BundleMismatch(
                f"the model's {name} shares memory with other tensors than it did; tie the "
                "weights as they were before loading"
            )
        tensors.append(tensor)
    return tensors


def _wrapped(place: InnerPlace) -> str:
    return (
        f'"{_name(place.outer)}", a {type(place.wrapper()).__name__} that wraps other tensors: '
        "what its class does with them is part of the trace, and nothing on disk would say whether "
        "it still does that"
    )


def _at(place: Place) -> torch.Tensor:
    try:
        found = place.dictionary()[place.key]
    except (KeyError, AttributeError):
        found = None
    if not isinstance(found, torch.Tensor):
        raise BundleMismatch(f"the model has no tensor {_name(place)}, which the bundle reads")
    return found


def _name(place: Place) -> str:
    return ".".join([*place.path, place.key])


def _text(kind: Mapping[str, Any]) -> str:
    more = [str(kind[n]) for n in ("class", "layout", "offset") if n in kind]
    return (
        f"{kind['dtype']} on {kind['device']}, shape {tuple(kind['shape'])}, "
        f"strides {tuple(kind.get('stride', ()))}, {', '.join((*more, *kind['is']))}"
    )
