"""A decode step of one row on a device: products by our kernel, right, captured, from a bundle."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import piecewise_core as pw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning"),
]


class Layer(nn.Module):
    """What a decoder's layer multiplies one row with; attention is left out."""

    def __init__(self, hidden: int, bias: bool) -> None:
        super().__init__()
        self.q = nn.Linear(hidden, hidden, bias=bias)
        self.k, self.v = (nn.Linear(hidden, 512, bias=bias) for _ in range(2))
        self.o = nn.Linear(hidden + 1024, hidden, bias=False)
        self.gate, self.up = (nn.Linear(hidden, 4 * hidden, bias=bias) for _ in range(2))
        self.down = nn.Linear(4 * hidden, hidden, bias=False)

    def forward(self, x):
        y = nn.functional.rms_norm(x, x.shape[-1:])
        mixed = torch.softmax(torch.cat([self.q(y), self.k(y), self.v(y)], -1), -1)
        x = x + self.o(mixed)
        y = nn.functional.rms_norm(x, x.shape[-1:])
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


def built(gpu, hidden, bias, dtype):
    torch.manual_seed(0)
    return nn.Sequential(*(Layer(hidden, bias) for _ in range(2))).to(gpu.device, dtype)


def launched(call):
    """How often our kernel runs in one call."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if "rows_kernel" in event.key)


@pytest.mark.parametrize(
    ("hidden", "dtype", "bias", "mode"),
    [
        (1024, torch.bfloat16, False, "full"),
        (1536, torch.bfloat16, True, "piecewise"),
        (1536, torch.float16, False, "full"),
        (1024, torch.float32, True, "full"),
    ],
)
def test_a_step_of_one_row(gpu, hidden, dtype, bias, mode):
    model = built(gpu, hidden, bias, dtype)
    fast = gpu.compile(
        model,
        compiler="inductor",
        graph_mode=mode,
        dynamic={0: {0: pw.Dim("rows", max=8)}},
        splitting_ops=("torch.softmax",),
        capture_sizes=(1, 4),
        compile_sizes=(1,),
        capture_max=False,
    )
    exact = built(gpu, hidden, bias, torch.float64)
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        for rows in (1, 1, 3, 4, 1):
            x = torch.randn(rows, 1, hidden, device=gpu.device, dtype=dtype)
            right = exact(x.double())
            off = (fast(x) - right).abs().max()
            assert off <= 2 * (model(x) - right).abs().max() + torch.finfo(dtype).eps
        x = torch.randn(1, 1, hidden, device=gpu.device, dtype=dtype)
        assert launched(lambda: fast(x)) == 2 * 4


def test_a_bundle_brings_the_kernel(gpu, tmp_path):
    model = built(gpu, 1024, True, torch.bfloat16)
    settings = {"dynamic": {}, "splitting_ops": (), "graph_mode": "full"}
    fast = gpu.compile(model, compiler="inductor", **settings)
    x = torch.randn(1, 1, 1024, device=gpu.device, dtype=torch.bfloat16)
    with torch.no_grad():
        kept = fast(x).clone()
        fast.save(tmp_path / "model.pwb")
        loaded = pw.load(tmp_path / "model.pwb", model, platform=gpu.platform)
        compiled = pw.counters.compilations
        assert torch.equal(loaded(x), kept)
        assert launched(lambda: loaded(x)) == 2 * 4
        assert pw.counters.compilations == compiled
