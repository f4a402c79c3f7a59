"""Two results of one call compared: the same containers, and leaves that agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from piecewise_core.replay.agreement import difference

__all__ = ["apart", "kept", "parted"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def kept(value: Any, *, copy: bool = False) -> dict[str, Any]:
    """Every leaf of a result by its path; ``copy``: tensors as they are now."""
    found = dict(leaves(value, "output"))
    if copy:
        found = {p: v.clone() if isinstance(v, torch.Tensor) else v for p, v in found.items()}
    return found


def apart(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Where one result differs from another and how; None where they agree but for rounding.

    ``got``, ``wanted``: as of ``kept``. Of objects that are no containers only the type counts.
    """
    found = parted(got, wanted)
    return None if found is None else found[1]


def parted(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, str] | None:
    """As ``apart``, with the path of the leaf before it."""
    if got.keys() != wanted.keys():
        alone = sorted(got.keys() ^ wanted.keys())
        return alone[0], f"results of other forms: {', '.join(alone[:3])} is in one of them only"
    for path, leaf in wanted.items():
        found = _leaf(got[path], leaf)
        if found is not None:
            return path, f"{path}: {found}"
    return None


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every leaf of a result with its path; a container gives its type at its own path."""
    parts = _parts(value)
    if parts is None:
        yield path, value
        return
    yield f"{path} as {type(value).__name__}", None
    for name, part in parts:
        yield from leaves(part, f"{path}{name}")


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, dict):
        return [(f"[{k!r}]", v) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{i}]", v) for i, v in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{f.name}", getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    return None


def _leaf(got: Any, wanted: Any) -> str | None:
    if isinstance(wanted, (torch.Tensor, *_PLAIN)):
        found = difference([got], [wanted])
        return None if found is None else found.how
    return None if type(got) is type(wanted) else f"{type(got).__name__} in place of another type"
