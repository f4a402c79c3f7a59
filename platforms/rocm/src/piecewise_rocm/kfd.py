"""What AMD's kernel driver tells through its files, without a HIP context."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Driver", "ask_driver"]

_TARGET = re.compile(r"^gfx_target_version (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Driver:
    """The kernel driver. ``chips``: names of the GPUs' architectures ("gfx942"), one per GPU.

    ``usable``: whether this user may open the driver's device node.
    """

    chips: tuple[str, ...]
    usable: bool


def ask_driver(root: Path = Path("/")) -> Driver:
    """Read the driver's topology. Raises OSError where there is no driver.

    ``root``: where ``dev`` and ``sys`` are.
    """
    node = root / "dev/kfd"
    node.stat()
    nodes = sorted((root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties"))
    chips = (_chip(path.read_text(encoding="utf-8")) for path in nodes)
    return Driver(tuple(chip for chip in chips if chip), os.access(node, os.R_OK | os.W_OK))


def _chip(properties: str) -> str | None:
    """The architecture's name; None for a node without a GPU, whose version is 0."""
    found = _TARGET.search(properties)
    version = int(found.group(1)) if found else 0
    if version == 0:
        return None
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor}{step:x}"
