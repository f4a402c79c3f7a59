"""A store in a directory: one directory per entry, made whole elsewhere and moved into place."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from piecewise_core.errors import SignatureRefused, StoreError
from piecewise_core.ownership import make_private
from piecewise_core.store.admission import admit, signature_for
from piecewise_core.store.directory import (
    claim,
    read_file,
    same_directory,
    sync,
    trusted_directory,
    write_file,
)
from piecewise_core.store.entry import SCHEMA, Entry, Manifest
from piecewise_core.store.ledger import Ledger
from piecewise_core.store.locking import file_lock
from piecewise_core.store.manifest import LARGEST, check_artifact, render
from piecewise_core.store.signing import LONGEST, Signer

__all__ = ["ARTIFACT", "MANIFEST", "SIGNATURE", "TIMEOUT", "FileStore"]

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
ARTIFACT = "artifact"
SIGNATURE = "signature"

TIMEOUT = 900.0
"""Seconds to wait for another process that compiles the same piece."""

_KEY = re.compile(r"[0-9a-f]{64}")
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


class FileStore:
    """Entries below ``root``, a directory that only this user, or root, writes to.

    ``writable``: False never changes a file; the attribute is False too where the user may not.
    ``timeout``: seconds that ``lock`` waits. ``signer``: signs what is put, and says whether
    entries must be signed. ``ledger``: told of those refused. Below ``root/v1``: in
    ``entries/KE/KEY/``, ``locks/``, ``tmp/`` (entries in the making), and ``quarantine/`` (what
    failed its check). Raises StoreError when the directory cannot be trusted; OSError when it
    cannot be made.
    """

    def __init__(
        self,
        root: Path,
        *,
        writable: bool = True,
        timeout: float = TIMEOUT,
        signer: Signer | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.root = root / f"v{SCHEMA}"
        self.timeout = timeout
        self.signer = signer
        self._ledger = ledger or Ledger()
        if writable and not self.root.exists():
            make_private(root)
            trusted_directory(root)
            make_private(self.root)
        may_write = trusted_directory(root) and trusted_directory(self.root)
        self.writable = writable and may_write

    def where(self) -> str:
        """The directory."""
        return str(self.root)

    def path(self, key: str) -> Path:
        """Where the entry of ``key`` is, or would be."""
        if not _KEY.fullmatch(key):
            raise StoreError(f"{key[:80]!r} is no key; a key has 64 hexadecimal digits")
        return self.root / "entries" / key[:2] / key

    # Reading ---------------------------------------------------------------------------

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``; one that fails its check is put into quarantine."""
        return self._read(key, whole=True)

    def manifest(self, key: str) -> Manifest | None:
        """The manifest of ``key`` by itself; the artifact is not looked at."""
        found = self._read(key, whole=False)
        return None if found is None else found.manifest

    def manifests(self) -> Iterator[Manifest]:
        """Every manifest that can be read."""
        for key in self.all_keys():
            found = self.manifest(key)
            if found is not None:
                yield found

    def all_keys(self) -> Iterator[str]:
        """The keys of all entries, whole or not."""
        for group in _names(self.root / "entries"):
            yield from filter(_KEY.fullmatch, _names(self.root / "entries" / group))

    def check(self, key: str) -> str | None:
        """What is wrong with the entry of ``key``, or None; changes nothing."""
        path = self.path(key)
        try:
            self._read_checked(path, key, whole=True)
        except (FileNotFoundError, _Replaced):
            return "it is not there"
        except (StoreError, OSError) as error:
            return str(error)
        return None

    def _read(self, key: str, *, whole: bool) -> Entry | None:
        path = self.path(key)
        try:
            try:
                return self._read_checked(path, key, whole=whole)
            except _Replaced:
                return self._read_checked(path, key, whole=whole)
        except (FileNotFoundError, _Replaced):
            return None
        except SignatureRefused as error:
            self._ledger.refuse(key, str(self.root), str(error))
            if error.kind == "forged":
                self.quarantine(key, str(error))
        except (StoreError, NotADirectoryError) as error:
            self.quarantine(key, str(error))
        except OSError as error:
            if error.errno == errno.ELOOP:
                self.quarantine(key, "it is a symbolic link")
            else:
                logger.warning("entry %s of %s cannot be read: %s", key[:12], self.root, error)
        return None

    def _read_checked(self, path: Path, key: str, *, whole: bool) -> Entry:
        """Read through one open directory: what replaces the entry meanwhile is not mixed in."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(path, flags)
        try:
            text, signature = read_file(MANIFEST, folder, LARGEST), b""
            with suppress(FileNotFoundError):
                signature = read_file(SIGNATURE, folder, LONGEST)
            manifest = admit(self.signer, key, text, signature)
            if not whole:
                return Entry(manifest, b"", signature)
            artifact = read_file(ARTIFACT, folder, manifest.size)
            entry = check_artifact(manifest, artifact, signature)
            if self.writable:
                with suppress(OSError):
                    os.utime(folder)  # when it was last used, for pruning
            return entry
        except (StoreError, OSError) as error:
            if not same_directory(path, folder):
                raise _Replaced from None
            if isinstance(error, FileNotFoundError):
                raise StoreError(f"{error.filename} is missing") from None
            raise
        finally:
            os.close(folder)

    # Writing ---------------------------------------------------------------------------

    def put(self, entry: Entry, *, replace: bool = False) -> bool:
        """Write the entry aside, through to the disk, and move it into place in one step."""
        if not self.writable:
            return False
        path = self.path(entry.manifest.key)
        signature = signature_for(self.signer, entry)
        if signature is None or (path.exists() and not replace):
            return False
        try:
            made, held = self._claimed(entry.manifest.key)
            try:
                write_file(made / ARTIFACT, entry.artifact)
                write_file(made / MANIFEST, render(entry.manifest))
                if signature:
                    write_file(made / SIGNATURE, signature)
                sync(made)
                make_private(path.parent)
                if replace:
                    self.discard(entry.manifest.key)
                os.rename(made, path)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
            finally:
                os.close(held)
            sync(path.parent)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise StoreError(f"{self.root}: {error}") from error
        return True

    def _claimed(self, key: str) -> tuple[Path, int]:
        """A new directory to write in, and what holds it against whoever tidies up."""
        while True:
            made = self.root / "tmp" / f"{key}.{secrets.token_hex(8)}"
            make_private(made)
            with suppress(FileNotFoundError):
                held = claim(made)
                if held is not None:
                    return made, held

    def discard(self, key: str) -> None:
        """Take the entry of ``key`` away at once; whoever reads it just now may finish."""
        aside = self.root / "tmp" / f"{key}.{secrets.token_hex(8)}"
        with suppress(OSError):
            make_private(aside.parent)
            os.rename(self.path(key), aside)
            shutil.rmtree(aside, ignore_errors=True)

    def quarantine(self, key: str, reason: str) -> None:
        """Move what lies at ``key`` where nothing reads it, with ``reason`` beside it."""
        logger.warning("entry %s of %s is damaged: %s", key[:12], self.root, reason)
        if not self.writable:
            return
        aside = self.root / "quarantine" / f"{key}.{secrets.token_hex(4)}"
        with suppress(OSError):
            make_private(aside.parent)
            os.rename(self.path(key), aside)
            write_file(aside.with_name(f"{aside.name}.reason"), f"{reason}\n".encode())

    def lock(self, key: str) -> AbstractContextManager[bool]:
        """Hold ``locks/KEY.lock``, which the kernel gives up when its holder dies."""
        return file_lock(self.root / "locks", key, self.timeout) if self.writable else _UNLOCKED


_UNLOCKED = nullcontext(False)


class _Replaced(Exception):
    """The entry was taken away, or replaced, while it was read."""


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
