"""What stands between the bytes of an entry and its use, wherever they come from.

The very bytes that were checked are handed on: nothing is read a second time.
"""

from __future__ import annotations

from piecewise_core.errors import SignatureRefused, StoreError
from piecewise_core.store.entry import SCHEMA, Entry, Manifest
from piecewise_core.store.manifest import parse, render
from piecewise_core.store.signing import Signer

__all__ = ["admit", "signature_for"]

_KIND = "entry"


def admit(signer: Signer | None, key: str, text: bytes, signature: bytes) -> Manifest:
    """The manifest of ``key`` in ``text``, whose signature is checked before it is read.

    Raises SignatureRefused, and StoreError for what is no manifest, or that of another key.
    """
    sealed = signer is not None and signer.required
    if signer is not None and sealed:
        signer.check(_KIND, key, SCHEMA, text, signature)
    manifest = parse(text, sealed=sealed)
    if manifest.key != key:
        raise StoreError(f"the manifest is that of {manifest.key}")
    return manifest


def signature_for(signer: Signer | None, entry: Entry) -> bytes | None:
    """The signature to keep ``entry`` by, nothing for none; None: without one it is not kept.

    One that it has and that holds stays.
    """
    if signer is None:
        return entry.signature
    key, text = entry.manifest.key, render(entry.manifest)
    try:
        signer.check(_KIND, key, SCHEMA, text, entry.signature)
    except SignatureRefused:
        if signer.can_sign:
            return signer.sign(_KIND, key, SCHEMA, text)
        return None if signer.required else b""
    return entry.signature
