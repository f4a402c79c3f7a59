"""What the sweeps take for equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sweeps.judging import Wrong, same


class Layer:
    def __init__(self, keys: torch.Tensor) -> None:
        self.keys, self.seen = keys, 3


class Cache:
    """No container that anybody knows, and no object that equals another."""

    def __init__(self, *keys: torch.Tensor) -> None:
        self.layers, self.owner = [Layer(k) for k in keys], self


def result(*keys: torch.Tensor) -> dict[str, Any]:
    return {"out": torch.ones(2), "cache": Cache(*keys)}


def test_objects_that_hold_tensors_are_compared_by_them() -> None:
    same(result(torch.ones(3), torch.zeros(2)), result(torch.ones(3), torch.zeros(2)))


@pytest.mark.parametrize(
    "other",
    [
        result(torch.ones(3), torch.ones(2)),
        result(torch.ones(3)),
        result(torch.ones(3), torch.zeros(1, 2)),
        {"out": torch.ones(2), "cache": Layer(torch.ones(3))},
    ],
    ids=["numbers", "layers", "shape", "kind"],
)
def test_objects_that_hold_other_tensors_are_wrong(other: dict[str, Any]) -> None:
    with pytest.raises(Wrong):
        same(other, result(torch.ones(3), torch.zeros(2)))


def test_what_an_object_notes_beside_tensors_counts() -> None:
    other = result(torch.ones(3))
    other["cache"].layers[0].seen = 4
    with pytest.raises(Wrong, match="4"):
        same(other, result(torch.ones(3)))
