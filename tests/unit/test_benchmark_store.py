"""The store's benchmark runs from end to end; nothing is timed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "store.py"


def test_the_last_line_is_one_json_object():
    command = [sys.executable, str(SCRIPT), "--entries", "30", "--size", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["entries"] == 30
    assert {"hit_s", "worst_hit_s", "miss_s", "put_s", "scan_s", "ratio_to_few"} <= found.keys()
    assert {"signed_ratio_hmac-sha256", "signed_ratio_ed25519"} <= found.keys()
