"""One compiled piece on disk together with files of Triton's cache: a zip archive.

Stored, not compressed, and without times: equal content gives equal bytes. Files of one content
lie in it once.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping

__all__ = ["pack", "unpack"]

_PIECE, _NAMES, _FILES = "inductor", "triton.json", "triton"


def pack(piece: bytes, files: Mapping[str, bytes]) -> bytes:
    """The archive of ``piece``, Inductor's artifact, and ``files``, name -> content."""
    places: dict[bytes, int] = {}
    names = {name: places.setdefault(files[name], len(places)) for name in sorted(files)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(_PIECE), piece)
        archive.writestr(zipfile.ZipInfo(_NAMES), json.dumps(names))
        for content, place in places.items():
            archive.writestr(zipfile.ZipInfo(f"{_FILES}/{place}"), content)
    return buffer.getvalue()


def unpack(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """What was packed; ``data`` itself and no files where it is a piece as it is.

    Raises ValueError, or what zipfile raises, for a damaged archive.
    """
    if not data.startswith(b"PK"):
        return data, {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if _PIECE not in {member.filename for member in members}:
            return data, {}  # native code, an archive of its own
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("compiled piece: an archive of this kind has nothing compressed")
        content = {member.filename: archive.read(member) for member in members}
    return content[_PIECE], _files(content)


def _files(content: Mapping[str, bytes]) -> dict[str, bytes]:
    try:
        names = json.loads(content[_NAMES])
        return {name: content[f"{_FILES}/{place}"] for name, place in names.items()}
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"compiled piece: its list of files is damaged ({error!r})") from error
