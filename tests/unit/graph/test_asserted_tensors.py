"""An assertion on tensors, which nothing uses the value of, is made at every call."""

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform


def asserts(x, n):
    torch._assert_async(n[0] < 3)
    return x * 2


@pytest.mark.parametrize("captured", [False, True])
def test_an_assertion_holds_or_the_call_fails(captured):
    sizes = {"capture_sizes": (4,), "capture_max": False} if captured else {}
    rows = {"x": {0: pw.Dim("rows", min=1, max=8)}}
    config = pw.Config(dynamic=rows, compiler="eager", **sizes)
    fast = pw.compile(asserts, config, platform=SimulatedPlatform())
    x = torch.randn(4, 2)
    for _ in range(2):
        torch.testing.assert_close(fast(x, torch.tensor([1, 5])), x * 2)
    with pytest.raises((RuntimeError, pw.errors.PlatformFault), match="nonzero"):
        fast(x, torch.tensor([3, 5]))
