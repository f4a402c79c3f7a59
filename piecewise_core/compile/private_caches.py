"""Where compiled code that comes from a file is unpacked: a directory of this process alone.

Torch and Triton unpack it into their caches, which other programs of this user share and look up
by names that say nothing about the content: what a bundle brings would become their code.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from piecewise_core.afterfork import after_fork
from piecewise_core.config_cache import cache_directory
from piecewise_core.interpreter import variables
from piecewise_core.ownership import make_private
from piecewise_core.torch_compat.dynamo import compile_lock

__all__ = ["private_caches", "private_directory"]


@functools.cache
def private_directory() -> Path:
    """The directory, made now; it goes with the process."""
    parent = None
    if _holds_no_programs(tempfile.gettempdir()):
        parent = cache_directory(os.environ)
        make_private(parent)
    made = Path(tempfile.mkdtemp(prefix="piecewise-", dir=parent))
    atexit.register(_remove, made, os.getpid())
    return made


@contextmanager
def private_caches() -> Iterator[None]:
    """Inside, torch's compilers and Triton look for files, and put them, in that directory.

    One thread at a time: the environment is the whole process's.
    """
    folder = private_directory()
    inside = {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    with compile_lock, after_fork.leaves(variables(inside)):
        yield


def _holds_no_programs(directory: str) -> bool:
    return bool(os.statvfs(directory).f_flag & getattr(os, "ST_NOEXEC", 0))


def _remove(directory: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process ends before its parent
        shutil.rmtree(directory, ignore_errors=True)
