"""Results of earlier calls that somebody may still hold: no later one lies in their memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["HandedBack"]


class HandedBack:
    """Remembers, weakly, the memory of one compared call's results until the next."""

    def __init__(self) -> None:
        self._before: dict[int, StorageWeakRef] = {}

    def again(
        self, result: Mapping[str, Any], wanted: Mapping[str, Any], given: Iterable[torch.Tensor]
    ) -> str | None:
        """The path of a result that lies in the memory of an earlier one; None where none does.

        ``result``: by path, as of ``kept``. ``wanted``: as the model gave it: where its own lie in
        memory that it holds, so may these. ``given``: the call's tensors and the model's.
        """
        allowed = {_address(t) for t in (*given, *wanted.values()) if _is_plain(t)}
        own = {p: t for p, t in result.items() if _is_plain(t) and _address(t) not in allowed}
        found = next((p for p, t in own.items() if self._holds(_address(t))), None)
        self._before = {
            _address(t): StorageWeakRef(t.untyped_storage())  # type: ignore[no-untyped-call]
            for t in own.values()
        }
        return found

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
