from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.testing.simulated.pool import Memory, Pool, poison_of, storage_at


def tensor_in(
    pool: Pool, size: int, dtype: torch.dtype = torch.float32, stream: object = None
) -> torch.Tensor:
    _, storage = pool.allocate(size * dtype.itemsize, dtype, stream)
    return torch.empty(0, dtype=dtype).set_(storage, 0, (size,), (1,))


def weak(memory: Memory, tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage()
    address, nbytes = storage.data_ptr(), storage.nbytes()
    again = storage_at(address, nbytes, memory.owner_of(address))
    return torch.empty(0, dtype=tensor.dtype).set_(again, 0, tensor.shape, tensor.stride())


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def pool(memory) -> Pool:
    pool = Pool(memory)
    pool.enter(1)
    return pool


def test_memory_comes_aligned_and_poisoned(pool):
    for size in (1, 100, 1000):
        tensor = tensor_in(pool, size)
        assert tensor.data_ptr() % 512 == 0
        assert tensor.isnan().all()


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e4m3fn]
)
def test_the_poison_of_floats_is_nan(pool, dtype):
    assert tensor_in(pool, 7, dtype).to(torch.complex128).isnan().all()


def test_the_poison_of_whole_numbers_indexes_nothing(pool):
    with pytest.raises(IndexError):
        torch.arange(9)[tensor_in(pool, 2, torch.int64)]
    assert tensor_in(pool, 2, torch.bool).tolist() == [True, True]


def test_freed_memory_is_poisoned_under_whoever_still_looks(memory, pool):
    tensor = tensor_in(pool, 4)
    seen = weak(memory, tensor)
    tensor.fill_(3)
    assert seen.tolist() == [3, 3, 3, 3]
    del tensor
    assert seen.isnan().all()


def test_a_view_keeps_memory_alive_and_a_weak_tensor_does_not(pool, memory):
    tensor = tensor_in(pool, 4).fill_(1)
    view, seen = tensor[1:], weak(memory, tensor)
    del tensor
    assert seen.tolist() == [1, 1, 1, 1]
    del view
    assert seen.isnan().all()
    assert pool.live_bytes == 0


def test_freed_memory_is_given_out_again(pool):
    first = tensor_in(pool, 100)
    address = first.data_ptr()
    del first
    assert tensor_in(pool, 50).data_ptr() == address
    assert pool.nbytes == 512


def test_memory_of_one_stream_does_not_serve_another(pool):
    one, two = object(), object()
    del [tensor_in(pool, 128, stream=one)][0]
    tensor_in(pool, 128, stream=two)
    assert pool.nbytes == 1024
    tensor_in(pool, 128, stream=one)
    assert pool.nbytes == 1024


def test_a_large_free_span_serves_several_small_tensors(pool):
    large = tensor_in(pool, 512)
    held = pool.nbytes
    del large
    small = [tensor_in(pool, 128) for _ in range(4)]
    assert pool.nbytes == held
    assert len({t.data_ptr() for t in small}) == 4


def test_freed_neighbours_become_one_span_again(pool):
    del [tensor_in(pool, 512)][0]
    small = [tensor_in(pool, 128) for _ in range(4)]
    for place in (1, 3, 0, 2):
        small[place] = None
    assert tensor_in(pool, 512) is not None
    assert pool.nbytes == 2048


def test_memory_goes_back_with_the_last_graph_and_the_last_tensor(memory, pool):
    pool.enter(2)
    tensor = tensor_in(pool, 4)
    pool.leave(1)
    pool.leave(2)
    assert (memory.used, tensor.isnan().all()) == (512, True)
    del tensor
    assert memory.used == 0
    assert pool.nbytes == 0


def test_memory_stays_while_a_graph_is_there(memory, pool):
    tensor_in(pool, 4)
    gc.collect()
    assert (pool.nbytes, pool.live_bytes, memory.used) == (512, 0, 512)
    pool.leave(1)
    assert memory.used == 0


def test_past_the_limit_memory_is_out_and_what_was_there_stays():
    memory = Memory(1024)
    pool = Pool(memory)
    pool.enter(1)
    kept = tensor_in(pool, 128).fill_(5)
    with pytest.raises(torch.OutOfMemoryError, match="1024 bytes wanted, 512 of 1024 free"):
        tensor_in(pool, 200)
    assert kept.tolist() == [5] * 128
    assert tensor_in(pool, 128) is not None


def test_two_pools_share_the_memory_of_the_device():
    memory = Memory(1024)
    one, two = Pool(memory), Pool(memory)
    one.enter(1)
    two.enter(1)
    first, second = tensor_in(one, 128), tensor_in(two, 128)
    with pytest.raises(torch.OutOfMemoryError):
        tensor_in(two, 1)
    assert memory.used == 1024
    del first
    one.leave(1)
    assert tensor_in(two, 128).data_ptr() != second.data_ptr()


def test_an_address_outside_of_pools_has_no_owner(memory, pool):
    inside = tensor_in(pool, 4)
    assert memory.owner_of(inside.data_ptr()) is not None
    assert memory.owner_of(torch.ones(4).data_ptr()) is None


def test_a_death_is_told_while_a_capture_listens(pool):
    told = []
    tensor = tensor_in(pool, 4)
    pool.freed_in_capture = told.append
    address = tensor.data_ptr()
    del tensor
    pool.freed_in_capture = None
    tensor_in(pool, 4)
    assert [block.address for block in told] == [address]


@given(st.lists(st.tuples(st.integers(1, 2000), st.booleans()), max_size=60))
def test_tensors_never_overlap_and_nothing_is_lost(plan):
    memory = Memory()
    pool = Pool(memory)
    pool.enter(1)
    live: list[tuple[torch.Tensor, int]] = []
    for number, (size, frees) in enumerate(plan):
        live.append((tensor_in(pool, size).fill_(number), number))
        if frees:
            live.pop(size % len(live))
    for tensor, number in live:
        assert tensor.eq(number).all()
    assert pool.live_bytes == sum(-(-t.nbytes // 512) * 512 for t, _ in live)
    free = sum(sum(s.spans.values()) for s, _ in pool._segments)
    assert free + pool.live_bytes == pool.nbytes == memory.used
    tensor = None
    live.clear()
    pool.leave(1)
    assert memory.used == 0


def test_every_dtype_has_a_poison():
    assert poison_of(torch.float32) == poison_of(torch.complex64) == 0xFF
    assert poison_of(torch.int32) == poison_of(torch.uint8) == 0x7F
    assert poison_of(torch.bool) == 1
