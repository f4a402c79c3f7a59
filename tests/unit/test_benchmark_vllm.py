"""The plugin's benchmark runs from end to end without a GPU and without vLLM; nothing is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vllm_pieces.py"


def run(*arguments: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_piece_is_captured_and_the_numbers_are_eager_s():
    first, *_, last = run("--simulated", "--quick")
    assert first == "stand-in for vLLM's calls: no vLLM takes part in this"
    found = json.loads(last)
    assert (found["stand_in"], found["simulated"]) == (True, True)
    assert [(each["pieces"], each["error"]) for each in found["shapes"].values()] == [(4, 0)] * 2
    # The second model's pieces are the first one's: nothing is compiled for it.
    assert found["report"][0].startswith("8 pieces, 3 of them distinct: 3 compiled, 0 loaded")


def test_without_a_device_nothing_is_measured():
    assert run(CUDA_VISIBLE_DEVICES="") == [json.dumps({"skipped": "no CUDA device"})]
