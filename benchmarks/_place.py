"""Where the static-graph cases run: a GPU, or the simulated device, on which nothing is timed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

import piecewise_core as pw

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """The device of a run.

    ``simulated``: on CPU tensors with tiny models, to try the script out; peers need a GPU.
    ``quick``: fewer rounds. ``peers``: whether torch.compile takes part.
    """

    simulated: bool
    quick: bool = False
    peers: bool = True

    @property
    def device(self) -> str:
        """What to create tensors on."""
        return "cpu" if self.simulated else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """What models compute in."""
        return torch.float32 if self.simulated else torch.bfloat16

    @property
    def compiler(self) -> str | None:
        """For Config: None is the platform's own."""
        return "eager" if self.simulated else None

    @property
    def has_peers(self) -> bool:
        """Whether torch.compile takes part here."""
        return self.peers and not self.simulated

    @property
    def rounds(self) -> int:
        """How often contenders take turns."""
        return 1 if self.simulated else 3 if self.quick else 7

    @property
    def repeats(self) -> int:
        """Calls of one contender per turn."""
        return 2 if self.simulated else 50 if self.quick else 200

    @cached_property
    def platform(self) -> Any:
        """The Platform instance in use, the same for every model of this process."""
        if self.simulated:
            from piecewise_core.testing import SimulatedPlatform

            return SimulatedPlatform()
        from piecewise_core.plugins import select

        return select(None, "cuda").platform

    def synchronize(self) -> None:
        """Wait for the device."""
        if not self.simulated:
            torch.cuda.synchronize()

    def memory(self) -> int:
        """Bytes of live tensors on the device; 0 where nobody counts."""
        return 0 if self.simulated else torch.cuda.memory_allocated()

    def compile(self, model: Any, **config: Any) -> Any:
        """``pw.compile`` for this place."""
        settings = pw.Config(compiler=self.compiler, **config)
        return pw.compile(model, settings, platform=self.platform)

    def record(self, model: Any, **config: Any) -> Any:
        """``pw.record`` for this place."""
        return pw.record(model, pw.Config(**config), platform=self.platform)

    def new(self, build: Callable[[], torch.nn.Module]) -> Any:
        """A model with random weights, made on the device, for inference."""
        torch.manual_seed(0)
        with torch.device(self.device):
            return build().to(self.dtype).eval().requires_grad_(False)

    def describe(self) -> dict[str, str]:
        """Device and versions."""
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        for name in ("triton", "transformers"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        device = "simulated" if self.simulated else torch.cuda.get_device_name()
        return {"device": device, **versions}
