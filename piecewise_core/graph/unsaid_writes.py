"""What operators write to without saying so in their schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["unsaid_writes"]

_STATISTICS = ("running_mean", "running_var")
_TRAINING: Mapping[str, str] = {
    "aten::batch_norm": "training",
    "aten::native_batch_norm": "training",
    "aten::cudnn_batch_norm": "training",
    "aten::miopen_batch_norm": "training",
    "aten::_batch_norm_impl_index": "training",
    "aten::instance_norm": "use_input_stats",
}
"""Operators that update running statistics, and the argument that asks them to."""

_ALWAYS = frozenset({
    "aten::batch_norm_update_stats", "aten::batch_norm_gather_stats",
    "aten::batch_norm_gather_stats_with_counts",
})  # fmt: skip
_COLLECTED = ("tensors", "output", "outputs", "output_tensor", "output_tensors", "output_lists")


def unsaid_writes(schema: Any, given: Callable[[int, str], Any]) -> tuple[str, ...]:
    """Names of the arguments that an operator writes to unsaid.

    ``given(place, name)``: what the call passes for an argument.
    """
    name = schema.name
    if name.startswith("c10d::"):
        return () if name == "c10d::send" else _COLLECTED
    if name in _ALWAYS:
        return _STATISTICS
    asked = _TRAINING.get(name)
    if asked is None:
        return ()
    place = next((i for i, a in enumerate(schema.arguments) if a.name == asked), None)
    return _STATISTICS if place is not None and given(place, asked) else ()
