"""What goes between a process and its compile worker."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

__all__ = ["Answer", "Request", "read_message", "write_message"]


@dataclass(frozen=True)
class Request:
    """One job; an empty one has the worker import and look up what any other needs.

    ``platform``: by name. ``config``: as JSON. ``key``: as the adaptor sees it.

    ``state``: torch's switches as they were where the job was made, which the worker sets.
    ``surroundings``: the factors of the compile store's key that may differ between processes; the
    worker compiles nothing where its own are others.
    """

    serial: int
    platform: str
    config: str
    key: str
    job: bytes
    state: dict[str, Any]
    surroundings: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What became of a request: ``handle`` for the adaptor's ``load``, or ``error``.

    ``serves``: range ends per dim over which the code holds, None when nowhere. ``why``: the
    reason when that is not the whole box.
    """

    serial: int
    handle: bytes | None
    error: str
    seconds: float
    serves: list[list[int | str]] | None = None
    why: str = ""


def write_message(stream: BinaryIO, message: Any) -> None:
    """Write one message and flush."""
    data = pickle.dumps(message)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def read_message(stream: BinaryIO) -> Any:
    """Read one message; None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    data = stream.read(length)
    return pickle.loads(data) if len(data) == length else None
