"""The file: a zip archive whose every byte is accounted for before anything in it is used.

``manifest.json`` comes first and lists every other member with its size and checksum; it carries a
checksum of its own. ``signature``, if there is one, is over its bytes. Names are of a fixed form,
so that none is ever a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piecewise_core.errors import SignatureRefused, StoreError
from piecewise_core.store.signing import LONGEST, Signer

__all__ = ["SCHEMA", "read_container", "write_container"]

SCHEMA = 2
"""Version of the form of bundles."""

_MANIFEST = "manifest.json"
_SIGNATURE = "signature"
_KIND = "bundle"
_NAME = re.compile(
    r"model\.json|regions/\d{1,6}\.(json|pt)|entries/[0-9a-f]{64}/(manifest\.json|artifact)"
    r"|native/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,150}"
)
_MOST_MANIFEST = 64 << 20
_MOST = 16 << 30
_MOST_RATIO = 1000
"""Text compresses to a tenth or so; what grows more than this was made to fill memory."""


def write_container(
    path: Path, about: Mapping[str, Any], members: Mapping[str, bytes], signer: Signer | None = None
) -> None:
    """Write the file, whole or not at all. ``about``: JSON for the manifest. Raises StoreError.

    ``signer``: signs the manifest, where it can.
    """
    listed = {name: [len(data), _digest(data)] for name, data in members.items()}
    head = {"schema": SCHEMA, "about": dict(about), "members": listed}
    head["checksum"] = _checksum(head)
    first = {_MANIFEST: json.dumps(head, indent=1).encode()}
    if signer is not None and signer.can_sign:
        first[_SIGNATURE] = signer.sign(_KIND, _KIND, SCHEMA, first[_MANIFEST])
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                _write(file, {**first, **members})
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o644)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise StoreError(f"the bundle cannot be written to {path}: {error}") from error


def _write(file: Any, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            packed = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), data, packed)


def read_container(
    path: Path, signer: Signer | None = None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest's ``about``, and every member by name. Raises StoreError.

    ``signer``: where it requires a signature, nothing is read but the manifest's bytes before it
    holds; else SignatureRefused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive, signer)
    except FileNotFoundError:
        raise StoreError(f"there is no bundle {path}") from None
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise StoreError(f"{path} is no bundle, or a damaged one: {error}") from error
    except (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, EOFError) as error:
        # What zipfile and json raise for headers and text that nothing here writes.
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    except zlib.error as error:
        raise _damaged(path, str(error)) from error


def _read(
    path: Path, archive: zipfile.ZipFile, signer: Signer | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise _damaged(path, "it has two members of one name")
    if _MANIFEST not in members:
        raise StoreError(f"{path} is no bundle: it has no {_MANIFEST}")
    text = _member(path, archive, members[_MANIFEST], _MOST_MANIFEST)
    sealed = members.pop(_SIGNATURE, None)
    if signer is not None and signer.required:
        signature = b"" if sealed is None else _member(path, archive, sealed, LONGEST)
        _check_signature(path, signer, text, signature)
    head = json.loads(text)
    _check_head(path, head)
    listed = head["members"]
    if set(members) != {_MANIFEST, *listed}:
        odd = sorted(set(members) ^ {_MANIFEST, *listed})
        raise _damaged(path, f"its members are not those it lists: {odd[:3]}")
    _check_sizes(path, members, listed)
    found = {}
    for name, (size, digest) in listed.items():
        data = _member(path, archive, members[name], size)
        if len(data) != size or _digest(data) != digest:
            raise _damaged(path, f"{name} is not what was written")
        found[name] = data
    return head["about"], found


def _check_signature(path: Path, signer: Signer, text: bytes, signature: bytes) -> None:
    try:
        signer.check(_KIND, _KIND, SCHEMA, text, signature)
    except SignatureRefused as error:
        why = f"the bundle {path} is not loaded: {error}"
        raise SignatureRefused(why).having(kind=error.kind) from None


def _check_head(path: Path, head: Any) -> None:
    if not isinstance(head, dict) or set(head) != {"schema", "about", "members", "checksum"}:
        raise _damaged(path, f"its {_MANIFEST} is of another form")
    if head["checksum"] != _checksum({k: v for k, v in head.items() if k != "checksum"}):
        raise _damaged(path, f"its {_MANIFEST} is not what was written")
    if head["schema"] != SCHEMA:
        raise StoreError(
            f"{path} is a bundle of form {head['schema']}, and this version reads form {SCHEMA}; "
            "save it again with this version"
        )


def _check_sizes(
    path: Path, members: Mapping[str, zipfile.ZipInfo], listed: Mapping[str, Any]
) -> None:
    for name, entry in listed.items():
        if not _NAME.fullmatch(name):
            raise _damaged(path, f"it lists {name!r:.80}, which no bundle holds")
        if members[name].file_size != entry[0]:
            raise _damaged(path, f"{name} has another size than it lists")
    whole = sum(info.file_size for info in members.values())
    packed = sum(info.compress_size for info in members.values())
    if whole > _MOST or whole > _MOST_RATIO * (packed + 1024):
        raise _damaged(path, f"it would unpack to {whole} bytes")


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """A member's bytes; ``most`` bounds what is unpacked, whatever the headers say."""
    if info.file_size > most:
        raise _damaged(path, f"{info.filename} is too large")
    with archive.open(info) as file:
        return file.read(most + 1)


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(f"the bundle {path} is damaged: {why}; save it again")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _checksum(head: Mapping[str, Any]) -> str:
    return _digest(json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
