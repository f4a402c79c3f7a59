"""Signatures over what is kept: made by one key, believed by several.

What is signed is a statement, never bytes alone: the algorithm, the key's id, what kind of thing it
is, under which name it lies, its format version, and the digest of its manifest, which has the
digests of all the rest. So a signature that was good for one thing is good for no other.
"""

from __future__ import annotations

import hmac
import os
import re
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from piecewise_core.errors import ConfigError, SignatureRefused
from piecewise_core.store.keys import ID, Key, Keys, edwards, read_keys

__all__ = ["LONGEST", "Signer", "signer_of"]

LONGEST = 512
"""Bytes of a signature; a longer one is refused unread."""

_FORM = re.compile(
    rf"piecewise-signature 1 ([a-z0-9-]{{1,20}}) ({ID}) ((?:[0-9a-f]{{2}}){{32,64}})\n".encode()
)


class Signer:
    """Signs with one of ``keys`` and checks with all.

    ``required``: whether what has no signature that holds is refused. ``now``: gives Unix time.
    """

    def __init__(
        self, keys: Keys, *, required: bool = True, now: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._now = now
        self._public: dict[str, Any] = {}
        self.required = required

    @property
    def can_sign(self) -> bool:
        """Whether there is a key that signs, today."""
        key = self._keys.known.get(self._keys.signs)
        return key is not None and not key.expired(self._now())

    def sign(self, kind: str, name: str, version: int, manifest: bytes) -> bytes:
        """The signature, as it is kept, of ``manifest``. Raises ConfigError where none signs."""
        key = self._keys.known.get(self._keys.signs)
        if key is None:
            raise ConfigError("Config.sign_key: the file has no key that signs")
        if key.expired(self._now()):
            raise ConfigError(f"Config.sign_key: key {key.id} expired on {key.expires}")
        statement = _statement(key.algorithm, key.id, kind, name, version, manifest)
        if key.algorithm == "hmac-sha256":
            made = hmac.digest(key.parts["secret"], statement, "sha256")
        else:
            private = edwards().Ed25519PrivateKey.from_private_bytes(key.parts["private"])
            made = private.sign(statement)
        return f"piecewise-signature 1 {key.algorithm} {key.id} {made.hex()}\n".encode()

    def check(self, kind: str, name: str, version: int, manifest: bytes, signature: bytes) -> str:
        """The id of the key by which ``signature`` holds. Raises SignatureRefused."""
        if not signature:
            raise SignatureRefused("it is not signed").having(kind="unsigned")
        found = _FORM.fullmatch(signature) if len(signature) <= LONGEST else None
        if found is None:
            raise SignatureRefused("its signature has no form that there is").having(kind="forged")
        algorithm, id_, digits = (part.decode() for part in found.groups())
        key = self._keys.known.get(id_)
        if key is None:
            raise SignatureRefused(f"it is signed by key {id_}, which is not among those trusted")
        # The key says which algorithm: what a header claims never chooses one.
        if algorithm != key.algorithm:
            raise SignatureRefused(
                f"its signature is not of {key.algorithm}, as key {id_} is"
            ).having(kind="forged")
        statement = _statement(key.algorithm, id_, kind, name, version, manifest)
        if not self._holds(key, statement, bytes.fromhex(digits)):
            raise SignatureRefused(f"its signature by key {id_} does not hold").having(
                kind="forged"
            )
        if key.expired(self._now()):
            raise SignatureRefused(f"key {id_}, which signed it, expired on {key.expires}")
        return id_

    def _holds(self, key: Key, statement: bytes, signature: bytes) -> bool:
        if key.algorithm == "hmac-sha256":
            made = hmac.digest(key.parts["secret"], statement, "sha256")
            return hmac.compare_digest(made, signature)
        from cryptography.exceptions import InvalidSignature

        public = self._public.get(key.id)
        if public is None:
            public = edwards().Ed25519PublicKey.from_public_bytes(key.parts["public"])
            self._public[key.id] = public
        try:
            public.verify(signature, statement)
        except InvalidSignature:
            return False
        return True


def signer_of(
    trust: str, sign_key: str | os.PathLike[str] | None, environ: Mapping[str, str] = os.environ
) -> Signer | None:
    """The signer that ``Config.trust`` and ``Config.sign_key`` ask for. Raises ConfigError."""
    if sign_key is None:
        if trust == "signed":
            raise ConfigError(
                'Config.trust: "signed" needs sign_key, the path of a file of keys; `piecewise '
                "cache keygen FILE` makes one"
            )
        return None
    return Signer(read_keys(os.fspath(sign_key), environ), required=trust == "signed")


def _statement(
    algorithm: str, id_: str, kind: str, name: str, version: int, manifest: bytes
) -> bytes:
    digest = sha256(manifest).hexdigest()
    parts = ("piecewise-signature 1", algorithm, id_, kind, name, str(version), digest)
    return "\n".join(parts).encode()
