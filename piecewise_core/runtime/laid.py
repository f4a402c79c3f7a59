"""Brings what an operator or a piece returned to the layout that it promised.

What follows a cut was traced, and may be compiled, for the strides promised. A fake kernel may be
wrong about them, and so may a vendor's compiler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from piecewise_core.errors import OpContractBroken
from piecewise_core.torch_compat import pytree

__all__ = ["Laid", "Promise"]

logger = logging.getLogger(__name__)

Promise = Callable[..., Sequence[tuple[torch.dtype, Sequence[int], Sequence[int]]]]
"""``promise(*sizes)``: dtype, shape and strides of each tensor, in order."""


class Laid:
    """Checks and relays the results of one operation.

    ``what``: names it in messages; ``by``: who promises; ``advice``: what to do about it. ``own``:
    per tensor, whether a copy of it would do: one of what shares memory would lose writes.
    ``exact``: whether strides of dims of one element count too, as the program was told of them.
    ``count``: called for each result that is copied. ``several``: whether a result is a sequence of
    tensors always. ``reported``: what was reported so far. ``drifts``: whether any was copied.
    """

    def __init__(
        self,
        what: str,
        by: str,
        advice: str,
        promise: Promise,
        own: Sequence[bool],
        count: Callable[[], None],
        *,
        exact: bool = False,
        several: bool = False,
        reported: set[str] | None = None,
    ) -> None:
        self._what = what
        self._by = by
        self._advice = advice
        self._promise = promise
        self._own = own
        self._count = count
        self._exact = exact
        self._several = several
        self._reported = set() if reported is None else reported
        self.drifts = False

    def __call__(self, result: Any, *sizes: int) -> Any:
        """``result`` with every tensor in the layout promised; the same object where all are.

        Raises OpContractBroken where dtype or shape differ, or a copy would lose values.
        """
        promised = self._promise(*sizes)
        if _is_as(result, promised, self._several):
            return result
        if self._several and not isinstance(result, (tuple, list)):
            self._refuse("tensors in a tuple or list", f"a {type(result).__name__}")
        leaves, spec = pytree.tree_flatten(result)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        if len(places) != len(promised):
            self._refuse(f"{len(promised)} tensors", str(len(places)))
        moved = False
        for place, own, (dtype, shape, stride) in zip(places, self._own, promised, strict=True):
            leaf = leaves[place]
            if leaf.dtype is not dtype or tuple(leaf.shape) != tuple(shape):
                self._refuse(f"{dtype} {tuple(shape)}", f"{leaf.dtype} {tuple(leaf.shape)}")
            if _lies(leaf, stride, self._exact):
                continue
            if not own:
                self._refuse(
                    f"strides {tuple(stride)}", f"{leaf.stride()} where a copy would not do"
                )
            self._tell(leaf, stride)
            leaves[place], moved = _relaid(leaf, stride), True
        return pytree.tree_unflatten(leaves, spec) if moved else result

    def at(self, sizes: Sequence[int]) -> Callable[[Any], Any]:
        """The same for one choice of sizes."""
        return lambda result: self(result, *sizes)

    def _tell(self, leaf: torch.Tensor, stride: Sequence[int]) -> None:
        self._count()
        self.drifts = True
        if self._what not in self._reported:
            self._reported.add(self._what)
            logger.warning(
                "%s returns a tensor of strides %s where %s are promised; it is copied to that "
                "layout at every call: %s",
                self._what,
                leaf.stride(),
                tuple(stride),
                self._advice,
            )

    def _refuse(self, promised: str, got: str) -> NoReturn:
        raise OpContractBroken(
            f"{self._what} returned {got} where {self._by} promises {promised}; {self._advice}"
        ).having(op=self._what)


def _is_as(result: Any, promised: Sequence[Any], several: bool) -> bool:
    """Whether ``result`` is what is promised, strides of single elements included, seen at once."""
    found = result if type(result) in (tuple, list) else () if several else (result,)
    if len(found) != len(promised):
        return False
    for leaf, (dtype, shape, stride) in zip(found, promised, strict=True):
        if type(leaf) is not torch.Tensor or leaf.dtype is not dtype or leaf.shape != shape:
            return False
        if leaf.stride() != stride:
            return False
    return True


def _lies(tensor: torch.Tensor, stride: Sequence[int], exact: bool) -> bool:
    """Whether the strides that matter are ``stride``: those of dims of more than one element."""
    if not tensor.numel() or exact:
        return not tensor.numel() or tensor.stride() == tuple(stride)
    pairs = zip(tensor.shape, tensor.stride(), stride, strict=True)
    return all(size <= 1 or now == wanted for size, now, wanted in pairs)


def _relaid(tensor: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """A copy of ``tensor`` with strides ``stride``."""
    once = [
        d for d, (n, step) in enumerate(zip(tensor.shape, stride, strict=True)) if n and not step
    ]
    source = tensor
    for dim in once:  # all of its rows are one in memory
        source = source.narrow(dim, 0, 1)
    made = torch.empty_strided(source.shape, stride, dtype=tensor.dtype, device=tensor.device)
    return made.copy_(source).expand(tensor.shape)
