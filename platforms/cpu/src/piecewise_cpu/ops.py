"""Operators that no static plan can hold."""

from __future__ import annotations

__all__ = ["UNSAFE"]

# pylint: disable=duplicate-code
# As the simulated device's list begins: what a plan on a CPU cannot hold is this wheel's to say.
UNSAFE = (
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::repeat_interleave.Tensor",
)
"""Operators whose results decide what happens next, or how large they are."""
