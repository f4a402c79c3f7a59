from __future__ import annotations

import re
import subprocess
import sys

import pytest

from piecewise_cuda import plugin
from piecewise_cuda.nvml import Driver, ask_driver

DRIVER = Driver("580.1", (13, 0), ("NVIDIA H200", "NVIDIA H200"))
BUILD = {"version": "2.11.0+cu130", "cuda": "13.0"}


def test_a_cuda_build_on_a_new_enough_driver_is_available_with_its_facts():
    probe = plugin.judge(BUILD, DRIVER, {})
    assert probe.available
    assert probe.reason == "2 x NVIDIA H200"
    assert probe.facts["driver"] == "580.1"
    assert probe.facts["torch"] == "2.11.0+cu130"


@pytest.mark.parametrize(
    ("build", "driver", "environ", "why"),
    [
        (None, DRIVER, {}, "not installed"),
        ({"version": "2.13.0+cpu"}, DRIVER, {}, r"2\.13\.0\+cpu.*built without CUDA"),
        ({"version": "2.13.0", "hip": "7.0"}, DRIVER, {}, "built without CUDA"),
        (BUILD, Driver("550.1", (12, 4), ("A100",)), {}, "built for CUDA 13.0 .* runs 12.4"),
        (BUILD, Driver("580.1", (13, 0), ()), {}, "finds no device"),
        (BUILD, DRIVER, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES hides"),
        (BUILD, DRIVER, {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES hides"),
    ],
)
def test_what_does_not_fit_is_said_with_what_to_do(build, driver, environ, why):
    probe = plugin.judge(build, driver, environ)
    assert not probe.available
    assert re.search(why, probe.reason), probe.reason


def test_a_driver_may_be_newer_than_torch_and_may_not_tell_its_cuda():
    assert plugin.judge(BUILD, Driver("600", (14, 1), ("H200",)), {}).available
    assert plugin.judge(BUILD, Driver("600", None, ("H200",)), {}).available
    assert plugin.judge(BUILD, DRIVER, {"CUDA_VISIBLE_DEVICES": "1"}).available


def test_announcing_and_probing_import_no_torch_and_never_raise():
    script = (
        "import sys; from piecewise_cuda import plugin\n"
        "[info] = plugin.piecewise_platforms(); probe = info.probe()\n"
        "assert info.device_type == 'cuda' and probe.reason\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class Library:
    """The functions of the management library that are asked; ``broken`` gives an error."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.down = broken, 0

    def __getattr__(self, function: str):
        def call(*args):
            if function == self.broken:
                return 9
            return getattr(self, f"_{function}")(*args)

        return call

    def _nvmlInit_v2(self):
        return 0

    def _nvmlShutdown(self):
        self.down += 1
        return 0

    def _nvmlDeviceGetCount_v2(self, count):
        count._obj.value = 2
        return 0

    def _nvmlSystemGetCudaDriverVersion_v2(self, version):
        version._obj.value = 12040
        return 0

    def _nvmlDeviceGetHandleByIndex_v2(self, index, device):
        device._obj.value = 100 + index.value
        return 0

    def _nvmlDeviceGetName(self, device, buffer, size):
        buffer.value = f"GPU {device.value}".encode()
        return 0

    def _nvmlSystemGetDriverVersion(self, buffer, size):
        buffer.value = b"550.54"
        return 0


def test_the_library_is_asked_and_closed():
    library = Library()
    assert ask_driver(lambda name: library) == Driver("550.54", (12, 4), ("GPU 100", "GPU 101"))
    assert library.down == 1


@pytest.mark.parametrize("function", ["nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlDeviceGetName"])
def test_a_library_that_fails_is_named_and_closed(function):
    library = Library(broken=function)
    with pytest.raises(OSError, match=function):
        ask_driver(lambda name: library)
    assert library.down == (function != "nvmlInit_v2")


def missing(name):
    raise OSError(f"{name}: cannot open shared object file")


def test_without_the_library_the_driver_s_files_are_read(tmp_path):
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue\nGCC version: 12.3.0\n"
    (tmp_path / "proc/driver/nvidia/version").write_text(text)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert ask_driver(missing, tmp_path) == Driver("580.159.04", None, ("nvidia0", "nvidia1"))


def test_without_a_driver_the_probe_says_so(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        ask_driver(missing, tmp_path)
    monkeypatch.setattr(plugin, "ask_driver", lambda: ask_driver(missing, tmp_path))
    probe = plugin.probe()
    assert not probe.available
    assert "no NVIDIA driver: there is no" in probe.reason
