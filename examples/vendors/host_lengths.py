"""Captured attention that is told each call's lengths on the host, as graphs of Ascend must be.

On the simulated device; no hardware is needed: ``python examples/vendors/host_lengths.py``. There
an attention kernel takes the lengths of its sequences as numbers on the host, and a graph keeps
those of its capture. So the caller says them with ``host_values``, and the driver writes them into
the graph before it is replayed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import piecewise_core as pw
from piecewise_core.building_blocks import host_values
from piecewise_core.protocols import ReplayCall
from piecewise_core.testing import SimulatedPlatform
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.recording import Operation

ROWS = 8


@torch.library.custom_op("host_lengths::attend", mutates_args=())
def attend(x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Each row minus the mean of its sequence; rows behind the last sequence are 0."""
    out, start = torch.zeros_like(x), 0
    for length in lengths:
        rows = x[start : start + length]
        out[start : start + length] = rows - rows.mean(0)
        start += length
    return out


attend.register_fake(lambda x, lengths: torch.empty_like(x))


class LengthsDriver(SimulatedDriver):
    """A driver whose graphs hold the lengths that attention was captured with."""

    def before_replay(self, graph: Any, call: ReplayCall) -> None:
        """Write the call's lengths over those of the capture; a device has an update for it."""
        lengths, steps = call.host.get("lengths"), graph.recording.steps
        for place, step in enumerate(steps):
            if lengths and isinstance(step, Operation) and "attend" in str(step.function):
                steps[place] = replace(step, args=(step.args[0], list(lengths)))


class LengthsPlatform(SimulatedPlatform):
    """The simulated device with that driver."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs = LengthsDriver(self.graphs._device)


def model(x: torch.Tensor) -> torch.Tensor:
    """Attention between two products; captured with one sequence of all rows."""
    return attend(x * 2, [ROWS]) + 1


def main() -> None:
    """Replay one graph for calls of different lengths."""
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", 1, ROWS)}}, capture_sizes=(ROWS,))
    fast = pw.compile(model, config, LengthsPlatform())
    with torch.inference_mode():
        fast.warmup(torch.randn(ROWS, 4), progress=False)
        for lengths in ([ROWS], [3, 5], [1, 1, 6], [ROWS]):
            x = torch.randn(ROWS, 4)
            with host_values(lengths=lengths):
                torch.testing.assert_close(fast(x), attend(x * 2, lengths) + 1)
            print(lengths, "as eager")
    print(fast.stats().calls["replayed"], "replays of", fast.stats().captures, "graph")


if __name__ == "__main__":
    main()
