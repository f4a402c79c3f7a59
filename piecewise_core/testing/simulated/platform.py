"""A platform without hardware, for tests of everything that has to do with static graphs."""

from __future__ import annotations

from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.protocols import Capabilities, CompilerAdaptor, DeviceRuntime, GraphDriver
from piecewise_core.testing.simulated.device import Device
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.runtime import SimulatedRuntime

__all__ = ["SimulatedPlatform"]


class SimulatedPlatform:
    """A device on CPU tensors, strict where real ones are silent.

    A capture records operators with their memory and runs none of them for real; a replay runs
    them on that memory. Freed memory is poisoned: NaN, or whole numbers that index nothing, and
    true. What real devices keep quiet about shows up as poison: an input whose owner let go of
    it, an intermediate read after the replay, an output read before it.

    ``max_graphs``: graph handles; one more capture_begin fails. ``memory_bytes``: what all
    pools may hold; past it torch.OutOfMemoryError. ``fail_capture_at``: the n-th capture_end
    fails, from 1. ``weak_refs``, ``generators``: False for a driver without these methods; then
    replays draw the same random numbers again. ``drop_op``: "aten.add.Tensor", an operator that
    captures silently leave out, as a device that lies would. ``shares``: False for a driver whose
    graphs have executables of their own. ``forks``: False for one whose captures take in no other
    streams.

    Custom operators count as one kernel: their Python runs at every replay. What never passes
    torch's dispatcher is not seen: ``tolist`` and ``numpy``. Pieces that Inductor compiled are
    captured as written.
    """

    name = "simulated"
    device_type = "cpu"

    def __init__(
        self,
        *,
        max_graphs: int | None = None,
        memory_bytes: int | None = None,
        fail_capture_at: int | None = None,
        weak_refs: bool = True,
        generators: bool = True,
        drop_op: str | None = None,
        shares: bool = True,
        forks: bool = True,
    ) -> None:
        device = Device(memory_bytes)
        self.graphs: GraphDriver | None = SimulatedDriver(
            device,
            max_graphs=max_graphs,
            fail_capture_at=fail_capture_at,
            weak_refs=weak_refs,
            generators=generators,
            drop_op=drop_op,
            shares=shares,
            forks=forks,
        )
        self.device: DeviceRuntime = SimulatedRuntime(device)
        self.compiler: CompilerAdaptor = EagerCompiler()
        self.capabilities = Capabilities()
