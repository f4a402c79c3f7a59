"""Ask a fresh interpreter about a plugin: what this one has imported already tells nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piecewise_core import interpreter
from piecewise_core.testing.conformance.subject import Subject
from piecewise_core.testing.conformance.verdicts import Violation

__all__ = ["Answer", "ask_fresh"]

_CHILD = "piecewise_core.testing.conformance.child"
_SECONDS = 300


@dataclass(frozen=True)
class Answer:
    """``found``: what the task found. ``printed``: what the process wrote to its terminal."""

    found: Any
    printed: str


def ask_fresh(
    subject: Subject, task: str, environ: Mapping[str, str] = os.environ, **more: str
) -> Answer:
    """Run ``task`` of ``child`` in a new interpreter with the same path.

    ``environ``: its environment. ``more``: variables to set there besides. Raises Violation if the
    process dies.
    """
    entry = subject.origin
    origin = "|".join((entry.distribution, entry.name, entry.version, entry.module))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "found.json")
        done = subprocess.run(
            interpreter.command(_CHILD, task, origin, subject.name, str(file)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            env={**environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more},
        )
        if done.returncode or not file.exists():
            raise Violation(
                f"ran `{task}` of {subject.name!r} ({entry}) in a fresh interpreter",
                "it ends by itself with status 0",
                f"status {done.returncode}: {done.stdout[-1500:]}",
                "make the plugin work in a process that imports nothing but it",
            )
        return Answer(json.loads(file.read_text(encoding="utf-8")), done.stdout)
