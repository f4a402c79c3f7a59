"""CUDA graphs: the driver of every torch device, and inputs staged by one kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from piecewise_core.capture.torch_driver import TorchGraphDriver
from piecewise_cuda.ops import UNSAFE

__all__ = ["CudaGraphDriver"]

logger = logging.getLogger(__name__)


class CudaGraphDriver(TorchGraphDriver):
    """The GraphDriver of the current CUDA device. ``debug``: makes ``dump`` possible."""

    def __init__(self, *, debug: bool = False) -> None:
        super().__init__(torch.cuda, unsafe_ops=UNSAFE, debug=debug)

    def stager(
        self, buffers: Sequence[torch.Tensor]
    ) -> Callable[[Sequence[torch.Tensor]], None] | None:
        """One launch for all inputs; None without Triton or for buffers elsewhere."""
        if not buffers or any(b.device != buffers[0].device for b in buffers):
            return None
        if buffers[0].device.type != "cuda":
            return None
        try:
            from piecewise_cuda.staging import Stager
        except ImportError as exc:
            logger.info("inputs are copied one by one: %s", exc)
            return None
        return Stager(buffers).copier()
