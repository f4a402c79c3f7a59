"""What a fresh interpreter finds out about one plugin; run by ``fresh``.

    python -m piecewise_core.testing.conformance.child TASK ENTRY PLATFORM FILE

writes what TASK found to FILE as JSON. ENTRY is "distribution|name|version|module".
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from piecewise_core.plugins import PluginEntry
from piecewise_core.plugins.announce import announced
from piecewise_core.plugins.compilers import brought_compiler
from piecewise_core.plugins.registry import load
from piecewise_core.plugins.traces import watched_import
from piecewise_core.protocols import PlatformInfo

__all__ = ["main"]

HEAVY = ("torch", "numpy", "triton", "jax", "tensorflow", "cupy", "sympy")


def main(task: str, entry: str, platform: str, file: str) -> None:
    """Do one task and write what it found."""
    # What core logs of a plugin is not what the plugin prints.
    logging.getLogger("piecewise_core").addHandler(logging.NullHandler())
    origin = PluginEntry(*entry.split("|"))
    tasks: dict[str, Callable[[PluginEntry, str], Any]] = {
        "announce": _announce,
        "probe": _probe,
        "create": _create,
        "hash_factors": _hash_factors,
        "fingerprint": _fingerprint,
        "load": _load,
    }
    Path(file).write_text(json.dumps(tasks[task](origin, platform)), encoding="utf-8")


def _info(entry: PluginEntry, platform: str) -> PlatformInfo:
    return next(info for info in announced(load(entry)) if info.name == platform)


def _announce(entry: PluginEntry, platform: str) -> dict[str, Any]:
    """What importing the plugin and calling its hook brings in, changes and prints."""
    log = _Log()
    logging.getLogger("piecewise_core").addHandler(log)
    with watched_import(entry):
        _info(entry, platform)
    return {
        "heavy": [name for name in HEAVY if name in sys.modules],
        "changed": log.about("changed"),
        "printed": log.about("printed"),
    }


class _Log(logging.Handler):
    """Keeps what core says of an import, by the verb in it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def about(self, verb: str) -> list[str]:
        """What was changed, or printed: the second value of each such record."""
        found = [r.args for r in self.records if f" {verb} " in r.msg]
        return sorted({str(args[1]) for args in found if isinstance(args, tuple)})


def _probe(entry: PluginEntry, platform: str) -> dict[str, Any]:
    """Whether the probe initialises a device: by torch's word, and by a fork that uses it."""
    info = _info(entry, platform)
    probe = info.probe()
    held = [kind for kind in {info.device_type, "cuda"} - {"cpu"} if _initialised(kind)]
    forked = _use_in_fork(info) if probe.available and hasattr(os, "fork") else None
    return {"initialised": sorted(held), "forked": forked}


def _initialised(device_type: str) -> bool:
    module: Any = getattr(sys.modules.get("torch"), device_type, None)
    asks = getattr(module, "is_initialized", None)
    return bool(asks()) if callable(asks) else False


def _use_in_fork(info: PlatformInfo) -> str:
    """What using the device in a forked process gives: "fine", or the error's text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "fine"
        try:
            _use(info)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return said or f"the process ended with status {status}"


def _use(info: PlatformInfo) -> None:
    platform = info.create()
    import torch

    torch.ones(2).to(info.device_type).add(1)
    platform.device.synchronize()


def _create(entry: PluginEntry, platform: str) -> dict[str, Any]:
    info = _info(entry, platform)
    try:
        info.create()
    except BaseException as error:
        ends = not isinstance(error, Exception)
        return {"raised": type(error).__name__, "text": str(error), "ends": ends}
    return {"raised": None, "text": "", "ends": False}


def _hash_factors(entry: PluginEntry, platform: str) -> dict[str, str]:
    return dict(_info(entry, platform).create().compiler.hash_factors())


def _fingerprint(entry: PluginEntry, platform: str) -> dict[str, str]:
    device: Any = _info(entry, platform).create().device
    return {str(name): str(value) for name, value in device.fingerprint().items()}


def _load(entry: PluginEntry, name: str) -> Any:
    """The first row of what the code in the file CONFORMANCE_HANDLE computes of six rows."""
    infos = [info for info in announced(load(entry)) if info.name == name]
    compiler: Any = infos[0].create().compiler if infos else brought_compiler(name)[0]
    import torch

    x = torch.sin(torch.arange(48, dtype=torch.float32) * 0.7).reshape(6, 8)
    with torch.inference_mode():
        code = compiler.load(Path(os.environ["CONFORMANCE_HANDLE"]).read_bytes())
        found = code.run(x.to(infos[0].device_type if infos else "cpu"))[0][0]
    return found.cpu().tolist()


if __name__ == "__main__":
    main(*sys.argv[1:])
