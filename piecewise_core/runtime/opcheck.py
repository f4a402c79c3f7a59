"""Compares an operator's results with what its fake kernel promised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from piecewise_core.errors import OpContractBroken
from piecewise_core.graph.memory import values

__all__ = ["OpCheck"]


class OpCheck:
    """Checks one splitting op, called ``op``, in piece ``piece``; ``source`` is its file:line."""

    def __init__(self, op: str, source: str, piece: int) -> None:
        self._op = op
        self._source = source
        self._piece = piece

    def __call__(self, result: Any, promised: Sequence[tuple[Any, Any, Any]]) -> None:
        """Raise OpContractBroken when dtype, shape or strides differ.

        ``promised``: (dtype, shape, strides) of each tensor in ``result``.
        """
        tensors = [v for v in values(result) if isinstance(v, torch.Tensor)]
        if len(tensors) != len(promised):
            self._refuse(f"{len(promised)} tensors", f"{len(tensors)}")
        for tensor, (dtype, shape, stride) in zip(tensors, promised, strict=True):
            if tensor.dtype is not dtype or tuple(tensor.shape) != tuple(shape):
                self._refuse(f"{dtype} {shape}", f"{tensor.dtype} {tuple(tensor.shape)}")
            matters = [i for i, size in enumerate(shape) if size > 1]
            if tensor.numel() and any(tensor.stride(i) != stride[i] for i in matters):
                self._refuse(f"strides {stride}", f"{tensor.stride()}")

    def _refuse(self, promised: str, got: str) -> NoReturn:
        where = f"piece {self._piece}{', ' + self._source if self._source else ''}"
        raise OpContractBroken(
            f"splitting op {self._op} ({where}) returned {got} where its fake kernel promises "
            f"{promised}; correct its register_fake, or return .contiguous()"
        )
