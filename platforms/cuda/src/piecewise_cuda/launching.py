"""Launch a compiled Triton kernel with as little Python around it as its version permits.

Private parts of Triton, read in 3.6.0: ``CompiledKernel.run`` is a ``CudaLauncher``, whose call
finds scratch memory and forwards to ``launch``, a C function of ``(grid x, y, z, stream, function,
cooperative, pdl, global scratch, profile scratch, packed metadata, launch metadata, enter hook,
exit hook, *arguments)``. Hooks of profilers that want to see every launch are not called.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

__all__ = ["bare_launch", "on_device"]

_KNOWN = ("launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size")


def bare_launch(compiled: Any, grid: tuple[int, int, int], device: int) -> Callable[..., None]:
    """``launch(*arguments)`` on the current stream of ``device``, which must be current."""
    forward: Callable[..., None] = compiled[grid]
    launcher: Any = getattr(compiled, "run", None)
    own = getattr(launcher, "launch", None)
    if own is None or not all(hasattr(launcher, name) for name in _KNOWN):
        return forward
    if launcher.global_scratch_size or launcher.profile_scratch_size:
        return forward
    stream_of = torch._C._cuda_getCurrentRawStream
    begin = partial(own, *grid)
    function, packed = compiled.function, compiled.packed_metadata
    fixed = (launcher.launch_cooperative_grid, launcher.launch_pdl, None, None, packed)

    def launch(*arguments: Any) -> None:
        begin(stream_of(device), function, *fixed, None, None, None, *arguments)

    return launch


def on_device(
    launch: Callable[..., None],
    index: int,
    current: Callable[[], int],
    switch: Callable[[int], AbstractContextManager[Any]] = torch.cuda.device,
) -> Callable[..., None]:
    """``launch`` with device ``index`` current, whichever the caller's is.

    Torch's own operators and replays see to that themselves. ``current``: tells the caller's.
    """

    def run(*arguments: Any) -> None:
        if current() == index:
            launch(*arguments)
            return
        with switch(index):
            launch(*arguments)

    return run
