"""The example of the page on several GPUs runs under torchrun; here over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples/tensor_parallel.py"


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs gloo",
)
def test_the_example_of_several_gpus_replays_and_is_right(tmp_path):
    environ = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "PIECEWISE_CACHE_DIR": str(tmp_path),
        "PIECEWISE_COMPILER": "eager",
        "OMP_NUM_THREADS": "1",
    }
    # Each rank's output goes to a file of its own: two ranks that share a pipe write into each
    # other's lines, for Python without buffers writes a line and its end apart.
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--redirects", "1")
    kept = tmp_path / "told"
    ran = subprocess.run(
        [*launcher, "--log-dir", str(kept), "--nproc-per-node", "2", str(EXAMPLE)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    for rank in range(2):
        (told,) = kept.glob(f"**/{rank}/stdout.log")
        (line,) = [x for x in told.read_text().splitlines() if x.startswith(f"rank {rank} of 2")]
        assert ": 4 calls replayed, 1 by ranges, apart from eager by " in line
        assert float(line.rpartition(" ")[2]) < 1e-5
