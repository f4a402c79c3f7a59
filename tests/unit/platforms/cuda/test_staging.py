"""The staging kernel by Triton's interpreter; on a GPU see tests/gpu."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

CHECK = """
import random
import sys
import torch
from piecewise_cuda.kernel import BLOCK
from piecewise_cuda.staging import Stager

DTYPES = [torch.int64, torch.int32, torch.bfloat16, torch.float32, torch.bool, torch.uint8,
          torch.complex64, torch.float8_e4m3fn]

def rand(size, dtype):
    return torch.randint(0, 256, (size * dtype.itemsize,), dtype=torch.uint8).view(dtype)

def same(a, b):
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))

def check(sizes, rng):
    buffers, tensors = [], []
    for room, given, offset, dtype in sizes:
        dtype = torch.uint8 if dtype is torch.bool else dtype
        guarded = rand(room + 32, dtype)
        buffers.append((guarded, guarded.clone(), room))
        tensors.append(rand(given + offset, dtype)[offset:])
    stage = Stager([guarded[16:16 + room] for guarded, _, room in buffers])
    stage(tensors)
    for (guarded, before, room), tensor in zip(buffers, tensors):
        inside = guarded[16:16 + room]
        assert same(inside[:len(tensor)], tensor), "copied"
        assert not inside[len(tensor):].view(torch.uint8).any(), "padded"
        assert same(guarded[:16], before[:16]), "untouched before"
        assert same(guarded[16 + room:], before[16 + room:]), "untouched after"

for seed in map(int, sys.argv[1:]):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for count in (1, 2, 3, 8, 9, 17):
        sizes = []
        for _ in range(count):
            room = rng.choice([0, 1, 3, 16, 100, BLOCK, 2 * BLOCK + 5])
            sizes.append((room, rng.randint(0, room), rng.choice([0, 1, 4, 8]), rng.choice(DTYPES)))
        check(sizes, rng)
check([(5, 5, 0, torch.int64)] * 3, rng)
check([(0, 0, 0, torch.int64)] * 3, rng)
Stager([])([])
try:
    Stager([torch.ones(3)])([])
except ValueError:
    print("held")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed (pip install triton)",
)
def test_any_tensors_are_copied_whole_and_the_rest_of_each_buffer_is_zero():
    # A process of its own: Triton decides when it is imported whether it interprets.
    done = subprocess.run(
        [sys.executable, "-c", CHECK, "0", "1"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "held"), done.stderr
