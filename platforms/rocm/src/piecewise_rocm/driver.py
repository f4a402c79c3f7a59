"""HIP graphs: the driver of every torch device, after AMD's libraries have been set up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from piecewise_core.building_blocks import TorchGraphDriver
from piecewise_rocm.ops import ADVICE, UNSAFE

__all__ = ["RocmGraphDriver", "use_libraries"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class RocmGraphDriver(TorchGraphDriver):
    """The GraphDriver of the current HIP device; torch keeps HIP under the name ``torch.cuda``.

    ``module``: in place of ``torch.cuda``. ``debug``: makes ``dump`` possible.
    """

    def __init__(self, module: Any = torch.cuda, *, debug: bool = False) -> None:
        super().__init__(module, advice=ADVICE, unsafe_ops=UNSAFE, debug=debug)
        self._ready: set[int] = set()

    @contextmanager
    def capture_context(self) -> Iterator[None]:
        """Set hipBLASLt and MIOpen up for the current stream, the first time it captures.

        Both make handles per stream when first used, which a capture forbids.
        """
        stream = self._module.current_stream()
        # Streams come from a fixed set in torch, so a number stands for one for good.
        number = int(getattr(stream, "stream_id", id(stream)))
        if number not in self._ready:
            use_libraries(self._device_type)
            self._module.synchronize()
            self._ready.add(number)
        with super().capture_context():
            yield


def use_libraries(device_type: str) -> None:
    """Multiply and convolve something small in every dtype that models use."""
    with torch.inference_mode():
        for dtype in _DTYPES:
            ones = torch.ones(16, 16, dtype=dtype, device=device_type)
            torch.nn.functional.linear(ones, ones, ones[0])
            torch.bmm(ones[None], ones[None])
            image = ones[None, None]
            torch.nn.functional.conv2d(image, image[..., :3, :3])
