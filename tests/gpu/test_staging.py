from __future__ import annotations

import gc
import random

import pytest
import torch

pytestmark = pytest.mark.gpu

DTYPES = [torch.int64, torch.int32, torch.bfloat16, torch.float32, torch.uint8, torch.complex64]


@pytest.fixture(autouse=True)
def inference():
    pytest.importorskip("triton", reason="Triton is not installed")
    with torch.inference_mode():
        yield


def noise(size, dtype):
    raw = torch.randint(0, 256, (size * dtype.itemsize,), dtype=torch.uint8, device="cuda")
    return raw.view(dtype)


def same(left, right):
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


@pytest.mark.parametrize("count", [1, 3, 8, 9, 33])
def test_any_tensors_are_copied_whole_and_the_rest_of_each_buffer_is_zero(count):
    from piecewise_cuda.staging import Stager

    rng = random.Random(count)
    guarded, tensors, rooms = [], [], []
    for _ in range(count):
        dtype, room = rng.choice(DTYPES), rng.choice([0, 1, 3, 16, 100, 4096, 8197, 1 << 20])
        given, offset = rng.randint(0, room), rng.choice([0, 1, 4, 8])
        guarded.append(noise(room + 32, dtype))
        tensors.append(noise(given + offset, dtype)[offset:])
        rooms.append(room)
    before = [g.clone() for g in guarded]
    stage = Stager([g[16 : 16 + room] for g, room in zip(guarded, rooms, strict=True)])
    for _ in range(2):
        stage(tensors)
        for guard, old, room, tensor in zip(guarded, before, rooms, tensors, strict=True):
            inside = guard[16 : 16 + room]
            assert same(inside[: len(tensor)], tensor)
            assert not inside[len(tensor) :].view(torch.uint8).any()
            assert same(guard[:16], old[:16])
            assert same(guard[16 + room :], old[16 + room :])
        tensors = [noise(len(t) // 2, t.dtype) for t in tensors]


def test_staging_runs_on_the_current_stream_and_can_itself_be_captured():
    from piecewise_cuda.staging import Stager

    source, buffer = torch.ones(64, device="cuda"), torch.zeros(128, device="cuda")
    stage = Stager([buffer])
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        stage([source])
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        stage([source])
    source.fill_(5)
    graph.replay()
    assert buffer.tolist() == [5] * 64 + [0] * 64


def test_the_driver_stages_buffers_of_its_device():
    from piecewise_cuda.driver import CudaGraphDriver

    driver = CudaGraphDriver()
    buffer = torch.ones(3, device="cuda")
    stage = driver.stager([buffer])
    gc.collect()
    # What the kernel reads must be neither freed nor used again.
    noise = [torch.randint(0, 255, (n,), device="cuda") for n in range(1, 200)]
    stage([torch.full((2,), 7.0, device="cuda")])
    assert buffer.tolist() == [7, 7, 0]
    assert len(noise) == 199
    assert driver.stager([torch.ones(3)]) is None
    assert driver.stager([torch.ones(3, device="cuda"), torch.ones(3)]) is None


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_staging_goes_to_the_buffers_device_whichever_is_current():
    from piecewise_cuda.driver import CudaGraphDriver

    with torch.cuda.device(1):
        buffer = torch.ones(3, device="cuda")
        stage = CudaGraphDriver().stager([buffer])
    with torch.cuda.device(0):
        stage([torch.full((2,), 7.0, device="cuda:1")])
    assert buffer.tolist() == [7, 7, 0]
