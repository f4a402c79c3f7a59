"""Whose a directory is: what lies in some of them is loaded and run as this user."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["foreign", "is_ours", "make_private"]


def make_private(directory: Path) -> None:
    """Make ``directory`` and what leads to it, each with mode 0700, where it is not there yet."""
    if not directory.parent.is_dir():
        make_private(directory.parent)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)


def foreign(directory: str | Path, *, group: bool = True) -> str | None:
    """Why others than this user and root can put files into ``directory``; None: they cannot.

    ``group``: whether its group counts as others. Raises OSError where it is not there.
    """
    found = os.stat(directory)
    if not is_ours(found):
        return (
            f"{directory} belongs to user {found.st_uid}, and this process runs as user "
            f"{os.geteuid()}"
        )
    others = stat.S_IWOTH | (stat.S_IWGRP if group else 0)
    if found.st_mode & others:
        mode = stat.S_IMODE(found.st_mode)
        return f"{directory} has mode {mode:04o}, so that other users can put code there"
    return None


def is_ours(found: os.stat_result) -> bool:
    """Whether a file is this user's or root's."""
    return not hasattr(os, "geteuid") or found.st_uid in (os.geteuid(), 0)
