"""Inductor's one-time vector-instruction probe, done once per machine.

Inductor asks of each process which of the processor's instruction sets its compiler can use, by
building a small library for each and loading it in a child process; then it uses the widest. Here
only that one is proved, and the builds kept in a directory of ours that outlives Inductor's caches;
later processes only repeat what Inductor offers no switch for. Read in torch 2.11 and 2.13:
``cpu_vec_isa.pick_vec_isa``, ``valid_vec_isa_list``, ``VecISA.check_build``, ``cpp.vec_isa_ok``,
``temporary_cache_dir``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from piecewise_core.building_blocks import careful_children, foreign, make_private, vector_isas
from piecewise_core.errors import TorchUnsupported
from piecewise_cpu.memo import Memo

__all__ = ["probe_vector_isas"]

log = logging.getLogger(__name__)

Ask = Callable[[str, bool], bool]

_TIMEOUT = 300.0
"""Seconds to wait for another process that is probing."""


def probe_vector_isas(
    directory: Path, factors: Mapping[str, str], ask: Ask | None = None
) -> dict[str, Any]:
    """Have the instruction set that Inductor would choose proved, from builds under ``directory``.

    ``factors``: all that the answer depends on. Returns Inductor settings that keep it from
    asking again. ``ask``: in place of Inductor, (builds, known) -> whether the set works. Where it
    does not, or the directory cannot hold programs, Inductor probes by itself.
    """
    memo = Memo(directory, {**factors, **_choice(), "probe": "vector 2"})
    builds = directory / "probes"
    with memo.single_flight(_TIMEOUT):
        if not _can_hold_programs(builds):
            return {}
        known = memo.known()
        try:
            works = (ask or _ask_inductor)(str(builds), known)
        except (TorchUnsupported, AttributeError) as error:  # it would only have saved time
            log.debug("Inductor probes by itself: %s", error)
            return {}
        if works and not known:
            memo.record()
    return {"cpp.vec_isa_ok": True} if works else {}


def _choice() -> dict[str, str]:
    """What tells Inductor to choose another set than the widest."""
    return {"capability": os.environ.get("ATEN_CPU_CAPABILITY", "")}


def _can_hold_programs(directory: Path) -> bool:
    try:
        make_private(directory)
        flags = os.statvfs(directory).f_flag
        others = foreign(directory)
    except OSError as exc:
        others = str(exc)
    if others is not None:
        log.debug("probes go where Inductor keeps them: %s", others)
        return False
    return directory.is_dir() and os.access(directory, os.W_OK) and not flags & os.ST_NOEXEC


def _ask_inductor(builds: str, known: bool) -> bool:
    """Whether the set that Inductor would choose works; ``known``: it did in an earlier process."""
    config, cpu_vec_isa, test_program, temporary_cache_dir = vector_isas()

    def proved(isa: Any) -> bool:
        # Of its own: choosing changes an instance's flags for a while.
        return bool(type(isa)().check_build(test_program))

    flags = set(cpu_vec_isa.x86_isa_checker())
    sets = [i for i in cpu_vec_isa.supported_vec_isa_list if set(str(i).split()) <= flags]
    with (
        careful_children(),
        temporary_cache_dir(builds),
        config.patch({"cpp.vec_isa_ok": True}),
        ThreadPoolExecutor(1) as pool,
    ):
        # Each answer is a compiler run and a process that loads what it built. Choosing asks for
        # extensions of the sets, which no setting prevents; meanwhile the widest set is tried.
        widest = pool.submit(proved, sets[0]) if sets and not known else None
        chosen = cpu_vec_isa.pick_vec_isa()
        works = bool(chosen)
        if works and not known:
            tried = widest is not None and type(chosen) is type(sets[0])
            works = widest.result() if tried and widest is not None else proved(chosen)
    if not works:
        cpu_vec_isa.valid_vec_isa_list.cache_clear()  # it took every set for one that works
    return works
