"""Calls on several streams of a device: replays share buffers, and wait for each other there."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.gpu

LONG = 100_000_000
"""Cycles that the device is busy for while the host goes on."""


@torch.library.custom_op("pwstreams::late", mutates_args=())
def late(x: torch.Tensor) -> torch.Tensor:
    torch.cuda._sleep(LONG)
    return x * 2


@late.register_fake
def _(x):
    return torch.empty_like(x)


def model(x):
    return late(x + 1) - 1


def padded_model(x):
    """``late`` has no padding rule; the streams of its calls are busy before it instead."""
    return torch.softmax(x + 1, -1) - 1


FORMS = {
    "pieces": {},
    "full": {"graph_mode": "full", "splitting_ops": ()},
    "padded": {"padding": "capture_sizes", "splitting_ops": ("torch.softmax",)},
}


def made(gpu, front, form, *, clone_outputs=True):
    written = padded_model if form == "padded" else model
    settings = {
        "splitting_ops": ("pwstreams::late",),
        "clone_outputs": clone_outputs,
        **FORMS[form],
    }
    if front == "recorded":
        settings.pop("graph_mode", None)
        return gpu.record(written, **settings)
    return gpu.compile(written, **settings)


@pytest.mark.parametrize("front", ["compiled", "recorded"])
@pytest.mark.parametrize("form", FORMS)
def test_a_call_on_another_stream_leaves_the_one_before_it_its_inputs(gpu, form, front):
    fast = made(gpu, front, form)
    rows, wanted = (60, padded_model) if form == "padded" else (64, model)
    xs = [gpu.randn(rows, 32) for _ in range(4)]
    fast.warmup(xs[0], progress=False)
    for x in xs:
        fast(x)
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    before = fast.stats().calls["replayed"]
    got = []
    for place, x in enumerate(xs):
        with torch.cuda.stream(streams[place % 3]):
            torch.cuda._sleep(LONG if place % 2 == 0 else 0)
            got.append(fast(x))
    torch.cuda.synchronize()
    assert fast.stats().calls["replayed"] == before + 4
    for x, y in zip(xs, got, strict=True):
        torch.testing.assert_close(y, wanted(x))


@pytest.mark.parametrize("front", ["compiled", "recorded"])
def test_a_result_is_read_before_the_next_call_on_another_stream_overwrites_it(gpu, front):
    fast = made(gpu, front, "pieces", clone_outputs=False)
    x, y = gpu.randn(64, 32), gpu.randn(64, 32)
    fast.warmup(x, progress=False)
    fast(x), fast(y)
    here, there = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(here):
        result = fast(x)
        torch.cuda._sleep(LONG)
        kept = result.clone()
    with torch.cuda.stream(there):
        fast(y)
    torch.cuda.synchronize()
    torch.testing.assert_close(kept, (x + 1) * 2 - 1)


THREADS = """
import threading, torch, piecewise_core as pw
torch.manual_seed(0)

class Deep(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(3))

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x).sin()
            x = torch.softmax(x, -1) if i < 2 else x
        return x

model, wrong = Deep().cuda().eval(), []
config = pw.Config(
    dynamic={"x": {0: pw.Dim("rows", 1, 64)}}, splitting_ops=("torch.softmax",),
    capture_sizes=(1, 8, 32, 64), compiler="eager", clone_outputs=True, padding="capture_sizes",
)
with torch.inference_mode():
    fast = pw.compile(model, config, platform="cuda")
    fast.warmup(torch.randn(3, 32, device="cuda"), progress=False)

def work(seed):
    draw = torch.Generator().manual_seed(seed)
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(100):
            size = int(torch.randint(1, 65, (), generator=draw))
            x = torch.randn(size, 32, generator=draw).cuda()
            got, wanted = fast(x), model(x)
            torch.cuda.current_stream().synchronize()
            if not torch.allclose(got, wanted, atol=1e-4):
                wrong.append(size)

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
torch.cuda.synchronize()
assert not wrong, wrong
assert fast.stats().calls["replayed"] == 300, fast.stats()
"""


@pytest.mark.parametrize("time", range(3))
def test_threads_with_streams_of_their_own_in_a_process_that_has_just_begun(time):
    # Where kernels are loaded at their first launch, streams are far apart.
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
