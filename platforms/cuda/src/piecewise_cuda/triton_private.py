"""Private parts of Triton's cache, and of Inductor's use of it; all uses but a launch's are here.

Read in Triton 3.6.0 and torch 2.11.0. ``triton.runtime.driver.driver`` keeps the driver in
``_active`` or ``_default`` once it is made; its ``utils`` are functions of a library built by the C
compiler of ``driver.c`` and kept in the cache. A ``CompiledKernel`` has ``metadata_group``, file
name -> path, and its ``run`` is a ``CudaLauncher`` whose ``launch`` is a function of another such
library, made of what ``make_launcher`` gives. The cache is one folder per key, and a kernel is
found by the file ``__grp__NAME.json`` in it, whose ``child_paths`` are absolute paths.
``knobs.cache.dir`` is the cache: what TRITON_CACHE_DIR says, which Inductor sets to
``triton_cache_dir(device)`` when it makes its first kernel. A kernel runs with its ``.json`` and
``.cubin`` alone, as where TRITON_STORE_BINARY_ONLY is set. A library's key is a digest of its
source and of ``build.platform_key()``, "machine,system,bits,linkage", where the linkage is "ELF" or
empty: the program ``file`` tells it, which is in few containers. Triton 3.8.0 adds the flags of
the compilation to the digest: libraries that were brought are not found there, and built again. A
digest of Triton itself is in all keys, ``triton_key()`` of ``triton.runtime.cache``, made once.

What another version lacks is not found, which costs a compilation there and no error.
"""

from __future__ import annotations

import base64
import json
import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from piecewise_core.building_blocks import triton_cache_dir

__all__ = [
    "Library",
    "cache_directories",
    "driver_library",
    "group_file",
    "hash_beside",
    "is_group",
    "kernel_files",
    "launcher_library",
    "members",
    "placed_group",
    "portable_group",
]

logger = logging.getLogger(__name__)

_GROUP, _CHILDREN = "__grp__", "child_paths"
_METADATA, _BINARY = ".json", ".cubin"
_DRIVER = "triton.backends.nvidia.driver"


@dataclass(frozen=True)
class Library:
    """A library that the C compiler built for this process, and the keys it may be looked for by.

    ``keys``: the first part of its names in a cache, on this machine and on others like it.
    """

    path: Path
    keys: tuple[str, ...]


def cache_directories() -> list[Path]:
    """Where this process's Triton looks: now, and once Inductor has made its first kernel."""
    try:
        from triton import knobs

        found = [knobs.cache.dir]
    except Exception as error:
        logger.debug("Triton's cache is not found (%s: %s)", type(error).__name__, error)
        return []
    try:
        cuda: Any = torch.cuda
        found.append(triton_cache_dir(cuda.current_device() if cuda.is_initialized() else 0))
    except Exception as error:  # it makes a directory, which may fail, and asks for a user's name
        logger.debug("Inductor's cache is not found (%s: %s)", type(error).__name__, error)
    return list(dict.fromkeys(Path(d).absolute() for d in found if d))


def hash_beside() -> Thread | None:
    """A thread in which Triton reads and hashes its own files, 400 MB; None where it does not.

    Torch has that done before it loads code, and the GIL is free meanwhile.
    """
    try:  # here, and not in the thread: a fork must find no import half done
        from triton.runtime.cache import triton_key
    except Exception as error:
        logger.debug("Triton's digest is not found (%s: %s)", type(error).__name__, error)
        return None

    def ask() -> None:
        with suppress(Exception):  # whoever asks next is told
            triton_key()

    thread = Thread(target=ask, name="piecewise-triton-key", daemon=True)
    thread.start()
    return thread


def driver_library() -> Library | None:
    """The library of the driver's functions; None while there is no driver. Makes none."""
    config = getattr(sys.modules.get("triton.runtime.driver"), "driver", None)
    active = getattr(config, "_active", None) or getattr(config, "_default", None)
    path = _file_of(getattr(getattr(active, "utils", None), "load_binary", None))
    return None if path is None else Library(path, _keys(path, _driver_source))


def launcher_library(compiled: Any) -> Library | None:
    """The library that launches ``compiled``, a kernel that is loaded on its device."""
    path = _file_of(getattr(getattr(compiled, "run", None), "launch", None))
    return None if path is None else Library(path, _keys(path, partial(_launcher_source, compiled)))


def kernel_files(compiled: Any) -> dict[str, Path]:
    """The files without which ``compiled`` is compiled again: name -> path; maybe none."""
    group = getattr(compiled, "metadata_group", None)
    if not isinstance(group, dict):
        return {}
    found = {n: Path(p) for n, p in group.items() if n.endswith((_METADATA, _BINARY))}
    complete = {Path(name).suffix for name in found} == {_METADATA, _BINARY}
    return found if complete else {}


def _file_of(function: Any) -> Path | None:
    """The file of the module that ``function``, a built one, belongs to."""
    path = getattr(getattr(function, "__self__", None), "__file__", None)
    return Path(path) if isinstance(path, str) else None


# Keys -------------------------------------------------------------------------------


def _keys(path: Path, source: Callable[[], str]) -> tuple[str, ...]:
    """The key that the library at ``path`` has here, and the one it has where ``file`` differs."""
    own = path.parent.name
    try:
        build = sys.modules["triton.runtime.build"]
        platform = build.platform_key().rpartition(",")[0]
        found = tuple(_key(f"{source()}{platform},{linkage}") for linkage in ("ELF", ""))
    except Exception as error:
        logger.debug("key %s is not understood (%s: %s)", own, type(error).__name__, error)
        return (own,)
    return found if own in found else (own,)


def _key(text: str) -> str:
    return base64.b32encode(sha256(text.encode()).digest()).decode().rstrip("=")


def _driver_source() -> str:
    module = sys.modules[_DRIVER]
    return (Path(str(module.__file__)).parent / "driver.c").read_text(encoding="utf-8")


def _launcher_source(compiled: Any) -> str:
    """As in ``CudaLauncher.__init__``."""
    source, names = compiled.src, compiled.src.fn.arg_names
    constants = {
        (names.index(at),) if isinstance(at, str) else at: value
        for at, value in source.constants.items()
    }
    described = getattr(compiled.metadata, "tensordesc_meta", None)
    made: str = sys.modules[_DRIVER].make_launcher(constants, dict(source.signature), described)
    return made


# Groups -----------------------------------------------------------------------------


def group_file(names: Iterable[str]) -> str:
    """The name of the file by which Triton finds the kernel that consists of ``names``."""
    return _GROUP + next(name for name in names if name.endswith(_METADATA))


def is_group(name: str) -> bool:
    """Whether a file of this name tells where others are."""
    return name.startswith(_GROUP)


def portable_group(names: Iterable[str]) -> bytes:
    """The content of a group's file without places."""
    return json.dumps({_CHILDREN: {name: name for name in sorted(names)}}).encode()


def members(group: bytes) -> list[str]:
    """The names in a group's file. Raises ValueError for what is none."""
    found = json.loads(group)
    children = found.get(_CHILDREN) if isinstance(found, dict) else None
    if not isinstance(children, dict):
        raise ValueError("it is no group of files")
    return list(children)


def placed_group(group: bytes, folder: Path) -> bytes:
    """The content of a group's file whose members lie in ``folder``. Raises ValueError."""
    paths = {name: str(folder / name) for name in members(group)}
    return json.dumps({_CHILDREN: paths}).encode()
