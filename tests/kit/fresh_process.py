"""Programs in new processes, for which one process has imported torch: importing it takes seconds.

That process has begun with ``import torch._dynamo`` and has what torch itself imports when it first
traces. It imports nothing of ours, runs nothing and forks for each program. One that is to find
torch not yet imported, or whose variables say what torch does when it is imported, needs an
interpreter of its own.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["FreshProcesses"]

_FILE = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""

_AT_ONCE = """
import os, sys, traceback
_, program, *each = sys.argv
started = []
for argument in each:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.argv = ["program", argument]
            exec(program, vars(sys.modules["__main__"]))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    started.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in started]))
"""


class FreshProcesses:
    """Runs programs, one at a time. The process that they are forked from starts with the first,
    and as if it were started now: not with what the test that comes first has changed.
    """

    def __init__(self) -> None:
        self._environ, self._cwd = dict(os.environ), os.getcwd()
        self._parent: subprocess.Popen[bytes] | None = None

    def run(
        self,
        program: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``program`` until it ends. ``env``: its variables, by default this process's."""
        environ = dict(os.environ if env is None else env)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "program.py"
            path.write_text(program)
            command = [str(path), *arguments]
            if sys.platform != "linux":  # elsewhere torch's threads may not survive a fork
                return subprocess.run(
                    [sys.executable, *command],
                    env=environ,
                    capture_output=True,
                    text=True,
                    timeout=timeout,
                )
            code = self._forked(command, Path(folder), environ, timeout)
            out, err = (Path(folder, name).read_text() for name in ("out", "err"))
            return subprocess.CompletedProcess(command, code, out, err)

    def run_file(
        self,
        path: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run the script ``path`` as ``python path ...`` does."""
        return self.run(_FILE, str(path), *arguments, env=env, timeout=timeout)

    def run_at_once(
        self, program: str, each: Sequence[str], *, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``program`` in one process for each of ``each``, its argument, all at one time.

        Returns 0 where all have ended with 0.
        """
        return self.run(_AT_ONCE, program, *each, env=env)

    def close(self) -> None:
        """End the process."""
        if self._parent is not None:
            with self._parent:
                self._parent.kill()

    def _forked(
        self, command: list[str], folder: Path, environ: dict[str, str], timeout: float
    ) -> int:
        if self._parent is None:
            self._parent = subprocess.Popen(
                [sys.executable, __file__],
                env=self._environ,
                cwd=self._cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
        asked = {
            "command": command,
            "folder": str(folder),
            "cwd": os.getcwd(),
            "environ": environ,
        }
        asks, answers = self._parent.stdin, self._parent.stdout
        assert asks is not None
        assert answers is not None
        asks.write(json.dumps(asked).encode() + b"\n")
        child = int(answers.readline())
        ended, _, _ = select.select([answers], [], [], timeout)
        if not ended:
            os.kill(child, signal.SIGKILL)
        code = int(answers.readline())
        if not ended:
            raise subprocess.TimeoutExpired(command, timeout)
        return code


def _next_program() -> dict[str, Any]:
    """In the process that forks, until stdin closes; in each child, what it is to run."""
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def _become(asked: dict[str, Any]) -> None:
    """Take on what a new process would have."""
    os.environ.clear()
    os.environ.update(asked["environ"])
    os.chdir(asked["cwd"])
    folder = Path(asked["folder"])
    flags = os.O_WRONLY | os.O_CREAT
    for number, opened in enumerate(
        (
            os.open(os.devnull, os.O_RDONLY),
            os.open(folder / "out", flags),
            os.open(folder / "err", flags),
        )
    ):
        os.dup2(opened, number)
        os.close(opened)
    named = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = [*dict.fromkeys([str(folder), *named, *sys.path[1:]])]
    sys.argv[:] = asked["command"]


if __name__ == "__main__":
    import torch._dynamo
    import torch.fx._graph_pickler

    torch._dynamo.lookup_backend("eager")  # imports all backends, as every first trace does
    # Collections of garbage in the programs leave alone what they share.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    _become(_next_program())
    with open(sys.argv[0]) as _file:
        _code = compile(_file.read(), sys.argv[0], "exec")
    sys.modules["__main__"] = _main = types.ModuleType("__main__")
    _main.__file__ = sys.argv[0]
    exec(_code, _main.__dict__)
