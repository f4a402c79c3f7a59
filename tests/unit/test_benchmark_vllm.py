"""The plugin's benchmark runs from end to end without a GPU and without vLLM; nothing is timed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fresh_process import FreshProcesses

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vllm_pieces.py"


def run(processes: FreshProcesses, *arguments: str, **environment: str) -> list[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = processes.run_file(SCRIPT, *arguments, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_piece_is_captured_and_the_numbers_are_eager_s(fresh_processes):
    first, *_, last = run(fresh_processes, "--simulated", "--quick")
    assert first == "stand-in for vLLM's calls: no vLLM takes part in this"
    found = json.loads(last)
    assert (found["stand_in"], found["simulated"]) == (True, True)
    assert [(each["pieces"], each["error"]) for each in found["shapes"].values()] == [(4, 0)] * 2
    # The second model's pieces are the first one's: nothing is compiled for it.
    assert found["report"][0].startswith("8 pieces, 3 of them distinct: 3 compiled, 0 loaded")


def test_without_a_device_nothing_is_measured(fresh_processes):
    assert run(fresh_processes, CUDA_VISIBLE_DEVICES="") == [
        json.dumps({"skipped": "no CUDA device"})
    ]
