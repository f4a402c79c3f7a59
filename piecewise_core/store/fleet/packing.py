"""An entry as one object: a line with three sizes, then manifest, signature and artifact."""

from __future__ import annotations

import re

from piecewise_core.errors import StoreError
from piecewise_core.store.admission import admit
from piecewise_core.store.entry import SCHEMA, Entry
from piecewise_core.store.manifest import LARGEST, check_artifact, render
from piecewise_core.store.signing import LONGEST, Signer

__all__ = ["FOLDER", "MOST", "key_in", "name_of", "pack", "unpack"]

MOST = 1 << 30
"""Bytes of an object; a larger one is neither published nor taken."""

FOLDER = f"v{SCHEMA}/entries"
"""Where entries are."""

_HEAD = re.compile(rb"piecewise-entry 1 (\d{1,10}) (\d{1,10}) (\d{1,10})\n")
_KEY = re.compile(r"[0-9a-f]{64}")


def name_of(key: str) -> str:
    """The object that holds the entry of ``key``."""
    return f"{FOLDER}/{key[:2]}/{key}"


def key_in(name: str) -> str | None:
    """The key of the entry in an object, by its name; None for others."""
    key = name.rpartition("/")[2]
    return key if _KEY.fullmatch(key) and name == name_of(key) else None


def pack(entry: Entry, signature: bytes) -> bytes:
    """The object. Raises StoreError for one that is too large."""
    text = render(entry.manifest)
    parts = (text, signature, entry.artifact)
    head = b"piecewise-entry 1 %d %d %d\n" % tuple(map(len, parts))
    data = head + b"".join(parts)
    if len(data) > MOST:
        raise StoreError(f"it has {len(data)} bytes; {MOST} is the most")
    return data


def unpack(signer: Signer | None, key: str, data: bytes) -> Entry:
    """The entry of ``key``, checked as a local one is. Raises SignatureRefused and StoreError."""
    head = _HEAD.match(data[:64])
    sizes = [] if head is None else [int(size) for size in head.groups()]
    if head is None or sum(sizes) + head.end() != len(data):
        raise StoreError("the object has no form that there is, or is cut off")
    if sizes[0] > LARGEST or sizes[1] > LONGEST:
        raise StoreError("the manifest or its signature is larger than any can be")
    text_end, signature_end = head.end() + sizes[0], head.end() + sizes[0] + sizes[1]
    signature = data[text_end:signature_end]
    manifest = admit(signer, key, data[head.end() : text_end], signature)
    return check_artifact(manifest, data[signature_end:], signature)
