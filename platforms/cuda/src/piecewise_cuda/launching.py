"""Launch a compiled Triton kernel with as little Python around it as its version permits.

Private parts of Triton, read in 3.6.0: ``CompiledKernel.run`` is a ``CudaLauncher``, whose call
finds scratch memory and forwards to ``launch``, a C function of ``(grid x, y, z, stream, function,
cooperative, pdl, global scratch, profile scratch, packed metadata, launch metadata, enter hook,
exit hook, *arguments)``. Hooks of profilers that want to see every launch are not called.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from piecewise_core.building_blocks import current_device, raw_stream

__all__ = ["bare_launch"]

_KNOWN = ("launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size")


def bare_launch(
    compiled: Any,
    grid: tuple[int, int, int],
    index: int,
    current: Callable[[], int] | None = None,
    switch: Callable[[int], AbstractContextManager[Any]] = torch.cuda.device,
) -> Callable[..., None]:
    """``launch(*arguments)`` on the current stream of device ``index``.

    That device is made current where it is not, as torch's own operators and replays do.
    ``current``: tells the caller's, by default torch does. Make it while ``index`` is current.
    """
    device_of = current or current_device()
    begin, front, back = _parts(compiled, grid)
    stream_of = raw_stream()

    # One frame: it runs at every replay.
    def launch(*arguments: Any) -> None:
        if device_of() != index:
            with switch(index):
                launch(*arguments)
        elif front is None:
            begin(*arguments)
        else:
            begin(*front, stream_of(index), *back, *arguments)

    return launch


def _parts(
    compiled: Any, grid: tuple[int, int, int]
) -> tuple[Callable[..., None], tuple[Any, ...] | None, tuple[Any, ...]]:
    """Triton's C function and what it takes before and behind the stream; or its own way."""
    forward: Callable[..., None] = compiled[grid]
    launcher: Any = getattr(compiled, "run", None)
    own: Callable[..., None] | None = getattr(launcher, "launch", None)
    if own is None or not all(hasattr(launcher, name) for name in _KNOWN):
        return forward, None, ()
    if launcher.global_scratch_size or launcher.profile_scratch_size:
        return forward, None, ()
    flags = (launcher.launch_cooperative_grid, launcher.launch_pdl, None, None)
    back = (compiled.function, *flags, compiled.packed_metadata, None, None, None)
    return own, grid, back
