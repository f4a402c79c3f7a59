"""One graph of the simulated device, and what launches it: its own executable, or a shared one."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import torch

from piecewise_core.testing.simulated.device import Device, DeviceFault
from piecewise_core.testing.simulated.pool import Pool
from piecewise_core.testing.simulated.recorder import Capture
from piecewise_core.testing.simulated.recording import Operation, Recording

__all__ = ["Executable", "Family", "SimulatedGraph"]


class Executable:
    """Launches the recording that it holds, whoever asked for another one.

    Generators advance by what was drawn in the recording that it was made of, as torch's do: one
    of another draws the same numbers again.
    """

    def __init__(self, recording: Recording) -> None:
        self._made_of = self.holds = recording

    def update(self, recording: Recording) -> bool:
        """Hold ``recording`` instead; False, and nothing changed, if its operators are others."""
        if _operators(recording) != _operators(self._made_of):
            return False
        self.holds = recording
        return True

    def launch(self, generators: list[torch.Generator]) -> None:
        """Run what it holds."""
        before = [] if self.holds is self._made_of else [(g, g.get_state()) for g in generators]
        self.holds.run()
        for generator, state in before:
            generator.set_state(state)


def _operators(recording: Recording) -> tuple[Any, ...]:
    return tuple(step.function for step in recording.steps if isinstance(step, Operation))


Family = WeakValueDictionary[tuple[Any, ...], Executable]
"""The executables of the graphs that were made like one another, by operators."""


class SimulatedGraph:
    """One graph: empty, then capturing, then ready to be replayed, then empty again.

    ``family``: with which it shares executables; None for one of its own.
    """

    def __init__(self, device: Device, family: Family | None = None) -> None:
        self.generators: list[torch.Generator] = []
        self.capture: Capture | None = None
        self.recording: Recording | None = None
        self.executable: Executable | None = None
        self.pool: Pool | None = None
        self.family = family
        self._device = device

    def captured(self, recording: Recording) -> None:
        """It is ready."""
        self.recording = recording
        if self.family is not None:
            made = Executable(recording)
            self.executable = self.family.setdefault(_operators(recording), made)

    def reset(self) -> None:
        """It is empty."""
        self.recording = self.executable = None

    def replay(self) -> None:
        """Run what was captured."""
        self._device.forbid_in_capture("a replay", "Capture one plan at a time.")
        if self.recording is None:
            raise DeviceFault("replay of a graph that holds nothing", "Capture the graph first.")
        if self.executable is None:
            self.recording.run()
            return
        if self.executable.holds is not self.recording:
            self.executable.update(self.recording)
        self.executable.launch(self.generators)
