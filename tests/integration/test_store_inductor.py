"""The compile store with Inductor: a second process compiles nothing and computes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.inductor

SCRIPT = """
    import json, sys, torch
    from torch import nn
    import piecewise_core as pw

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
            self.norm = nn.LayerNorm(16)

        def forward(self, x):
            for layer in self.layers:
                x = nn.functional.softmax(self.norm(layer(x)).relu() + 1, -1)
            return x * 2

    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 64)}},
        splitting_ops=("torch.nn.functional.softmax",),
        compile_ranges_endpoints=(8,),
        cache_dir=sys.argv[1],
    )
    model = Model().eval()
    fast = pw.compile(model, config, "cpu")
    found = []
    with torch.inference_mode():
        fast.warmup(torch.randn(3, 16), progress=False)
        for rows in (1, 8, 9, 64):
            torch.manual_seed(rows)
            x = torch.randn(rows, 16)
            torch.testing.assert_close(fast(x), model(x))
            found.append([float(v).hex() for v in fast(x).flatten()])
    stats = fast.stats()
    print(json.dumps({
        "books": [stats.compilations, stats.cache_misses, stats.cache_hits],
        "found": found,
        "explained": str(fast.explain()),
    }))
"""


def run(tmp_path: Path, name: str, **variables: str) -> dict[str, Any]:
    """A process of its own, with Inductor's caches empty."""
    kept = {k: v for k, v in os.environ.items() if k != "PIECEWISE_CACHE_DIR"}
    environment = {
        **kept,
        "PIECEWISE_CACHE_MODE": "readwrite",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / name),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "cache")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_fresh_process_finds_all_and_needs_no_compiler(tmp_path):
    cold = run(tmp_path, "one")
    compilations, misses, hits = cold["books"]
    assert compilations == misses > 0
    assert hits == 0
    # A compiler that does not work shows that none is asked for.
    warm = run(tmp_path, "two", CXX="/bin/false")
    assert warm["books"] == [0, 0, compilations], warm["explained"]
    assert warm["found"] == cold["found"]
    assert "from the store in" in warm["explained"]
