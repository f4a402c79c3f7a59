"""Entries in one zip file, to carry from a machine to another of its kind."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from piecewise_core.errors import StoreError
from piecewise_core.store.admission import admit
from piecewise_core.store.entry import Entry, Manifest
from piecewise_core.store.files import ARTIFACT, MANIFEST, SIGNATURE
from piecewise_core.store.manifest import LARGEST, check_artifact, render
from piecewise_core.store.signing import LONGEST, Signer

__all__ = ["Archive", "write_archive"]

_NAME = re.compile(rf"([0-9a-f]{{64}})/({re.escape(MANIFEST)}|{ARTIFACT}|{SIGNATURE})")
_DATE = (1980, 1, 1, 0, 0, 0)
_MEMBERS = 1 << 20
"""The most members that an archive may have."""


def write_archive(path: Path, entries: Iterable[Entry]) -> int:
    """Write ``entries`` to a new file at ``path``; returns how many. Equal entries, equal bytes.

    Raises StoreError when there is a file already, or it cannot be written.
    """
    count = 0
    try:
        with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
            for entry in entries:
                key = entry.manifest.key
                for name, data in (
                    (MANIFEST, render(entry.manifest)),
                    (ARTIFACT, entry.artifact),
                    (SIGNATURE, entry.signature),
                ):
                    if name == SIGNATURE and not data:
                        continue
                    member = zipfile.ZipInfo(f"{key}/{name}", _DATE)
                    member.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(member, data)
                count += 1
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error
    return count


class Archive:
    """A zip file of entries, open to read. Nothing in it is trusted: names, sizes, contents.

    ``limit``: the most bytes that all artifacts may unpack to. ``signer``: says whether entries
    must be signed.
    """

    def __init__(self, file: zipfile.ZipFile, limit: int, signer: Signer | None = None) -> None:
        self._file = file
        self._limit = limit
        self._signer = signer
        self._members = self._checked_members()

    @classmethod
    @contextmanager
    def open(cls, path: Path, limit: int, signer: Signer | None = None) -> Iterator[Archive]:
        """The archive at ``path``. Raises StoreError saying what is wrong with it."""
        with _faults(path), zipfile.ZipFile(path) as file:
            yield cls(file, limit, signer)

    def manifests(self) -> Iterator[Manifest]:
        """Each entry's manifest, checked by itself."""
        for key in sorted({key for key, _ in self._members}):
            yield admit(self._signer, key, self._read(key, MANIFEST, LARGEST), self._sealed(key))

    def entries(self) -> Iterator[Entry]:
        """Each entry, checked. Raises StoreError at the first that is not what it says."""
        total = 0
        for manifest in self.manifests():
            total += manifest.size
            if total > self._limit:
                raise StoreError(
                    f"the artifacts unpack to more than {self._limit} bytes, the store's limit"
                )
            artifact = self._read(manifest.key, ARTIFACT, manifest.size)
            yield check_artifact(manifest, artifact, self._sealed(manifest.key))

    def _sealed(self, key: str) -> bytes:
        """The signature of an entry, or nothing."""
        return self._read(key, SIGNATURE, LONGEST) if (key, SIGNATURE) in self._members else b""

    def _checked_members(self) -> dict[tuple[str, str], zipfile.ZipInfo]:
        listed = self._file.infolist()
        if len(listed) > _MEMBERS:
            raise StoreError(f"the archive has {len(listed)} members; {_MEMBERS} is the most")
        found: dict[tuple[str, str], zipfile.ZipInfo] = {}
        for member in listed:
            name = _NAME.fullmatch(member.filename)
            if name is None:
                raise StoreError(f"the archive has a member {member.filename[:80]!r}")
            place = (name[1], name[2])
            if place in found:
                raise StoreError(f"the archive has {member.filename} twice")
            found[place] = member
        for key, part in found:
            if (key, ARTIFACT if part == MANIFEST else MANIFEST) not in found:
                raise StoreError(f"the archive has {part} of {key} and nothing else of it")
        return found

    def _read(self, key: str, name: str, limit: int) -> bytes:
        """A member's content, of which no more than ``limit`` bytes are unpacked."""
        with self._file.open(self._members[key, name]) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise StoreError(f"{name} of {key} unpacks to more than {limit} bytes")
        return data


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Whatever a broken zip file makes the reader raise is a StoreError."""
    try:
        yield
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,  # a compression that this Python lacks
        RuntimeError,  # a member with a password
        ValueError,
    ) as error:
        raise StoreError(f"{path} is no archive of entries: {error}") from error
