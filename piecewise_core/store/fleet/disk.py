"""The second level in a directory that machines share: ``file://`` URLs."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from piecewise_core.errors import StoreError
from piecewise_core.ownership import is_ours, make_private
from piecewise_core.store.directory import trusted_directory, write_file
from piecewise_core.store.fleet.objects import Object

__all__ = ["Disk"]

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Disk:
    """Objects below ``root``.

    ``owned``: whether only this user and root may write there, as where no signature is asked for.
    """

    def __init__(self, root: Path, *, owned: bool) -> None:
        self._root = root
        self._owned = owned

    def where(self) -> str:
        """The directory, as a URL."""
        return f"file://{self._root}"

    def read(self, name: str, limit: int) -> bytes | None:
        """As Objects has it. Raises StoreError for what others may have written."""
        try:
            self._refuse_others(self._root)
            handle = os.open(self._root / name, _READ)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with open(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise StoreError(f"{name} is no plain file")
            if self._owned and not is_ours(found):
                raise StoreError(f"{name} belongs to user {found.st_uid}")
            return file.read(limit + 1)

    def create(self, name: str, data: bytes) -> bool:
        """As Objects has it: written aside, and given its name if nothing has that."""
        path, aside = self._root / name, self._aside(data)
        try:
            self._make(path.parent)
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if path.exists():
                return False
            os.rename(aside, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(aside)
        return True

    def write(self, name: str, data: bytes) -> None:
        """As Objects has it."""
        self._make((self._root / name).parent)
        os.rename(self._aside(data), self._root / name)

    def remove(self, name: str) -> None:
        """As Objects has it."""
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._root / name)

    def listed(self, folder: str) -> Iterator[Object]:
        """As Objects has it."""
        for path in sorted((self._root / folder).rglob("*")):
            with suppress(FileNotFoundError):
                found = os.stat(path, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    name = path.relative_to(self._root).as_posix()
                    yield Object(name, found.st_size, found.st_mtime)

    def _aside(self, data: bytes) -> Path:
        """A new file of ``data`` on the same file system."""
        self._make(self._root / "tmp")
        self._refuse_others(self._root)
        path = self._root / "tmp" / secrets.token_hex(12)
        write_file(path, data)
        if not self._owned:
            os.chmod(path, 0o644)
        return path

    def _make(self, directory: Path) -> None:
        """Make ``directory``: private, or as the umask has it where others share it."""
        if self._owned:
            make_private(directory)
        else:
            directory.mkdir(parents=True, exist_ok=True)

    def _refuse_others(self, directory: Path) -> None:
        if self._owned:
            trusted_directory(directory)
