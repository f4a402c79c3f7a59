"""What the first compilation on a machine waits for, done beside the trace that comes before it.

A thread runs the C++ compiler, and nothing of torch's but what was made ready before it started:
Inductor's settings do not reach other threads, and the environment is the process's. It leaves
files and records, no answers: whoever compiles waits for it, then asks as ever, and finds them.
What it could not do is done then, and said.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from filelock import FileLock

__all__ = ["Ahead", "Commands", "Header", "Stopped", "loads", "prove"]

log = logging.getLogger(__name__)

_PATIENCE = 3.0
"""Seconds for a thread whose process ends to remove what it was making."""


class Header(Protocol):
    """A header to precompile, and the commands for it (``KernelHeader``)."""

    @property
    def text(self) -> str: ...
    def preprocess(self, source: Path, stem: Path) -> list[str]: ...
    def place(self, preprocessed: bytes) -> tuple[Path, Path]: ...
    def made(self, header: Path) -> Path: ...
    def precompile(self, header: Path, out: Path) -> list[str]: ...
    def kernel(self, header: Path, source: Path, stem: Path) -> list[str]: ...


class Stopped(Exception):
    """The process ends; what was being made is of no use."""


class Commands:
    """Commands of one thread, the last of which ends with the process.

    The thread sleeps until one is done. It must not look every so often: each time the thread that
    traces would hand it the interpreter's lock, and on a busy machine wait until it has run.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def start(self, command: Sequence[str], directory: str) -> subprocess.Popen[bytes]:
        """Start ``command`` in ``directory``; ``ended_well`` is next. Raises Stopped, OSError."""
        nothing = subprocess.DEVNULL
        with self._lock:
            if self._stopped:
                raise Stopped
            # In a session of its own: a compiler is several processes, which end together.
            self._running = subprocess.Popen(
                command,
                cwd=directory,
                stdin=nothing,
                stdout=nothing,
                stderr=nothing,
                start_new_session=True,
            )
            return self._running

    def ended_well(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the one that was started last ends well; waits for it. Raises Stopped."""
        process.wait()
        with self._lock:
            self._running = None
            if self._stopped:
                raise Stopped
        return process.returncode == 0

    def run(self, command: Sequence[str], directory: str) -> bool:
        """Whether ``command`` ends well. Raises Stopped and OSError."""
        return self.ended_well(self.start(command, directory))

    def kill(self) -> None:
        """End the one that runs, if it does."""
        with self._lock:
            if self._running is not None and self._running.returncode is None:
                # Not waited for yet, so its number is nobody else's.
                with suppress(ProcessLookupError):
                    os.killpg(self._running.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the one that runs, and start none from now on."""
        with self._lock:
            self._stopped = True
        self.kill()


class Ahead:
    """One piece of work on a thread of its own, which is over when the process ends."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._process = 0

    def begin(self, work: Callable[[Commands], object]) -> None:
        """Have ``work`` done, whose errors are nobody's: it is done again where it is missed."""
        commands = Commands()

        def guarded() -> None:
            try:
                work(commands)
            except Exception as error:
                log.debug("not done ahead: %r", error)

        self._process = os.getpid()
        self._thread = threading.Thread(target=guarded, name="piecewise-ahead", daemon=True)
        self._thread.start()
        weakref.finalize(self, _end, commands, self._thread, self._process)

    def wait(self) -> None:
        """Return when it is done; at once in a forked process, which has no such thread."""
        thread, self._thread = self._thread, None
        if thread is not None and self._process == os.getpid():
            thread.join()


def _end(commands: Commands, thread: threading.Thread, process: int) -> None:
    if os.getpid() == process and thread.is_alive():
        commands.stop()
        thread.join(_PATIENCE)  # it may wait for a lock that another process has


def prove(
    header: Header,
    program: str,
    libraries: Path,
    meanwhile: Callable[[], object],
    commands: Commands,
) -> bool:
    """Precompile ``header`` where it is wanted, and build and load ``program`` by means of it.

    ``libraries``: directory of those that it is linked with. ``meanwhile``: done on this thread
    while the compiler runs. Returns whether all worked. Raises Stopped, OSError, what
    ``meanwhile`` raises.
    """
    with tempfile.TemporaryDirectory(prefix="piecewise-ahead-") as scratch:
        source, stem = Path(scratch, "header.hpp"), Path(scratch, "header")
        source.write_text(header.text, encoding="utf-8")
        if not commands.run(header.preprocess(source, stem), scratch):
            return False
        place, lock = header.place(stem.with_suffix(".i").read_bytes())
        with FileLock(str(lock)):
            made = header.made(place)
            if made.exists():
                meanwhile()
            elif not _precompiled(header, place, scratch, meanwhile, commands):
                return False
        source = Path(scratch, "probe.cpp")
        source.write_text(f"{header.text}{program}", encoding="utf-8")
        stem = Path(scratch, "probe")
        built = commands.run(header.kernel(place, source, stem), scratch)
        return built and loads(stem.with_suffix(".so"), libraries)


def _precompiled(
    header: Header, place: Path, scratch: str, meanwhile: Callable[[], object], commands: Commands
) -> bool:
    """Make it under another name: half of one in its place would fail every kernel after it."""
    made = header.made(place)
    part = made.with_name(f"{made.name}.part")  # the same each time: a killed process leaves one
    process = commands.start(header.precompile(place, part), scratch)
    try:
        try:
            meanwhile()
        except BaseException:
            commands.kill()
            process.wait()
            raise
        if not commands.ended_well(process):
            return False
        os.replace(part, made)
        return True
    finally:
        part.unlink(missing_ok=True)


def loads(library: Path, libraries: Path) -> bool:
    """Whether a process can load ``library``, one of its own: in this one it would stay.

    ``libraries``: directory of those that it is linked with.
    """
    before = os.environ.get("LD_LIBRARY_PATH")
    path = f"{libraries}:{before}" if before else str(libraries)
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(library)],
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return done.returncode == 0
