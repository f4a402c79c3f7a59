"""A file of keys: those whose signatures hold, and the one that signs.

JSON: ``{"signs": ID, "keys": {ID: {"algorithm": ..., "secret": HEX, "expires": "2027-12-31"}}}``.
Keys of ed25519 have ``public`` and, where they sign, ``private`` in place of ``secret``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from piecewise_core.errors import ConfigError
from piecewise_core.ownership import is_ours

__all__ = ["ALGORITHMS", "ID", "Key", "Keys", "edwards", "key_file", "new_key", "read_keys"]

ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "hmac-sha256": ("secret",),
    "ed25519": ("public", "private"),
}
"""Algorithm -> the parts that its keys have, each 32 bytes; ``private`` only where it signs."""

ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_LARGEST = 1 << 20
_BYTES = 32


@dataclass(frozen=True)
class Key:
    """One key. ``expires``: the last day, in UTC, on which it signs and its signatures hold."""

    id: str
    algorithm: str
    expires: date | None
    parts: Mapping[str, bytes] = field(repr=False)

    @property
    def can_sign(self) -> bool:
        """Whether its secret part is there."""
        return bool(self.parts.keys() & {"secret", "private"})

    def public(self) -> Key:
        """What verifies and cannot sign; only of keys that have a public part."""
        return replace(self, parts={"public": self.parts["public"]})

    def expired(self, now: float) -> bool:
        """Whether its last day is over at ``now``, Unix time."""
        today = datetime.fromtimestamp(now, timezone.utc).date()
        return self.expires is not None and today > self.expires

    def plain(self) -> dict[str, Any]:
        """As the file has it."""
        parts: dict[str, Any] = {name: part.hex() for name, part in self.parts.items()}
        ends = {} if self.expires is None else {"expires": self.expires.isoformat()}
        return {"algorithm": self.algorithm, **parts, **ends}


@dataclass(frozen=True)
class Keys:
    """Keys by id. ``signs``: the id of the one that signs, "" for none."""

    known: Mapping[str, Key]
    signs: str

    def text(self) -> str:
        """As the file has it."""
        keys = {id_: key.plain() for id_, key in self.known.items()}
        return json.dumps({"signs": self.signs, "keys": keys}, indent=1) + "\n"


def key_file(sign_key: str, environ: Mapping[str, str]) -> tuple[Path, str]:
    """The file that ``Config.sign_key`` names, and the id of the key that it names in it, or "".

    What has neither a separator nor the suffix ``.json`` is an id, in the user's own file of keys.
    """
    if os.sep in sign_key or sign_key.endswith(".json"):
        return Path(os.path.expanduser(sign_key)), ""
    base = environ.get("XDG_CONFIG_HOME", "")
    home = base if os.path.isabs(base) else os.path.expanduser("~/.config")
    return Path(home, "piecewise", "keys.json"), sign_key


def read_keys(sign_key: str, environ: Mapping[str, str]) -> Keys:
    """The keys that ``Config.sign_key`` names. Raises ConfigError, which shows no key.

    Refused is what others could have written, and a file with secrets that others can read. As
    PostgreSQL has it, root's file may be readable by its group: so orchestrators mount secrets.
    """
    path, chosen = key_file(sign_key, environ)
    try:
        text, found = _read(path)
    except OSError as error:
        # The value is not shown: somebody may have put the key itself there.
        raise ConfigError(
            f"Config.sign_key names no file that can be read ({error.strerror}); give the path of "
            "a file of keys, or the id of a key in ~/.config/piecewise/keys.json; `piecewise cache "
            "keygen FILE` makes one"
        ) from None
    _refuse_loose(path, found, secret=False)
    keys = _parsed(path, text)
    _refuse_loose(path, found, secret=any(key.can_sign for key in keys.known.values()))
    if chosen and chosen not in keys.known:
        raise ConfigError(f"Config.sign_key: {path} has no key of that id; it has {[*keys.known]}")
    signs = chosen if chosen and keys.known[chosen].can_sign else "" if chosen else keys.signs
    return Keys(keys.known, signs)


def new_key(id_: str, algorithm: str, days: int | None, now: float) -> Key:
    """A new key of ``algorithm``, that holds for ``days``. Raises ConfigError."""
    ends = None
    if days is not None:
        ends = datetime.fromtimestamp(now, timezone.utc).date() + timedelta(days=days)
    secret = secrets.token_bytes(_BYTES)
    if algorithm == "hmac-sha256":
        return Key(id_, algorithm, ends, {"secret": secret})
    public = edwards().Ed25519PrivateKey.from_private_bytes(secret).public_key()
    return Key(id_, algorithm, ends, {"public": public.public_bytes_raw(), "private": secret})


def edwards() -> Any:
    """The module of ``cryptography`` for ed25519. Raises ConfigError where it is missing."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConfigError(
            "keys of ed25519 need cryptography, which is not installed; "
            "pip install 'piecewise-core[signed]', or use keys of hmac-sha256"
        ) from error
    return ed25519


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is no plain file")
        return file.read(_LARGEST), found


