"""Blocks of memory that static plans share."""

from __future__ import annotations

import torch

from piecewise_cpu.arena import Arena


def floats(arena, count):
    return arena.empty_strided((count,), (1,), torch.float32)


def memory(tensor):
    return tensor.untyped_storage()._cdata


def test_blocks_serve_one_size_after_the_other():
    arena = Arena()
    large = [arena.empty_strided((8, 4), (4, 1), torch.float32) for _ in range(2)]
    assert arena.nbytes == 2 * 8 * 4 * 4
    arena.rewind()
    small = [arena.empty_strided((4, 2), (1, 4), torch.float32) for _ in range(2)]
    assert [t.data_ptr() for t in small] == [t.data_ptr() for t in large]
    assert small[0].stride() == (1, 4)
    assert arena.nbytes == 2 * 8 * 4 * 4
    third = arena.empty_strided((0, 3), (3, 1), torch.int64)
    assert third.shape == (0, 3)
    arena.rewind()
    larger = arena.empty_strided((16, 4), (4, 1), torch.float32)
    large[0].fill_(1)
    larger.zero_()
    assert bool((large[0] == 1).all())  # its block lives on, apart


def test_what_is_taken_back_is_handed_out_again_and_what_is_kept_is_not():
    arena = Arena()
    before = floats(arena, 8)
    mark = arena.mark()
    inside, outcome = floats(arena, 8), floats(arena, 8)
    arena.take_back(mark, {memory(outcome)})
    again, new = floats(arena, 8), floats(arena, 8)
    assert again.data_ptr() == inside.data_ptr()
    assert len({t.data_ptr() for t in (before, outcome, again, new)}) == 4
    assert arena.nbytes == 4 * 8 * 4
    arena.take_back(mark)
    assert {floats(arena, 8).data_ptr() for _ in range(3)} == {
        t.data_ptr() for t in (outcome, again, new)
    }


def test_a_request_gets_the_smallest_block_that_holds_it():
    arena = Arena()
    large, small = floats(arena, 64), floats(arena, 8)
    arena.rewind()
    assert floats(arena, 4).data_ptr() == small.data_ptr()
    assert floats(arena, 4).data_ptr() == large.data_ptr()
    assert arena.nbytes == 72 * 4


def test_where_no_block_is_large_enough_the_largest_free_one_makes_way():
    arena = Arena()
    small, medium = floats(arena, 8), floats(arena, 16)
    arena.rewind()
    floats(arena, 32)
    assert arena.nbytes == (8 + 32) * 4
    assert floats(arena, 8).data_ptr() == small.data_ptr()
    assert floats(arena, 8).data_ptr() not in (small.data_ptr(), medium.data_ptr())


def test_nothing_takes_no_block():
    arena = Arena()
    assert arena.empty_strided((3, 0), (1, 1), torch.int64).shape == (3, 0)
    assert arena.nbytes == 0
