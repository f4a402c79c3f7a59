"""A case of a benchmark in a process of its own: what it prints, its figures, what became of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["rounded", "supervise", "tell"]

MARK = "RESULT "
"""Begins a line by which a case's process tells its figures; the last such line counts."""


def tell(figures: dict[str, Any]) -> None:
    """In a case's process: its figures so far, which count if it says nothing later."""
    print(MARK + json.dumps(rounded(figures)), flush=True)


def rounded(value: Any) -> Any:
    """Figures with five digits, however deep they lie."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def supervise(name: str, command: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run a case's process, print what it prints, and return its figures.

    ``command``: what follows the interpreter. ``seconds``: after which it is killed. A process that
    fails has ``crashed`` and ``stderr`` beside what it told until then.
    """
    result: dict[str, Any] | None = None
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-u", *command], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        alarm = threading.Timer(seconds, process.kill)
        alarm.start()
        try:
            for line in process.stdout or ():
                if line.startswith(MARK):
                    result = json.loads(line.removeprefix(MARK))
                else:
                    print(line, end="", flush=True)
            code = process.wait()
        finally:
            alarm.cancel()
            process.kill()
        errors.seek(0)
        last = errors.read().splitlines()[-15:]
    if code == 0 and result is not None:
        return result
    late = time.monotonic() - begun >= seconds
    reason = f"killed after {seconds:g} s" if late else _reason(code)
    print(f"{name} {reason}; the last lines of its errors:", *last, sep="\n  ", flush=True)
    return {**(result or {}), "crashed": reason, "stderr": last}


def _reason(code: int) -> str:
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:
        return f"died of signal {-code}"
