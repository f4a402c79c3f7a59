"""What kind of machine this is, as far as native code depends on it."""

from __future__ import annotations

import functools
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

__all__ = ["machine_factors"]

_ISA = re.compile(
    r"3dnow|abm|adx|aes|amx|avx|bmi|cldemote|clflushopt|clwb|clzero|cx16|f16c|fma|fsgsbase|gfni"
    r"|lahf_lm|lzcnt|mmx|movbe|movdir|pclmul|pku|popcnt|prefetchw|rdpid|rdrand|rdseed|serialize"
    r"|sha|sse|ssse|tbm|tsxldtrk|vaes|vpclmul|waitpkg|xop|xsave"
)
"""Flags of x86 processors that compilers make use of. The others tell of mitigations and the
like, which differ between machines that run the same code."""


@functools.cache
def machine_factors(cpuinfo: Path = Path("/proc/cpuinfo")) -> Mapping[str, str]:
    """Architecture, system, and the instruction sets of the processor."""
    return {
        "machine.architecture": platform.machine(),
        "machine.system": sys.platform,
        "machine.instructions": torch.backends.cpu.get_cpu_capability(),
        "machine.flags": _flags(cpuinfo),
    }


def _flags(cpuinfo: Path) -> str:
    """The first processor's: all are alike to a compiler."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    x86 = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    if x86 is not None:
        return " ".join(sorted(filter(_ISA.match, x86[1].split())))
    arm = re.search(r"^Features\s*: (.*)$", text, re.MULTILINE)
    return " ".join(sorted(arm[1].split())) if arm else platform.processor()
