"""Directories and files that nobody else can have written: owner and mode first, then bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from piecewise_core.errors import StoreError
from piecewise_core.ownership import foreign, is_ours

__all__ = [
    "claim",
    "read_file",
    "same_directory",
    "sync",
    "trusted_directory",
    "write_file",
]

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def trusted_directory(directory: Path) -> bool:
    """Whether this user may write to ``directory``.

    Raises StoreError where somebody else may, besides root: what lies in it is executed. Raises
    OSError when it is not there.
    """
    found = os.stat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{directory} is no directory; remove it, or set cache_dir elsewhere")
    why = foreign(directory)
    if why is not None and not is_ours(found):
        raise StoreError(
            f"{why}; code from it would be executed. Set cache_dir to a directory of your own, or "
            f"chown {directory}"
        )
    if why is not None:
        raise StoreError(
            f"{why} that would be executed; chmod -R go-w {directory} if you trust what is in it, "
            "or remove it"
        )
    effective = os.access in os.supports_effective_ids
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=effective)


def read_file(name: str, folder: int, limit: int) -> bytes:
    """The content of file ``name`` in the open directory ``folder``.

    Raises StoreError when it is no plain file, or not this user's or root's, or has more than
    ``limit`` bytes; OSError when it cannot be read.
    """
    handle = os.open(name, _READ, dir_fd=folder)
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{name} is no plain file")
        if not is_ours(found):
            raise StoreError(f"{name} belongs to user {found.st_uid}")
        if found.st_size > limit:
            raise StoreError(f"{name} has {found.st_size} bytes; {limit} is the most it may have")
        return file.read(limit + 1)


def claim(directory: Path, *, sure: bool = False) -> int | None:
    """Open ``directory`` and hold it as long as the result is open; None if somebody else does.

    The kernel lets go of it when its holder dies. A file system without locks lets everybody have
    it, unless ``sure``. Raises OSError where there is no directory.
    """
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES) and not sure:
            return handle
        os.close(handle)
        return None
    if same_directory(directory, handle):
        return handle
    os.close(handle)
    return None


def write_file(path: Path, data: bytes) -> None:
    """Write a new file, readable by this user only, through to the disk."""
    with open(os.open(path, _WRITE, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(directory: Path) -> None:
    """Have the names in ``directory`` outlive a power cut, where the file system can."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def same_directory(path: Path, folder: int) -> bool:
    """Whether ``path`` still is the directory that is open as ``folder``."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(folder))
    except OSError:
        return False
