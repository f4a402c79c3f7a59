"""What the NVIDIA driver tells without a CUDA context, after which a process could not fork."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Driver", "ask_driver"]

_LIBRARY = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Driver:
    """The driver and its devices. ``cuda``: the newest CUDA that it runs, if that is known."""

    version: str
    cuda: tuple[int, int] | None
    devices: tuple[str, ...]


def ask_driver(load: Callable[[str], Any] = ctypes.CDLL, root: Path = Path("/")) -> Driver:
    """Ask the management library, or read the driver's files where a container has no library.

    Raises OSError saying what is missing. ``load``: opens a shared library. ``root``: where
    ``dev`` and ``proc`` are.
    """
    try:
        library = load(_LIBRARY)
    except OSError:
        return _from_files(root)
    return _from_library(library)


def _from_files(root: Path) -> Driver:
    text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    devices = sorted(p.name for p in (root / "dev").glob("nvidia[0-9]*"))
    return Driver(version.group() if version else "unknown", None, tuple(devices))


def _from_library(library: Any) -> Driver:
    _call(library, "nvmlInit_v2")
    try:
        count, cuda = ctypes.c_uint(), ctypes.c_int()
        _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        _call(library, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(cuda))
        names = tuple(_name(library, index) for index in range(count.value))
        version = _text(library, "nvmlSystemGetDriverVersion")
    finally:
        library.nvmlShutdown()
    return Driver(version, (cuda.value // 1000, cuda.value % 1000 // 10), names)


def _name(library: Any, index: int) -> str:
    device = ctypes.c_void_p()
    _call(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    return _text(library, "nvmlDeviceGetName", device)


def _text(library: Any, function: str, *args: Any) -> str:
    buffer = ctypes.create_string_buffer(128)
    _call(library, function, *args, buffer, ctypes.c_uint(len(buffer)))
    return buffer.value.decode(errors="replace")


def _call(library: Any, function: str, *args: Any) -> None:
    status = getattr(library, function)(*args)
    if status != 0:
        raise OSError(f"{function} of {_LIBRARY} gives error {status}")
