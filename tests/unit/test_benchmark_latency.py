"""The benchmark of latency beside compilations runs from end to end; nothing is timed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "latency.py"


@pytest.mark.slow
def test_every_phase_has_calls_and_the_other_size_is_compiled_meanwhile():
    command = [sys.executable, str(SCRIPT), "--modes", "lazy", "--workers", "0"]
    command += ["--layers", "1", "--seconds", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    phases = {"quiet", "compiling", "one core burning", "a thread counting"}
    assert found["lazy"]["us"].keys() == phases
    assert found["lazy"]["compiled_s"] > 0
    assert found["lazy_compiling_p99_over_quiet"] > 0
