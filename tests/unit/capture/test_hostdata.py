"""Python data that a recorded run brings to a device is there already in the second run."""

from __future__ import annotations

import pytest
import torch

from piecewise_core.capture.hostdata import HostData

ATEN = torch.ops.aten


def _flat(args):
    return [t for a in args for t in (a if isinstance(a, list) else [a])]


@pytest.mark.parametrize(
    ("op", "call"),
    [
        (ATEN.where.self, lambda there, here: (there > 0, there, here)),
        (ATEN.copy_.default, lambda there, here: (there, here)),
        (ATEN.index.Tensor, lambda there, here: (there, [here.long()])),
    ],
)
def test_a_constant_of_the_cpu_that_an_operator_takes_along(op, call):
    data = HostData()
    there, literal = torch.empty(3, device="meta"), torch.tensor([0.0, 1.0, 2.0])
    args = call(there, literal)
    for tensor in [t for t in _flat(args) if t.device.type == "cpu"]:
        data.lifted(tensor, 0)
    data.brought(op, args, {}, there)
    _, changed, _ = data.instead(op, args, {})
    assert {t.device.type for t in _flat(changed)} == {"meta"}
