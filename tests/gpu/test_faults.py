"""What goes wrong with graphs on a GPU, and that the rest goes on. Rows of FAULTS in brackets."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import CaptureFailed

pytestmark = pytest.mark.gpu

WIDTH = 32


def serves(gpu, fast, model, sizes=(64, 32, 8, 1, 5)):
    for size in sizes:
        x = gpu.randn(size, WIDTH)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def usable(gpu) -> bool:
    """Whether the device captures and serves another model as if nothing had happened."""
    other = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Softmax(-1)).to(gpu.device)
    fast = gpu.compile(other, dynamic={0: {0: pw.Dim("rows", 1, 64)}}, splitting_ops=())
    fast.warmup(gpu.randn(3, WIDTH), progress=False)
    serves(gpu, fast, other)
    return fast.stats().calls["replayed"] == 4


WAITS = {
    "item": lambda x: x * x.sum().item(),
    "mask": lambda x: x * x[x > 0].sum(),
    "bincount": lambda x: x * torch.bincount(x[:, 0].abs().long(), minlength=8)[:8].sum(),
    "nonzero": lambda x: x * x.nonzero().sum(),
    "to the host": lambda x: x * x.cpu().sum().to(x.device),
}


@pytest.mark.parametrize("name", WAITS)
def test_an_operator_that_waits_for_the_device_names_what_to_do(gpu, name):
    """[24]"""
    wait = WAITS[name]

    def fn(x):
        return torch.softmax(x, -1) + wait(x.sin())

    fast = gpu.record(fn)
    report = fast.warmup(gpu.randn(3, WIDTH), progress=False)
    assert report.captured == ()
    assert all("splitting" in why for why in report.dropped), report.dropped
    serves(gpu, fast, fn)
    assert usable(gpu)


class Wide(nn.Module):
    """Its captures hold 8 MiB and more for each row."""

    def forward(self, x):
        wide = x[:, :, None] * torch.linspace(0, 1, 1 << 16, device=x.device)
        return torch.softmax(wide.sin(), -1).sum((1, 2))[:, None] + x


def test_out_of_memory_keeps_the_sizes_that_have_room(gpu):
    """[20] And what is reported is what the device lost."""
    model = Wide()
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    roomy = gpu.compile(model, capture_sizes=(8,), capture_max=False)
    roomy.warmup(gpu.randn(3, WIDTH), progress=False)
    room = roomy.stats().pool_bytes
    roomy.release()
    del roomy
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    limit = torch.cuda.memory_reserved() + int(3.5 * room)  # for 8 rows, and to run them eagerly
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        fast = gpu.compile(model)
        free, _ = torch.cuda.mem_get_info()
        report = fast.warmup(gpu.randn(3, WIDTH), progress=False)
        gc.collect()
        torch.cuda.empty_cache()
        lost = free - torch.cuda.mem_get_info()[0]
        assert report.captured == ((8,), (1,))
        assert len(report.dropped) == 2
        assert all("memory" in why for why in report.dropped)
        assert report.graph_bytes == pytest.approx(lost, rel=0.1)
        serves(gpu, fast, model, (8, 1, 5))
        assert fast.stats().calls["replayed"] == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    serves(gpu, fast, model, (64, 32))
    assert usable(gpu)


def test_a_capture_inside_a_capture_is_refused_and_spoils_nothing(gpu):
    """[23]"""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()).to(gpu.device)
    x = gpu.randn(8, WIDTH)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    fast = gpu.compile(model, dynamic={0: {0: pw.Dim("rows", 1, 64)}}, splitting_ops=())
    fast(gpu.randn(5, WIDTH))
    model(x)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        y = model(x)
        with pytest.raises(CaptureFailed, match="capture"):
            fast(x)
    x.normal_()
    graph.replay()
    torch.testing.assert_close(y, model(x))
    serves(gpu, fast, model)
    assert fast.stats().calls["replayed"] == 4
    assert usable(gpu)


def test_work_that_a_piece_leaves_on_another_stream_is_explained(gpu):
    """[24]"""
    side = torch.cuda.Stream()

    def fn(x):
        y = torch.softmax(x, -1)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            return y * 2

    fast = gpu.record(fn, splitting_ops=())
    report = fast.warmup(gpu.randn(3, WIDTH), progress=False)
    assert report.captured == ()
    assert all("wait" in why for why in report.dropped), report.dropped
    assert usable(gpu)


def test_a_tensor_that_only_a_graph_reads_lives_as_long_as_the_graph(gpu):
    """[3]"""
    table = {"now": gpu.randn(WIDTH)}

    def fn(x):
        return torch.softmax(x, -1) * table["now"]

    fast = gpu.record(fn)
    fast.warmup(gpu.randn(3, WIDTH), progress=False)
    first = table.pop("now")
    kept = first.clone()
    del first
    noise = [torch.full((n,), float("nan"), device=gpu.device) for n in range(1, 300)]
    x = gpu.randn(8, WIDTH)
    table["now"] = kept
    torch.testing.assert_close(fast(x), torch.softmax(x, -1) * kept)
    assert len(noise) == 299


def test_a_misaligned_input_of_a_captured_size_is_served_right(gpu):
    """[27]"""
    model = nn.Linear(WIDTH, WIDTH).to(gpu.device)
    fast = gpu.compile(model, dynamic={0: {0: pw.Dim("rows", 1, 64)}}, splitting_ops=())
    fast.warmup(gpu.randn(3, WIDTH), progress=False)
    memory = gpu.randn(8 * WIDTH + 1)
    x = memory[1:].view(8, WIDTH)
    torch.testing.assert_close(fast(x), model(x))


def test_gradients_are_refused(gpu):
    """[29]"""
    model = nn.Linear(WIDTH, WIDTH).to(gpu.device)
    fast = gpu.compile(model, dynamic={0: {0: pw.Dim("rows", 1, 64)}}, splitting_ops=())
    with torch.inference_mode(False):
        x = torch.ones(3, WIDTH, device=gpu.device)
        with pytest.raises(pw.errors.PiecewiseError, match="inference"):
            fast(x)
