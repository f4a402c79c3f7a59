"""Put all inputs of a forward where graphs read them, in one launch.

Eight ``copy_`` calls cost the host forty microseconds; here the host gathers addresses and sizes
and launches once, around Triton's argument handling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from piecewise_cuda.kernel import BLOCK, stage_kernel
from piecewise_cuda.launching import bare_launch
from piecewise_cuda.triton_files import brought, keep

__all__ = ["Stager"]

# Arguments to compile for: neither 1 nor a multiple of 16, which Triton makes variants for, and
# too large for 32 bits.
_TYPICAL = (1 << 40) + 3


class Stager:
    """Copies one call's inputs into ``buffers`` and fills what is left of each with zeros.

    ``buffers``: dense tensors of one device, alive and unmoved as long as the stager; of any
    dtypes and as many as one likes. ``stager(tensors)`` takes one tensor per buffer, of its dtype
    and memory order and no longer than it. Runs on the current stream of the buffers' device.
    """

    def __init__(self, buffers: Sequence[torch.Tensor]) -> None:
        self._buffers = tuple(buffers)
        sizes = [b.numel() * b.element_size() for b in buffers]
        self._count = 1 << max(len(sizes) - 1, 0).bit_length()
        self._spare = (0,) * (self._count - len(sizes))
        ends = list(accumulate((-(-size // BLOCK) for size in sizes), initial=0))
        self._programs = ends.pop()
        rows = (
            (*ends, *(self._programs for _ in self._spare)),
            (*(b.data_ptr() for b in buffers), *self._spare),
            (*sizes, *self._spare),
        )
        device = buffers[0].device if buffers else torch.device("cpu")
        self._table = torch.tensor(rows, dtype=torch.int64, device=device)
        self._items = tuple(b.element_size() for b in buffers)
        self._launch, self._handle = self._launcher()

    def copier(self) -> Callable[[Sequence[torch.Tensor]], None]:
        """The stager as a function of as few frames as there can be, for calls that count them."""
        # Through ``stager``: the kernel knows table and buffers by address, so they must live.
        stager, spare, count = self, self._spare, self._count
        launch, table = self._launch, self._handle

        def copy(tensors: Sequence[torch.Tensor]) -> None:
            sources = [t.data_ptr() for t in tensors]
            given = [t.numel() * item for t, item in zip(tensors, stager._items, strict=True)]
            launch(table, (*sources, *spare), (*given, *spare), count, BLOCK)

        return copy

    def __call__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copy; returns without waiting. Raises ValueError when a tensor fits no buffer."""
        self.copier()(tensors)

    def _launcher(self) -> tuple[Callable[..., None], Any]:
        """How to launch, and what it calls the table.

        Triton's own way, where it interprets, and the tensor; else the compiled kernel itself and
        an address.
        """
        grid, table, count = (self._programs, 1, 1), self._table, self._count
        if self._programs == 0:
            return lambda *arguments: None, None
        kernel: Any = stage_kernel
        if not hasattr(kernel, "warmup") or table.device.type == "cpu":
            return kernel[grid], table
        typical = (_TYPICAL,) * count
        with torch.cuda.device(table.device), brought():
            compiled = kernel.warmup(table, typical, typical, count, BLOCK, grid=grid)
            launch = bare_launch(compiled, grid, table.device.index)
        keep(compiled)
        return launch, table.data_ptr()
