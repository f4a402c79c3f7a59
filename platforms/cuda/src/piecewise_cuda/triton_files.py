"""Files of Triton's cache that a process runs on: taken along with its code, and put back.

An artifact of Inductor brings its own kernels. It does not bring the library that Triton's driver
consists of, nor the kernel that stages inputs and its launcher: where Triton's cache is empty,
these take a C compiler and ptxas at every start. They go into a cache of this process's own: other
programs trust what lies in the user's.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from piecewise_core.building_blocks import private_caches
from piecewise_cuda import triton_private

__all__ = ["brought", "collect", "keep", "put_back"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*/[A-Za-z0-9_-][A-Za-z0-9_.-]*")

_kernels: dict[int, Any] = {}
_filled: set[Path] = set()
"""Directories that a kernel was put into."""
_refusing: set[Path] = set()
"""Directories that were told of: every piece of a model brings the same files."""


def keep(compiled: Any) -> None:
    """Have the files of ``compiled``, a Triton kernel loaded on its device, collected.

    The kernel lives as long as the process; Triton's own table of kernels holds it anyway.
    """
    _kernels[id(compiled)] = compiled


def collect() -> dict[str, bytes]:
    """The files that this process rests on: "key/file" -> content, without any place in it.

    Of another version of Triton there may be fewer, or none.
    """
    found = _library(triton_private.driver_library())
    for compiled in tuple(_kernels.values()):
        found.update(_library(triton_private.launcher_library(compiled)))
        found.update(_kernel(compiled))
    return found


def put_back(files: Mapping[str, bytes]) -> None:
    """Write what is missing of ``files``, as ``collect`` gave them, where ``brought`` looks.

    Raises nothing: what cannot be written is compiled where it is needed.
    """
    safe = _safe(files)
    if len(safe) < len(files):
        refused = sorted(set(files) - set(safe))
        logger.warning("not put into Triton's cache, for its name: %s", ", ".join(refused))
    if not safe:
        return
    with private_caches():
        for directory in triton_private.cache_directories():
            _put_into(directory, safe)
            if any(map(_is_group, safe)):
                _filled.add(directory)


def brought() -> AbstractContextManager[None]:
    """Inside, Triton looks in that cache, if a kernel was put there.

    So it does where this process has no home, in which Triton would make its own. An entry of the
    store is older than the first capture and brings no kernel that stages: the user's own cache
    has it from the second start on, and one of this process's own never would.
    """
    at_home = "TRITON_CACHE_DIR" in os.environ or os.path.expanduser("~") != "~"
    return private_caches() if _filled or not at_home else nullcontext()


def _library(library: triton_private.Library | None) -> dict[str, bytes]:
    if library is None:
        logger.debug("the library of Triton's driver, or of a launcher, is not to be found")
        return {}
    try:
        content = library.path.read_bytes()
    except OSError as error:  # somebody emptied the cache
        logger.debug("a library of Triton's is not collected: %s", error)
        return {}
    return _safe({f"{key}/{library.path.name}": content for key in library.keys})


def _kernel(compiled: Any) -> dict[str, bytes]:
    """The files of ``compiled``, all or none."""
    files = triton_private.kernel_files(compiled)
    if not files:
        logger.debug("a kernel of Triton's has no files that are known")
        return {}
    try:
        found = {f"{path.parent.name}/{name}": path.read_bytes() for name, path in files.items()}
    except OSError as error:
        logger.debug("a kernel of Triton's is not collected: %s", error)
        return {}
    key = next(iter(found)).partition("/")[0]
    found[f"{key}/{triton_private.group_file(files)}"] = triton_private.portable_group(files)
    return _safe(found)


def _safe(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those of ``files`` whose names stay inside of a cache."""
    return {name: content for name, content in files.items() if _NAME.fullmatch(name)}


def _is_group(name: str) -> bool:
    return triton_private.is_group(name.partition("/")[2])


def _put_into(directory: Path, files: Mapping[str, bytes]) -> None:
    for name in sorted(files, key=lambda name: (_is_group(name), name)):  # groups last
        path = directory / name
        if os.path.exists(path):
            continue
        try:
            _write(path, _placed(path, files[name]))
        except (OSError, ValueError) as error:
            _tell(directory, error)


def _placed(path: Path, data: bytes) -> bytes:
    """``data`` as it must be at ``path``. A group is found only with all of its files."""
    if not triton_private.is_group(path.name):
        return data
    missing = [n for n in triton_private.members(data) if not os.path.exists(path.parent / n)]
    if missing:
        raise ValueError(f"{path.name} is useless without {', '.join(missing)}")
    return triton_private.placed_group(data, path.parent)


def _write(path: Path, data: bytes) -> None:
    """Write ``path`` in one step, with the rights that Triton's own files get."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"tmp.pid_{os.getpid()}_{uuid.uuid4()}")
    try:
        with aside.open("xb") as file:
            file.write(data)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _tell(directory: Path, error: Exception) -> None:
    if directory in _refusing:
        return
    _refusing.add(directory)
    logger.info(
        "Triton's cache %s does not take what compiled code brought (%s: %s); what is missing is "
        "compiled again, which needs a C compiler: set TRITON_CACHE_DIR to a writable directory",
        directory,
        type(error).__name__,
        error,
    )
