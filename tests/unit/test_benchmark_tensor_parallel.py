"""The benchmark of split models runs from end to end over gloo; nothing is timed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ALONE = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tensor_parallel.py"


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs gloo",
)
@pytest.mark.slow
def test_every_way_is_right_and_the_last_line_says_how_long_each_took():
    """As torchrun's first process; its others have nothing to do."""
    small = ("--layers", "1", "--hidden", "32", "--heads", "4", "--rows", "4", "--quick")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *small, "--only", "decoder"],
        capture_output=True,
        text=True,
        env={**os.environ, **ALONE, "RANK": "0", "WORLD_SIZE": "2"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    case = found["cases"]["decoder 4"]
    ours = {f"{mode}{by}" for mode in ("piecewise", "full") for by in ("", " by library")}
    assert set(case["us"]) == {"eager", "reduce-overhead", "all-reduces", *ours}, done.stdout
    assert max(case["off"].values()) < 1e-5
    assert case["replayed"]["piecewise"] > 0
    assert found["decoder_4_piecewise"] > 0


def test_what_was_found_is_told_when_a_case_takes_too_long(fresh_processes):
    arguments = ("--only", "decoder", "--limit", "1", "--rows", "1")
    done = fresh_processes.run_file(SCRIPT, *arguments, env={**os.environ, **ALONE})
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cases"]["decoder 1"]["crashed"]


def test_shares_that_are_not_whole_are_refused(fresh_processes):
    done = fresh_processes.run_file(SCRIPT, "--processes", "3", "--heads", "4")
    assert done.returncode == 2
    assert "--heads must divide among --processes" in done.stderr
