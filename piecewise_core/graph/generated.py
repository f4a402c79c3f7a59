"""Functions made of generated text: equal text, which objects of many calls give, compiles once."""

from __future__ import annotations

import functools
from types import CodeType
from typing import Any

__all__ = ["define"]


def define(source: str, filename: str, names: dict[str, Any]) -> None:
    """Run ``source``, which defines functions over ``names``, in these.

    Not for what Dynamo sees: functions of one code share what it compiled.
    """
    exec(_compiled(source, filename), names)


@functools.lru_cache(32)  # texts over large models are long
def _compiled(source: str, filename: str) -> CodeType:
    return compile(source, filename, "exec")
