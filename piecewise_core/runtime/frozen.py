"""Code with weights built in, run only while the weights are, byte for byte, those built in.

Versions of tensors would not do: writes through ``.data``, NumPy or shared memory change none.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from piecewise_core.protocols import CompiledGraph

__all__ = ["Copies", "Frozen", "Run", "can_be_frozen"]

logger = logging.getLogger(__name__)

_CHANGES = 8
"""After as many other values of its weights a piece goes on reading them."""

_LARGE = 1 << 22
"""Bytes from which comparing takes longer than starting a thread that helps."""

Run = Callable[..., Any]


def can_be_frozen(tensor: torch.Tensor) -> bool:
    """Whether its bytes can be compared: it lies densely in the host's memory."""
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return False
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


class Copies:
    """What the weights at ``places`` of a piece's arguments held, in memory of its own.

    One for all sizes of the piece.
    """

    def __init__(self, places: Sequence[int]) -> None:
        self.places = tuple(places)
        self.values: dict[int, torch.Tensor] = {}
        self.taken = 0
        self._kinds: list[tuple[int, Any, Any]] = []
        self._spans: list[tuple[int, int, int]] = []
        self._helped = False

    def take(self, args: Sequence[Any]) -> None:
        """Copy them as they are now; what was copied before is left to whoever holds it."""
        with torch.inference_mode(False), torch.no_grad():
            self.values = {place: args[place].detach().clone() for place in self.places}
        copies = sorted(self.values.items(), key=lambda item: -item[1].nbytes)
        self._kinds = [(place, copy.shape, copy.stride()) for place, copy in copies]
        self._spans = [(place, copy.data_ptr(), copy.nbytes) for place, copy in copies]
        self._helped = sum(copy.nbytes for _, copy in copies) > _LARGE
        self.taken += 1

    def are(self, args: Sequence[Any]) -> bool:
        """Whether ``args`` hold the same bytes."""
        for place, shape, stride in self._kinds:
            value = args[place]
            if value.shape != shape or value.stride() != stride:
                return False
        pairs = [(args[place].data_ptr(), copy, nbytes) for place, copy, nbytes in self._spans]
        if not self._helped or torch.get_num_threads() == 1:
            return bool(pairs) and _same(pairs)
        # One processor does not use up the memory's bandwidth. A thread of this call alone is
        # none that a forked process could wait for.
        found: list[bool] = []
        other = threading.Thread(target=lambda: found.append(_same(pairs[1::2])), daemon=True)
        other.start()
        same = _same(pairs[::2])
        other.join()
        return same and found == [True]


def _same(pairs: Sequence[tuple[int, int, int]]) -> bool:
    """Whether each two spans of memory hold the same bytes: (address, address, length)."""
    differs = _memcmp()
    return not any(differs(*pair) for pair in pairs)


class Frozen:
    """The code of one piece for one box: with weights built in where they are those, else without.

    ``code``: what the compiler made; it has ``freeze``. ``by``: its name. ``copies``: of the
    weights among the piece's arguments. ``laid``: brings results to the layout promised.
    ``dims``: sizes among the arguments, which come first. ``sealed``: whether nothing may be
    compiled any more.
    """

    def __init__(
        self,
        code: CompiledGraph,
        by: str,
        copies: Copies,
        laid: Callable[..., Any],
        dims: int,
        sealed: Callable[[], bool],
    ) -> None:
        self._plain: Run = code.run
        self._freeze: Callable[[Mapping[int, torch.Tensor]], Run] | None = code.freeze
        self._by = by
        self._copies = copies
        self._laid = laid
        self._dims = dims
        self._sealed = sealed
        self._run: Run | None = None
        self._of = 0

    def begin(self, *args: Any) -> Any:
        """A target's first call: by the code that reads its weights; then they are built in."""
        result = self._plain(*args)
        if not self._copies.are(args):
            self._copies.take(args)
        self._build()
        return result

    def __call__(self, *args: Any) -> Any:
        """Run the piece."""
        copies = self._copies
        if not copies.are(args):
            if copies.taken <= _CHANGES:
                copies.take(args)
            self._run = None
            return self._plain(*args)
        if self._of != copies.taken:
            self._run = None
            if not self._sealed():
                self._build()
        run = self._run
        if run is None:
            return self._plain(*args)
        return self._laid(run(*args), *args[: self._dims])

    def _build(self) -> None:
        """Code for the weights copied last, of which there is one try."""
        self._of = self._copies.taken
        if self._freeze is None:
            return
        try:
            self._run = self._freeze(dict(self._copies.values))
        except Exception as error:
            self._freeze = self._run = None
            logger.warning(
                "compiler %r cannot build weights into its code (%s: %s); they are read at every "
                "call",
                self._by,
                type(error).__name__,
                error,
            )


@functools.cache
def _memcmp() -> Callable[[int, int, int], int]:
    """The C library's: other threads run meanwhile, and nothing is allocated."""
    library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
        ("memcmp", library)
    )
