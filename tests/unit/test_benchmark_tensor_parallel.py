"""The benchmark of split models runs from end to end over gloo; nothing is timed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tensor_parallel.py"


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs gloo",
)
def test_every_way_is_right_and_the_last_line_says_how_long_each_took():
    small = ("--layers", "1", "--hidden", "32", "--heads", "4", "--rows", "1", "4", "--quick")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--processes", "2", *small],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for rows in (1, 4):
        assert max(found[f"off_{rows}_rows"].values()) < 1e-5
        assert set(found[f"us_{rows}_rows"]) == {
            *("eager", "reduce-overhead", "piecewise", "full", "all-reduces"),
        }
    assert found["replayed"]["piecewise"] > 0


def test_shares_that_are_not_whole_are_refused():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--processes", "3", "--heads", "4"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2
    assert "--heads must divide among --processes" in done.stderr
