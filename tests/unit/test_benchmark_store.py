"""The store's benchmark runs from end to end; nothing is timed here."""

from __future__ import annotations

import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "store.py"


def test_the_last_line_is_one_json_object(fresh_processes):
    done = fresh_processes.run_file(SCRIPT, "--entries", "30", "--size", "1000")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["entries"] == 30
    assert {"hit_s", "worst_hit_s", "miss_s", "put_s", "scan_s", "ratio_to_few"} <= found.keys()
    assert {"signed_ratio_hmac-sha256", "signed_ratio_ed25519"} <= found.keys()
