"""What a recorded function may ask of torch's modes: it is recorded in inference mode."""

from __future__ import annotations

import logging

import torch

from piecewise_core.graph.questions import MODES

__all__ = ["AskedModes"]

logger = logging.getLogger(__name__)


class AskedModes:
    """The questions for torch's modes among ``words``, the names in a function's code."""

    def __init__(self, words: frozenset[str] = frozenset()) -> None:
        self._asked = MODES & words
        self._said = False

    def __bool__(self) -> bool:
        return bool(self._asked)

    def differ(self) -> bool:
        """Whether a call is made where an answer may be another than while recording.

        Such calls run as written, which is logged once.
        """
        if not self._asked or torch.is_inference_mode_enabled():
            return False
        only_gradients = self._asked == {"is_grad_enabled"}
        if only_gradients and not torch.is_grad_enabled():
            return False  # no_grad answers as inference mode does
        if not self._said:
            logger.warning(
                "the function may ask %s, which answers otherwise outside torch.inference_mode(): "
                "such calls run as written; call it under torch.inference_mode()%s",
                " and ".join(sorted(self._asked)),
                " or torch.no_grad()" if only_gradients else "",
            )
        self._said = True
        return True
