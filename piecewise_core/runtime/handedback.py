"""Results of earlier calls that somebody may still hold: no later one lies in their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["HandedBack"]


class HandedBack:
    """Remembers, weakly, the memory of one compared call's results until the next."""

    def __init__(self) -> None:
        self._before: dict[int, StorageWeakRef] = {}

    def again(self, result: Mapping[str, Any], allowed: Callable[[], Iterable[Any]]) -> str | None:
        """The path of a result that lies in the memory of an earlier one; None where none does.

        ``result``: by path, as of ``kept``. ``allowed``: gives the tensors in whose memory it may
        lie; asked for only where a result lies in an earlier one's.
        """
        plain = {p: t for p, t in result.items() if _is_plain(t)}
        found = [p for p, t in plain.items() if self._holds(_address(t))]
        self._before = {
            _address(t): StorageWeakRef(t.untyped_storage())  # type: ignore[no-untyped-call]
            for t in plain.values()
        }
        may = {_address(t) for t in allowed() if _is_plain(t)} if found else set()
        return next((p for p in found if _address(plain[p]) not in may), None)

    def _holds(self, address: int) -> bool:
        """Whether that memory is an earlier result's, which was not let go of."""
        earlier = self._before.get(address)
        return earlier is not None and not earlier.expired()  # type: ignore[no-untyped-call]


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not value.is_meta
        and value.untyped_storage().nbytes() > 0
    )


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
