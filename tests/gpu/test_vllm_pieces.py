"""The plugin for vLLM on a GPU, by the stand-in for vLLM's calls; nothing is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vllm_pieces.py"


def test_every_piece_is_captured_and_replays_the_model_s_numbers():
    command = [sys.executable, str(SCRIPT), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["stand_in"], found["simulated"]) == (True, False)
    assert [each["pieces"] for each in found["shapes"].values()] == [33, 17]
    assert any(line.startswith("50 static graphs for") for line in found["report"])
