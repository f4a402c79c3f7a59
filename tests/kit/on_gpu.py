"""``python tests/kit/on_gpu.py``: all that is tried on a GPU, side by side; a table at the end.

The tests of tests/gpu by file, the conformance kit, and the families of models, captured and
recorded. Each is a process with a time limit, a log and caches of its own. What reads how much
memory the device has left runs behind the others, alone. One JSON line last; exit status 1 unless
everything passed. Families that are refused are counted, not failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALONE = ("faults",)
"""Files of tests/gpu that read the device's memory."""


def commands(out: Path, platform: str, workers: int) -> dict[str, list[str]]:
    """Name -> command, of all that there is to run."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider"]
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    found = {f.stem.removeprefix("test_"): [*pytest, str(f)] for f in files}
    kit = ["conformance", platform, "--level", "L3", "--report", str(out / f"{platform}.json")]
    found["kit"] = [sys.executable, "-m", "piecewise_core.cli.main", *kit]
    sweep = [sys.executable, "-m", "sweeps", "--families", "--device", "cuda"]
    ways = ["--passes", "captured", "recorded", "--hang", "150", "--workers", str(workers)]
    found["families"] = [*sweep, *ways, "--out", str(out / "sweep")]
    return found


def run(name: str, command: list[str], out: Path, limit: float) -> dict[str, object]:
    """How one ended: its status (None: out of time), seconds, and the last line that counts."""
    log, begun = out / f"{name}.log", time.monotonic()
    paths = [str(ROOT / "tests" / "kit"), os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PIECEWISE_CACHE_DIR": str(out / "caches" / name),
    }
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=env, timeout=limit, cwd=ROOT
            )
            status: int | None = done.returncode
        except subprocess.TimeoutExpired:
            status = None
    lines = log.read_text(errors="replace").splitlines()
    counted = [x for x in lines if re.search(r"\d+ (passed|failed|skipped)|^\{|no tests ran", x)]
    ended = {"status": status, "seconds": round(time.monotonic() - begun), "said": ""}
    if counted:
        ended["said"] = counted[-1].strip("= ")[:500]
    print(f"{name:12} {status if status is not None else 'time'!s:>5}", end=" ")
    print(f"{ended['seconds']:>5} s  {ended['said']}", flush=True)
    return ended


def main() -> int:
    """Run what is asked for; 1 unless all of it passed."""
    parser = argparse.ArgumentParser(prog="on_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="files of tests/gpu without test_, kit, families")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="for logs")
    parser.add_argument("--platform", default="cuda", help="whose conformance is tested (cuda)")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for each (1800)")
    parser.add_argument("--workers", type=int, default=4, help="processes for families (4)")
    asked = parser.parse_args()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    known = commands(out, asked.platform, asked.workers)
    names = asked.names or list(known)
    if unknown := set(names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(known)}")
    together = [name for name in names if name not in ALONE]
    with ThreadPoolExecutor(max(len(together), 1)) as threads:
        ended = dict(
            zip(
                together,
                threads.map(lambda name: run(name, known[name], out, asked.limit), together),
                strict=True,
            )
        )
    for name in set(names) - set(together):
        ended[name] = run(name, known[name], out, asked.limit)
    failed = [name for name, end in ended.items() if end["status"] != 0]
    print(json.dumps({"ran": {n: e["said"] for n, e in ended.items()}, "failed": failed}))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
