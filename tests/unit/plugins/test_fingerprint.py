"""What runtimes say that compiled code depends on."""

from __future__ import annotations

from types import SimpleNamespace

from piecewise_core.capture.torch_runtime import TorchRuntime


class Module:
    """A torch device module with devices of one kind, and one of another."""

    def __init__(self, current: int) -> None:
        self._current = current

    def current_device(self) -> int:
        return self._current

    def current_stream(self) -> None: ...

    Stream = stream = synchronize = current_stream

    def get_device_properties(self, index: int) -> SimpleNamespace:
        name = "Acme 9" if index < 2 else "Acme 8"
        return SimpleNamespace(name=name, major=9, minor=0, multi_processor_count=7, uuid=index)


def test_equal_devices_have_one_fingerprint_whatever_their_index():
    first, second, other = (TorchRuntime(Module(i)).fingerprint() for i in range(3))
    assert first == second
    assert first == {"name": "Acme 9", "major": "9", "minor": "0", "multi_processor_count": "7"}
    assert other != first


def test_a_platform_adds_the_versions_that_its_kernels_depend_on():
    found = TorchRuntime(Module(0), lambda: {"driver": "570.1"}).fingerprint()
    assert found["driver"] == "570.1"
