"""A manifest as text, and the one strict way back.

The text is JSON in one fixed rendering, with a checksum over itself: whatever is not byte for
byte what ``render`` writes is refused. So no flipped byte passes, and neither do duplicate keys,
unknown fields or numbers written in another way.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, fields
from typing import Any

from piecewise_core.errors import PiecewiseError, StoreError
from piecewise_core.ranges import Box, Range
from piecewise_core.store.entry import SCHEMA, Entry, Manifest, key_of

__all__ = ["LARGEST", "check_artifact", "parse", "render"]

LARGEST = 1 << 22
"""Bytes of a manifest; a larger one is refused unread."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]+")
_SIZE = 1 << 63
_LONGEST = 1 << 24
"""The largest modulus of a range that is read."""
_FIELDS = frozenset(f.name for f in fields(Manifest))


def render(manifest: Manifest) -> bytes:
    """The manifest as a file's content."""
    data = asdict(manifest) | {
        "factors": dict(manifest.factors),
        "box": _ends(manifest.box),
        "serves": None if manifest.serves is None else _ends(manifest.serves),
    }
    return _written(data)


def parse(data: bytes, *, sealed: bool = False) -> Manifest:
    """The manifest that ``data`` is. Raises StoreError saying what is wrong with it.

    ``sealed``: a signature of these bytes holds, so that their form and checksum say no more.
    """
    if len(data) > LARGEST:
        raise StoreError(f"a manifest of {len(data)} bytes; {LARGEST} is the most there can be")
    try:
        whole = json.loads(data.decode("ascii"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"the manifest is not JSON: {error}") from error
    if not isinstance(whole, dict) or whole.keys() != {"manifest", "schema", "sha256"}:
        raise StoreError("the manifest has other parts than manifest, schema and sha256")
    if whole["schema"] != SCHEMA or type(whole["schema"]) is not int:
        raise StoreError(f"the manifest's schema is {whole['schema']!r}; this reads {SCHEMA}")
    found = whole["manifest"]
    if not isinstance(found, dict) or found.keys() != _FIELDS:
        raise StoreError("the manifest's fields are not those of its schema")
    manifest = _checked(found)
    if not sealed and _written(found) != data:
        raise StoreError("the manifest does not have the checksum that it names")
    return manifest


def check_artifact(manifest: Manifest, artifact: bytes, signature: bytes = b"") -> Entry:
    """The entry of them. Raises StoreError when the artifact is not what the manifest names."""
    if len(artifact) != manifest.size:
        raise StoreError(f"the artifact has {len(artifact)} bytes and not {manifest.size}")
    found = hashlib.sha256(artifact).hexdigest()
    if found != manifest.sha256:
        raise StoreError(f"the artifact's SHA-256 is {found} and not {manifest.sha256}")
    return Entry(manifest, artifact, signature)


def _written(data: Any) -> bytes:
    digest = hashlib.sha256(_json(data).encode()).hexdigest()
    whole = {"manifest": data, "schema": SCHEMA, "sha256": digest}
    return (_json(whole) + "\n").encode("ascii")


def _json(data: Any) -> str:
    return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=True)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _checked(found: dict[str, Any]) -> Manifest:
    """Each field has its type and a value that can be."""
    for name in ("key", "why", "adaptor", "sha256", "run", "label"):
        _want(isinstance(found[name], str), name, found[name])
    for name in ("key", "sha256"):
        _want(_DIGEST.fullmatch(found[name]) is not None, name, found[name])
    for name in ("size", "made"):
        _want(type(found[name]) is int and 0 <= found[name] < _SIZE, name, found[name])
    seconds = found["seconds"]
    _want(type(seconds) is float and math.isfinite(seconds) and seconds >= 0, "seconds", seconds)
    factors = found["factors"]
    text = isinstance(factors, dict) and all(isinstance(v, str) for v in factors.values())
    _want(text, "factors", factors)
    if key_of(factors) != found["key"]:
        raise StoreError("the manifest's factors are not those of its key")
    box = _box("box", found["box"])
    serves = None if found["serves"] is None else _box("serves", found["serves"])
    if serves is not None and (
        len(serves.ranges) != len(box.ranges) or serves.intersect(box) != serves
    ):
        raise StoreError(f"the manifest's code is for sizes {serves}, outside of {box}")
    return Manifest(**(found | {"box": box, "serves": serves}))


def _box(name: str, ends: Any) -> Box:
    _want(isinstance(ends, list), name, ends)
    ranges = []
    for pair in ends:
        ok = isinstance(pair, list) and len(pair) in (2, 4)
        ok = ok and all(type(end) is int for end in pair[:3])
        _want(ok and 0 <= pair[0] <= pair[1] < _SIZE, name, pair)
        some = pair[2:]
        _want(not some or (0 < some[0] <= _LONGEST and _is_hex(some[1], some[0])), name, pair)
        try:
            ranges.append(Range.read(pair))
        except (PiecewiseError, ValueError) as error:
            raise StoreError(f"the manifest's {name}: {error}") from error
    return Box(tuple(ranges))


def _is_hex(text: Any, digits: int) -> bool:
    return isinstance(text, str) and _HEX.fullmatch(text) is not None and len(text) * 4 < digits + 4


def _want(ok: bool, name: str, value: object) -> None:
    if not ok:
        raise StoreError(f"the manifest's {name} cannot be {str(value)[:80]!r}")


def _ends(box: Box) -> list[list[int | str]]:
    return [r.plain for r in box.ranges]
