"""Worker processes that compile while the model serves, or side by side while it waits.

In-process threads cannot do this: Inductor's settings do not reach them. A worker is a fresh
interpreter, so it never imports the user's ``__main__``.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import subprocess
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from piecewise_core import interpreter
from piecewise_core.compile.messages import Answer, Request, read_message, write_message

__all__ = ["WorkerPool"]

logger = logging.getLogger(__name__)

_TIMEOUT = 900.0
"""Seconds after which a compilation counts as hung; the worker is then replaced."""

_DEATHS = 6
"""Processes that may die one after the other in a worker's place before it starts no more."""

Make = Callable[[int], Request]
Work = Callable[[Callable[[Make], Answer]], None]


class WorkerPool:
    """Sends requests to workers and waits for their answers, on a thread for each.

    ``run`` never blocks. Workers end with ``close``, with this object, and with the process; a
    forked process starts its own. ``timeout``: seconds for one compilation. ``workers``: how many
    there are, each started when there is work for it. ``attempts``: how often a request is made
    whose process dies. ``variables``: of the environment, for them. ``nice``: how nice they and the
    compilers that they start are, where the system knows that.
    """

    def __init__(
        self,
        timeout: float = _TIMEOUT,
        workers: int = 1,
        attempts: int = 1,
        variables: Mapping[str, str] = MappingProxyType({}),
        nice: int = 0,
    ) -> None:
        self._make = partial(_Worker, timeout, attempts, variables, nice)
        self._count = workers
        self._inherited: list[_Worker] = []
        self._begin()

    def _begin(self) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._workers = [self._make() for _ in range(self._count)]
        self._threads: list[threading.Thread] = []
        self._process = os.getpid()
        # Runs at interpreter exit too: a worker in mid-compile would outlive its parent.
        self.close = weakref.finalize(self, _end, self._jobs, self._workers, self._process)
        """End the workers. What they are doing, and what waits, is never answered."""

    def prepare(self, make: Make) -> None:
        """Have each worker answer ``make``'s request before any work: its answer is not used."""
        for _ in self._workers:
            self.run(lambda ask: (ask(make), None)[1])

    def run(self, work: Work) -> None:
        """Call ``work(ask)`` on a thread of the pool; ``ask(make)`` has its worker compile.

        What waits when the pool is closed is not called, and what asks then goes no further.
        """
        if self._process != os.getpid():
            # Forked: the workers are the parent's, and so is what waits for them.
            self.close.detach()
            for worker in self._workers:
                worker.abandon()
            self._inherited += self._workers
            self._begin()
        if len(self._threads) < self._count:
            worker = self._workers[len(self._threads)]
            thread = threading.Thread(
                target=_run, args=(self._jobs, worker), name="piecewise-pool", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self._jobs.put(work)


def _run(jobs: queue.SimpleQueue[Any], worker: _Worker) -> None:
    while (job := jobs.get()) is not None:
        worker.serve(job)
        del job  # it refers to the model, which could not go while this waits
    worker.close()


def _end(jobs: queue.SimpleQueue[Any], workers: list[_Worker], process: int) -> None:
    if os.getpid() == process:  # a forked process ends before its parent
        for worker in workers:
            jobs.put(None)
            worker.kill()
        for worker in workers:  # they end side by side
            worker.end()


class _Ended(BaseException):
    """The pool was closed; whoever waits for an answer gets none, and no error to handle."""


class _Worker:
    """The process, started when there is work, and again when it died."""

    def __init__(
        self, timeout: float, attempts: int, variables: Mapping[str, str], nice: int
    ) -> None:
        self._timeout, self._attempts, self._variables = timeout, attempts, variables
        self._nice = nice
        self._deaths = 0
        self._serial = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def serve(self, work: Work) -> None:
        """Do one piece of work."""
        if self._ended:
            return
        try:
            work(self.ask)
        except _Ended:
            return
        except Exception:
            logger.exception("could not take in a compiled piece")

    def ask(self, make: Make) -> Answer:
        """One round trip; what goes wrong in it is an answer too."""
        serial = next(self._serial)
        answer = Answer(serial, None, f"{_DEATHS} worker processes ended, one after another", 0.0)
        for _ in range(self._attempts if self._deaths < _DEATHS else 0):
            before = self._deaths
            try:
                answer = self._ask(make(serial))
            except Exception as error:
                answer = Answer(serial, None, f"{type(error).__name__}: {error}", 0.0)
            if self._ended:
                raise _Ended
            if self._deaths == before or self._deaths == _DEATHS:
                break
        return answer

    def abandon(self) -> None:
        """In a forked process: let go of the pipes, without a word to the worker at their end.

        What the parent was writing when it forked may lie in a buffer here. Closing would send it
        once more; so the pipes are replaced, under their numbers.
        """
        process = self._process
        for stream in (process.stdin, process.stdout) if process is not None else ():
            if stream is not None and not stream.closed:
                nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                os.dup2(nowhere, stream.fileno(), inheritable=False)
                os.close(nowhere)

    def kill(self) -> None:
        """Kill the process, whatever it is doing, and start none again."""
        self._ended = True
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """The same, and wait for its end."""
        self.kill()
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        """Give back what is left of a process that is gone."""
        if self._process is not None:
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]
            self._process = None

    def _ask(self, request: Request) -> Answer:
        process = self._running()
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        watchdog = threading.Timer(self._timeout, give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            write_message(process.stdin, request)  # type: ignore[arg-type]
            answer: Answer | None = read_message(process.stdout)  # type: ignore[arg-type]
        finally:
            watchdog.cancel()
        if answer is not None:
            self._deaths = 0
            return answer
        code = process.wait()
        self._deaths += not late.is_set()
        why = f"it took longer than {self._timeout:g} s" if late.is_set() else f"code {code}"
        return Answer(request.serial, None, f"the worker process ended: {why}", 0.0)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._process = subprocess.Popen(
                interpreter.command("piecewise_core.compile.worker"),
                env=interpreter.environment({**os.environ, **self._variables}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            if self._nice and hasattr(os, "setpriority"):
                with contextlib.suppress(OSError):  # it is nicer already, or gone
                    os.setpriority(os.PRIO_PROCESS, self._process.pid, self._nice)
            if self._ended:  # while it was being started
                self.end()
        return self._process
