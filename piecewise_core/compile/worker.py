"""The worker process: compiles jobs that come in on stdin, answers on stdout.

Started by `piecewise_core.compile.pool`; one request and one answer at a time, each a length
and a pickle. Whatever the compiler prints goes to stderr.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from typing import Any

from piecewise_core.compile.messages import Answer, Request, read_message, write_message

__all__ = ["main"]

_EVERY = 1.0
"""Seconds between two looks."""


def main() -> None:
    """Serve requests until stdin closes, or the process that asks is gone."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Ctrl-C goes to every process of the terminal: whoever asked is told, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    adaptors: dict[str, Any] = {}
    while (request := read_message(requests)) is not None:
        write_message(answers, _serve(request, adaptors))


def _end_with(parent: int) -> None:
    """End this process behind ``parent``: killed, that closes nothing that a compiler looks at."""
    while os.getppid() == parent:
        time.sleep(_EVERY)
    os._exit(1)


def _serve(request: Request, adaptors: dict[str, Any]) -> Answer:
    begun = time.perf_counter()
    try:
        answer = _compile(request, adaptors)
    except Exception as error:
        answer = Answer(request.serial, None, f"{type(error).__name__}: {error}", 0.0)
    return replace(answer, seconds=time.perf_counter() - begun)


def _compile(request: Request, adaptors: dict[str, Any]) -> Answer:
    from piecewise_core.compile.adaptors import configure, resolve
    from piecewise_core.compile.portable import unpack
    from piecewise_core.compile.valid_range import compile_job
    from piecewise_core.config import Config
    from piecewise_core.errors import CompileFailed
    from piecewise_core.plugins import attributed, select
    from piecewise_core.rewrites import list_rewrites
    from piecewise_core.store.environment import surroundings
    from piecewise_core.torch_compat.state import set_torch_state

    config = Config.from_json(request.config)
    if request.platform not in adaptors:
        selected = select(request.platform, environ={})
        adaptor = resolve(config.compiler, attributed(selected))
        configure(adaptor, config)
        lowered = list_rewrites(selected, config, adaptor).only_lowered()
        adaptors[request.platform] = adaptor, lowered
    adaptor, rewrites = adaptors[request.platform]
    set_torch_state(request.state)
    _refuse_differing(surroundings(adaptor), request.surroundings)
    if not request.job:  # a process that starts before there is one
        getattr(adaptor, "get_ready", lambda: None)()
        return Answer(request.serial, None, "", 0.0)
    made = compile_job(adaptor, lambda: unpack(request.job), request.key, config, rewrites)
    serves = made.serves
    handle = made.compiled.handle
    if handle is None:
        raise CompileFailed(f"compiler {config.compiler!r} cannot hand this piece's code over")
    return Answer(
        request.serial,
        handle(),
        "",
        0.0,
        None if serves is None else [r.plain for r in serves.ranges],
        made.why,
    )


def _refuse_differing(here: dict[str, str], there: dict[str, str]) -> None:
    """Raise CompileFailed where this process would make other code than the one that asks."""
    from piecewise_core.errors import CompileFailed

    # Who brought the compiler is known of one found by name only; its class and code are compared.
    names = {*here, *there} - {"compiler.distribution"}
    differing = sorted(n for n in names if here.get(n) != there.get(n))
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise CompileFailed(f"the worker process differs in {', '.join(differing[:5])}{more}")


if __name__ == "__main__":
    main()
