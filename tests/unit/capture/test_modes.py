"""What modes tell a recorder."""

from __future__ import annotations

import pytest
import torch

from piecewise_core.capture.modes import Operators


class Told:
    """A watcher that changes nothing and keeps the names of what runs."""

    busy = False

    def __init__(self):
        self.names = []

    def is_splitting(self, op, target, args, kwargs):
        return False

    def before(self, fn, args, kwargs):
        self.names.append(fn.name())
        return fn, args, kwargs

    def looked_into(self, fn):
        return fn

    def saw(self, fn, args, kwargs, result):
        pass


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.to("meta"),
        lambda x: x.to(torch.float64),
        lambda x: x.double(),
        lambda x: x.to("meta", torch.float64),
        lambda x: x.to(torch.empty(1, device="meta")),
        lambda x: x.type_as(torch.empty(1, dtype=torch.float64)),
    ],
)
def test_a_conversion_is_seen_as_the_copy_that_it_makes(convert, mode):
    """In inference mode it arrives whole; what it brings to a device is known by the copy."""
    x, told = torch.ones(2), Told()
    with mode(), Operators(told):
        convert(x)
    assert "aten::_to_copy" in told.names
    assert not {n.partition(".")[0] for n in told.names} & {"aten::to", "aten::type_as"}


def test_a_conversion_to_what_a_tensor_is_gives_the_tensor():
    x, told = torch.ones(2), Told()
    with torch.inference_mode(), Operators(told):
        assert x.to("cpu") is x
        assert x.float() is x
