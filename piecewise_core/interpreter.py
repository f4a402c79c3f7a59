"""Python processes of ours: they import nothing from wherever somebody happens to stand.

``python -m`` and ``python -c`` look in the current directory first, and an empty entry of
PYTHONPATH means it too. A file ``struct.py`` lying there would be run in place of Python's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

__all__ = ["careful_children", "command", "environment", "leave_directory", "variables"]

_SAFE = "PYTHONSAFEPATH"
_RUN = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; sys.argv[:] = sys.argv[1:]; "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` of ours as ``python -m`` would, but for the directory."""
    return [sys.executable, "-c", _RUN, module, *arguments]


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for such a process and for those that it starts.

    What was named on PYTHONPATH stays, what is empty goes.
    """
    found = {**environ, _SAFE: "1"}
    named = [entry for entry in found.pop("PYTHONPATH", "").split(os.pathsep) if entry]
    return {**found, "PYTHONPATH": os.pathsep.join(named)} if named else found


def careful_children() -> AbstractContextManager[None]:
    """Inside, Python processes that others start are like ours, from Python 3.11 on."""
    return variables({_SAFE: "1"})


@contextmanager
def variables(inside: Mapping[str, str]) -> Iterator[None]:
    """Inside, the environment has these variables; one thread at a time: it is the process's."""
    before = {name: os.environ.get(name) for name in inside}
    os.environ.update(inside)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def leave_directory() -> None:
    """Take away the entry that ``python -m`` put in front of this process's path."""
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
