"""What came of one program in one pass: equal, refused, wrong, a bare exception, or not asked."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.utils._pytree as pytree

import piecewise_core as pw

__all__ = ["Outcome", "judge", "same"]


@dataclass(frozen=True)
class Outcome:
    """``kind``: equal, refused, wrong, bare or skipped. ``why``: in one line."""

    kind: str
    why: str = ""


class Wrong(Exception):
    """A result differs from what the program gives as written."""


def judge(run: Callable[[], None]) -> Outcome:
    """Run one pass; ``run`` raises Wrong where numbers differ."""
    try:
        run()
    except Wrong as wrong:
        return Outcome("wrong", str(wrong))
    except pw.errors.PiecewiseError as refused:
        return Outcome("refused", f"{type(refused).__name__}: {_line(refused)}")
    except Exception as error:
        inner = _refusal(error)
        if inner is not None:
            return Outcome("refused", f"{type(inner).__name__}: {_line(inner)}")
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename.rpartition('site-packages/')[2]}:{place.lineno}"
        return Outcome("bare", f"{type(error).__name__} at {where}: {_line(error)}")
    return Outcome("equal")


def _refusal(error: BaseException | None) -> pw.errors.PiecewiseError | None:
    """The error of ours that torch wrapped into one of its own."""
    while error is not None:
        error = error.__cause__ or getattr(error, "inner_exception", None)
        if isinstance(error, pw.errors.PiecewiseError):
            return error
    return None


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return " ".join(text.split())[:300]


def same(
    got: Any, want: Any, *, values: bool = True, bounds: dict[str, float] | None = None
) -> None:
    """Raise Wrong unless the results agree: structure, dtype, shape, and numbers.

    Whole numbers agree exactly, others within ``bounds`` or what torch.testing allows their
    dtype. NaN equals NaN. ``values``: False where the numbers are random.
    """
    ours, ours_tree = pytree.tree_flatten(_plain(got))
    theirs, theirs_tree = pytree.tree_flatten(_plain(want))
    if ours_tree != theirs_tree:
        raise Wrong(f"a result of structure {ours_tree} where eager's is {theirs_tree}")
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if not isinstance(b, torch.Tensor):
            if a != b and not (a != a and b != b):
                raise Wrong(f"result {place} is {a!r} where eager's is {b!r}"[:300])
            continue
        if (a.dtype, tuple(a.shape)) != (b.dtype, tuple(b.shape)):
            raise Wrong(
                f"result {place}: {a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}"
            )
        if not values:
            continue
        real = b.is_floating_point() or b.is_complex()
        try:
            torch.testing.assert_close(a, b, equal_nan=True, **(bounds or {} if real else {}))
        except AssertionError as differs:
            raise Wrong(f"result {place}: {_line(differs)}") from None


def _plain(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """``value`` with dataclasses and objects that hold something, a cache, as dicts by name.

    pytree does not open them, and two caches that hold the same are no equal objects. ``inside``:
    identities of the objects that it lies in.
    """
    if id(value) in inside:
        return "itself"
    inside = (*inside, id(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _plain(getattr(value, f.name, None), inside) for f in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {k: _plain(v, inside) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(v, inside) for v in value)
    if isinstance(value, (torch.Tensor, type, Enum)) or callable(value):
        return value
    held = getattr(value, "__dict__", None)
    if not held:
        return value
    return {"class": type(value).__name__, **{k: _plain(v, inside) for k, v in held.items()}}