def _refuse_loose(path: Path, found: os.stat_result, *, secret: bool) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if not is_ours(found):
        raise ConfigError(
            f"Config.sign_key: {path} belongs to user {found.st_uid}; keys are read from files of "
            "this user or root: chown it, or copy it with mode 0600"
        )
    loose = 0o022 if not secret else 0o027 if found.st_uid == 0 else 0o077
    if mode & loose:
        what = "write" if mode & 0o022 else "read"
        raise ConfigError(
            f"Config.sign_key: {path} has mode {mode:04o}, so that other users can {what} it; "
            f"chmod 600 {path}, and make new keys if it was so for long"
        )


def _parsed(path: Path, text: bytes) -> Keys:
    try:
        data = json.loads(text)
        keys = {id_: _key(id_, found) for id_, found in data["keys"].items()}
        signs = data["signs"]
        if data.keys() != {"signs", "keys"} or not (signs == "" or signs in keys):
            raise ValueError("it has other parts than keys, and signs, the id of one or empty")
        if signs and not keys[signs].can_sign:
            raise ValueError(f"key {signs} is to sign, and its secret part is not there")
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # json's errors show no part of the text, and none here shows a value.
        raise ConfigError(
            f"Config.sign_key: {path} is no file of keys ({type(error).__name__}: {error}); "
            "`piecewise cache keygen FILE` makes one"
        ) from None
    return Keys(keys, signs)


def _key(id_: str, found: Mapping[str, Any]) -> Key:
    if re.fullmatch(ID, id_) is None:
        raise ValueError("an id has letters, digits, dots, dashes and underscores, 64 at most")
    wanted = ALGORITHMS.get(found["algorithm"])
    if wanted is None:
        raise ValueError(f"key {id_} is of none of {', '.join(ALGORITHMS)}")
    if not {"algorithm", wanted[0]} <= found.keys() <= {"algorithm", "expires", *wanted}:
        raise ValueError(f"key {id_} has other parts than algorithm, expires and {wanted}")
    parts = {name: _part(id_, name, found[name]) for name in wanted if name in found}
    expires = found.get("expires")
    key = Key(id_, found["algorithm"], None if expires is None else _day(id_, expires), parts)
    if "private" in parts:
        private = edwards().Ed25519PrivateKey.from_private_bytes(parts["private"])
        if private.public_key().public_bytes_raw() != parts["public"]:
            raise ValueError(f"the public part of key {id_} is not that of its private part")
    return key


def _part(id_: str, name: str, text: Any) -> bytes:
    if not isinstance(text, str) or re.fullmatch(rf"[0-9a-f]{{{2 * _BYTES}}}", text) is None:
        raise ValueError(f"{name} of key {id_} is not {_BYTES} bytes in hexadecimal digits")
    return bytes.fromhex(text)


def _day(id_: str, text: Any) -> date:
    try:
        return date.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(f"expires of key {id_} is no date like 2027-12-31") from None
