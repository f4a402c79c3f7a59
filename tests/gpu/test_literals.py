"""Tensors that forward makes of Python data, on a device: served right, and captured."""

from __future__ import annotations

import pytest
import torch

from tests.integration.literal_programs import PROGRAMS

pytestmark = pytest.mark.gpu

WAYS = ["eager", "inductor", "recorded"]


def some_left_on_the_cpu(x):
    """Literals of the CPU beside a device's tensors, moved by the operators that take them."""
    y = x[torch.tensor([1, 0])]
    y[:, 1] = torch.tensor(2.0)
    y[0] = torch.tensor([1.0, 2.0])
    y.copy_(torch.tensor([3.0, 4.0]))
    return torch.where(x[:2] > 0, y, torch.tensor(-1e4)), x * torch.tensor(0.5)


def moved_after_arithmetic(x):
    scale = torch.arange(2).float() + torch.tensor([1.0, 2.0])
    return x * scale.to(x.device), scale.to(x.device)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sizes", [(), (8,)], ids=["uncaptured", "captured"])
@pytest.mark.parametrize(
    "model", [*PROGRAMS, some_left_on_the_cpu, moved_after_arithmetic], ids=lambda fn: fn.__name__
)
def test_a_literal_is_what_the_model_has_at_every_call(gpu, model, sizes, way):
    settings = {"splitting_ops": (), "capture_sizes": sizes, "capture_max": False}
    if way == "recorded":
        fast = gpu.record(model, **settings)
    else:
        fast = gpu.compile(model, compiler=way, **settings)
    for rows in (8, 8, 5, 8):
        x = gpu.randn(rows, 2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    if sizes:
        assert fast.stats().calls["replayed"] == 3, fast.explain()
