"""The kernel that copies many tensors in one launch. Importing it imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["BLOCK", "stage_kernel"]

BLOCK = 4096
"""Bytes that one program copies."""


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _copy(  # type: ignore[no-untyped-def]  # Triton looks annotations up
    source,
    target,
    given,
    room,
    start,
    word: tl.constexpr,
    width: tl.constexpr,
    whole: tl.constexpr,
    block: tl.constexpr,
):
    """Copy one block in words of ``width`` bytes, ``whole`` of them to a 16-byte access."""
    words = start // width + tl.arange(0, block // width)
    given_words = tl.multiple_of(given // width, whole)
    room_words = tl.multiple_of(room // width, whole)
    sources = tl.multiple_of(source.to(tl.pointer_type(word)), width * whole)
    targets = tl.multiple_of(target.to(tl.pointer_type(word)), width * whole)
    values = tl.load(sources + words, mask=words < given_words, other=0)
    tl.store(targets + words, values, mask=words < room_words)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def stage_kernel(  # type: ignore[no-untyped-def]
    table, sources, given, count: tl.constexpr, block: tl.constexpr
):
    """Copy ``given[i]`` bytes from address ``sources[i]`` to buffer i and fill it up with zeros.

    ``table``: three rows of ``count`` int64: the first program, the address and the bytes of each
    buffer. One program copies one block of one buffer.
    """
    program = tl.program_id(0).to(tl.int64)
    firsts = tl.load(table + tl.arange(0, count))
    mine = tl.sum((firsts <= program).to(tl.int32), 0) - 1
    start = (program - tl.load(table + mine)) * block
    target = tl.load(table + count + mine)
    room = tl.load(table + 2 * count + mine)
    source = sources[0].to(tl.int64)
    size = given[0].to(tl.int64)
    for i in tl.static_range(1, count):
        source = tl.where(mine == i, sources[i].to(tl.int64), source)
        size = tl.where(mine == i, given[i].to(tl.int64), size)
    unaligned = source | target | size | room
    if unaligned % 16 == 0:
        _copy(source, target, size, room, start, tl.uint64, 8, 2, block)
    elif unaligned % 4 == 0:
        _copy(source, target, size, room, start, tl.uint32, 4, 1, block)
    else:
        _copy(source, target, size, room, start, tl.uint8, 1, 1, block)
