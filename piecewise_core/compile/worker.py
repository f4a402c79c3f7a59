"""The worker process: compiles jobs that come in on stdin, answers on stdout.

Started by `piecewise_core.compile.pool`; one request and one answer at a time, each a length
and a pickle. Whatever the compiler prints goes to stderr.
"""

from __future__ import annotations

import os
import time
from typing import Any

from piecewise_core.compile.messages import Answer, Request, read_message, write_message

__all__ = ["main"]


def main() -> None:
    """Serve requests until stdin closes."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    adaptors: dict[str, Any] = {}
    while (request := read_message(requests)) is not None:
        write_message(answers, _serve(request, adaptors))


def _serve(request: Request, adaptors: dict[str, Any]) -> Answer:
    begun = time.perf_counter()
    try:
        handle, serves, why = _compile(request, adaptors)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return Answer(request.serial, None, text, time.perf_counter() - begun)
    return Answer(request.serial, handle, "", time.perf_counter() - begun, serves, why)


def _compile(request: Request, adaptors: dict[str, Any]) -> tuple[bytes, Any, str]:
    from piecewise_core.compile.adaptors import configure, resolve
    from piecewise_core.compile.portable import unpack
    from piecewise_core.compile.verdict import compile_and_judge
    from piecewise_core.config import Config
    from piecewise_core.errors import CompileFailed
    from piecewise_core.platforms import attributed, select

    config = Config.from_json(request.config)
    if request.platform not in adaptors:
        platform = attributed(select(request.platform, environ={}))
        adaptors[request.platform] = resolve(config.compiler, platform)
        configure(adaptors[request.platform], config)
    verdict = compile_and_judge(
        adaptors[request.platform], lambda: unpack(request.job), request.key, config
    )
    serves = verdict.serves
    ends = None if serves is None else [(r.start, r.end) for r in serves.ranges]
    handle = verdict.compiled.handle
    if handle is None:
        raise CompileFailed(f"compiler {config.compiler!r} cannot hand this piece's code over")
    return handle(), ends, verdict.why


if __name__ == "__main__":
    main()
