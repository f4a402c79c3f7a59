"""Inductor's one-time vector-instruction probes, done once per machine.

Inductor asks of each process which instruction sets its compiler can use, by building a small
library for each and loading it in a child process. The builds are kept in a directory of ours
that outlives Inductor's caches; once all of them succeeded, later processes only repeat what
Inductor offers no switch for. Read in torch 2.11 and 2.13: ``cpu_vec_isa.valid_vec_isa_list``,
``cpp.vec_isa_ok``, ``temporary_cache_dir``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from piecewise_cpu.memo import Memo

__all__ = ["probe_vector_isas"]

log = logging.getLogger(__name__)

Ask = Callable[[str, bool], tuple[int, int]]

_TIMEOUT = 300.0
"""Seconds to wait for another process that is probing."""


def probe_vector_isas(
    directory: Path, factors: Mapping[str, str], ask: Ask | None = None
) -> dict[str, Any]:
    """Have Inductor choose its instruction sets, from builds under ``directory``.

    ``factors``: all that the answer depends on. Returns Inductor settings that keep it from
    asking again. ``ask``: in place of Inductor, (builds, known) -> (working sets, sets that the
    processor has). Where the directory cannot hold programs, nothing is done: Inductor then probes
    by itself.
    """
    memo = Memo(directory, {**factors, "probe": "vector"})
    builds = directory / "probes"
    with memo.single_flight(_TIMEOUT):
        if not _can_hold_programs(builds):
            return {}
        known = memo.known()
        found, supported = (ask or _ask_inductor)(str(builds), known)
        if found and found == supported and not known:
            memo.record()
    return {"cpp.vec_isa_ok": True} if found and found == supported else {}


def _can_hold_programs(directory: Path) -> bool:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.statvfs(directory).f_flag
    except OSError as exc:
        log.debug("probes go where Inductor keeps them: %s", exc)
        return False
    return os.access(directory, os.W_OK) and not flags & os.ST_NOEXEC


def _ask_inductor(builds: str, known: bool) -> tuple[int, int]:
    """How many instruction sets work, and how many the processor has."""
    from torch._inductor import config, cpu_vec_isa
    from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

    patch = {"cpp.vec_isa_ok": True} if known else {}
    flags = set(cpu_vec_isa.x86_isa_checker())
    supported = [i for i in cpu_vec_isa.supported_vec_isa_list if set(str(i).split()) <= flags]
    with (
        temporary_cache_dir(builds),
        config.patch(patch),
        ThreadPoolExecutor(min(len(supported), os.cpu_count() or 1) or 1) as pool,
    ):
        # Each answer is a compiler run in a process of its own, kept by the instance.
        list(pool.map(bool, supported))
        found = len(cpu_vec_isa.valid_vec_isa_list())
    return found, len(supported)
