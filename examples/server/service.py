"""The model of the example, how it is compiled, and how far it is."""

from __future__ import annotations

import logging
import os
import threading

import torch

import piecewise_core as pw

FEATURES, MOST = 64, 64

logger = logging.getLogger(__name__)


class Scorer(torch.nn.Module):
    """Scores rows of features, each by itself."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.up = torch.nn.Linear(FEATURES, width)
        self.norm = torch.nn.LayerNorm(width)
        self.down = torch.nn.Linear(width, 8)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.gelu(self.norm(self.up(rows)))).softmax(-1)


def config() -> pw.Config:
    """PIECEWISE_COMPILER and so on change it."""
    return pw.Config(
        dynamic={"rows": {0: pw.Dim("rows", max=MOST)}},
        capture_sizes=(1, 2, 4, 8, 16, 32, MOST),
        padding="capture_sizes",
        # Requests are answered in several threads: what one was given is not to change.
        clone_outputs=True,
    )


class Service:
    """A compiled model, warmed up in a thread so that the server answers probes meanwhile."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.model = Scorer().eval()
        self.fast = pw.compile(self.model, config())
        self.failed = ""
        self._sealed = threading.Event()
        self._thread: threading.Thread | None = None

    def warm_up(self) -> None:
        """Compile and capture all; then nothing is compiled for a call any more."""
        try:
            with torch.inference_mode():
                report = self.fast.warmup(torch.randn(3, FEATURES), progress=False)
            self.fast.seal("warn")
        except Exception as error:  # told by /readyz, and the server goes on
            logger.exception("the warm-up failed")
            self.failed = f"{type(error).__name__}: {error}"
        else:
            logger.info("%s", report)
            self._sealed.set()

    def start(self) -> None:
        """Warm up in a thread, unless that was done."""
        if not self.ready:
            self._thread = threading.Thread(target=self.warm_up, name="warm-up", daemon=True)
            self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether no call has to wait for a compiler."""
        return self._sealed.is_set()

    @torch.inference_mode()
    def score(self, rows: torch.Tensor) -> torch.Tensor:
        """The scores of some rows; any thread may ask."""
        return self.fast(rows)
