"""What becomes of a mutant: shown to be one, then served with check="verify"."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

import piecewise_core as pw
from silent.base import Call, Mutant, Program

__all__ = ["Outcome", "is_real", "tried"]

LINE = re.compile(r"[\w./-]+\.py:\d+")


@dataclass(frozen=True)
class Outcome:
    """``kind``: how the mutant was caught, or "missed", "bare", "unreal".

    "verified": compared and found wrong. "refused": an error of ours, or a warning that such calls
    are not captured or padded. "noticed": every number was
    right, and a counter or the log tells of it. ``said``: in words. ``line``:
    whether these name file and line.
    """

    kind: str
    said: str = ""

    @property
    def line(self) -> str:
        """The file and line that are named, or ""."""
        found = LINE.search(self.said)
        return found.group() if found else ""

    @property
    def caught(self) -> bool:
        """Whether nobody got a wrong number without a word."""
        return self.kind == "noticed" or (self.kind in ("verified", "refused") and bool(self.line))


def tried(mutant: Mutant) -> Outcome:
    """Serve ``mutant`` unchecked, which must go wrong, and with every call verified."""
    if not is_real(mutant):
        return Outcome("unreal", "unchecked it gives what eager gives")
    found = _verified(mutant, blind=False)
    if not mutant.blind or found.kind in ("missed", "bare"):
        return found
    return _verified(mutant, blind=True)


def _verified(mutant: Mutant, *, blind: bool) -> Outcome:
    heard = _Heard()
    try:
        wrong, stats = _run(mutant, heard, blind=blind, check="verify", verify_rate=1.0)
    except Exception as error:
        refused = _refusal(error)
        if refused is None:
            return Outcome("bare", f"{type(error).__name__}: {error}")
        return Outcome("refused", f"{type(refused).__name__}: {refused}")
    if wrong and not (mutant.late and stats["wrong"]):
        return Outcome("missed", wrong)
    if stats["wrong"]:
        return Outcome("verified", heard.of(logging.ERROR))
    refused = "; ".join(filter(None, [heard.dropped, heard.of(logging.WARNING)]))
    if refused:  # capture or padding: such calls are served without
        return Outcome("refused", refused)
    if blind and stats["retraces"]:
        return Outcome("bare", "the watch was not put out")
    did = [k for k in ("retraces", "relaid", "restrided", "declined") if stats.get(k)]
    did += ["graphs"] if stats["graphs"] > 1 else []
    if did:
        return Outcome("noticed", "; ".join([*did, heard.of(logging.INFO)]))
    return Outcome("missed", "nothing was said, and all was right")


def is_real(mutant: Mutant) -> bool:
    """Whether the mutant gives wrong numbers, and nothing else, where nothing is checked."""
    heard = _Heard()
    try:
        wrong, _ = _run(mutant, heard, check="off")
    except Exception as error:
        # What is refused whatever is asked for cannot show what it would do.
        return _refusal(error) is not None
    return bool(wrong or heard.dropped)


class _Heard(logging.Handler):
    """What the package's log says."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []
        self.dropped = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, level: int) -> str:
        return "; ".join(r.getMessage() for r in self.records if r.levelno >= level)

    def __enter__(self) -> _Heard:
        logger = logging.getLogger("piecewise_core")
        self._before = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        return self

    def __exit__(self, *exc: Any) -> None:
        logger = logging.getLogger("piecewise_core")
        logger.removeHandler(self)
        logger.setLevel(self._before[0])
        logger.propagate = self._before[1]


def _run(
    mutant: Mutant, heard: _Heard, *, blind: bool = False, **checks: Any
) -> tuple[str, dict[str, Any]]:
    """How served results differ from eager's, and the counters."""
    torch._dynamo.reset()
    before = _counts()
    with heard, torch.inference_mode():
        # Plain first: a change may reach what both share.
        plain = mutant.program()
        wanted = _results(plain, plain.model)
        program = mutant.program()
        served = _served(mutant, program, **checks)
        got = _results(program, _blind(served) if blind else served)
    pairs = enumerate(zip(got, wanted, strict=True))
    wrong = [f"call {i}: {how}" for i, (a, b) in pairs if (how := _apart(a, b))]
    stats = {k: n - before[k] for k, n in _counts().items()}
    if mutant.front == "record":
        heard.dropped = "; ".join(served.explain().dropped.values())
    return "; ".join(wrong), stats


def _served(mutant: Mutant, program: Program, **checks: Any) -> Any:
    platform = mutant.platform()
    settings = {"dynamic": program.dynamic, "cache_dir": None, **mutant.settings, **checks}
    if mutant.front == "record":
        return pw.record(program.model, pw.Config(**settings), platform=platform)
    if mutant.front == "compile":
        return pw.compile(program.model, pw.Config(**settings), platform=platform)
    del settings["dynamic"], settings["cache_dir"]
    options = {"platform": platform, **settings}
    return torch.compile(program.model, backend="piecewise", dynamic=True, options=options)


def _blind(served: Any) -> Callable[..., Any]:
    """``served`` with its watch of Python's state put out: a part of ours that is broken."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if hasattr(served, "_pw_session"):
            for form in served._pw_session.forms:
                form.model.check = int  # no alarm
        else:
            served._calls.recordings._watches = False
        return served(*args, **kwargs)

    return call


def _counts() -> dict[str, int]:
    """The process's counters: graphs of torch.compile's door have no others."""
    stats = pw.counters.stats().to_dict()
    return {k: n for k, n in stats.items() if isinstance(n, int)}


def _results(program: Program, serve: Callable[..., Any]) -> list[Any]:
    """What each call gave and left in its arguments."""
    found = []
    for step in program.steps:
        if not isinstance(step, Call):
            step()
            continue
        args, kwargs = _fresh((step.args, step.kwargs))
        result = serve(*args, **kwargs)
        given = result, args, kwargs
        found.append(given if program.keeps else _fresh(given))
    return found


def _fresh(tree: Any) -> Any:
    """``tree`` with tensors copied, layout and all."""
    return pytree.tree_map_only(torch.Tensor, lambda t: copy.copy(t.clone()), tree)


def _apart(got: Any, wanted: Any) -> str:
    ours, theirs = pytree.tree_leaves(got), pytree.tree_leaves(wanted)
    if len(ours) != len(theirs):
        return f"{len(ours)} results, not {len(theirs)}"
    for a, b in zip(ours, theirs, strict=True):
        try:
            if isinstance(b, torch.Tensor):
                torch.testing.assert_close(a, b, equal_nan=True)
            elif isinstance(b, (bool, int, float, str)) and a != b:
                return f"{a!r}, not {b!r}"
        except AssertionError as differs:
            return " ".join(str(differs).split())[:200]
    return ""


def _refusal(error: BaseException | None) -> pw.errors.PiecewiseError | None:
    while error is not None:
        if isinstance(error, pw.errors.PiecewiseError):
            return error
        error = error.__cause__ or getattr(error, "inner_exception", None)
    return None
