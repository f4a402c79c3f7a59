"""How soon piecewise is there: ``import piecewise_core`` and ``piecewise doctor``."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _measure import Row, report

TARGET_IMPORT = 60.0
TARGET_DOCTOR = 6.0

_IMPORT = """
import json, sys, time
begun = time.perf_counter()
import piecewise_core
seconds = time.perf_counter() - begun
print(json.dumps({"seconds": seconds, "torch": "torch" in sys.modules}))
"""


def importing() -> float:
    """Milliseconds of the import in a fresh process. Exits when it brings torch in."""
    found = json.loads(_run([sys.executable, "-c", _IMPORT]))
    if found["torch"]:
        sys.exit("imports: import piecewise_core imports torch")
    return float(found["seconds"]) * 1e3


def doctor() -> float:
    """Seconds of the whole command."""
    command = shutil.which("piecewise", path=str(Path(sys.executable).parent))
    if command is None:
        sys.exit("imports: there is no piecewise command beside this python; run `make setup`")
    begun = time.perf_counter()
    _run([command, "doctor"])
    return time.perf_counter() - begun


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode != 0:
        sys.exit(f"imports: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = parser.parse_args().quick
    importing()  # the files come from disk once
    imports = [importing() for _ in range(3 if quick else 15)]
    doctors = [doctor() for _ in range(2 if quick else 7)]
    rows: list[Row] = [
        ("import", statistics.median(imports), "ms", TARGET_IMPORT),
        ("doctor", statistics.median(doctors), "s", TARGET_DOCTOR),
        ("import_fastest", min(imports), "ms", None),
        ("doctor_fastest", min(doctors), "s", None),
        ("doctor_first", doctors[0], "s", None),
    ]
    raw = {
        "imports_ms": [round(ms, 2) for ms in imports],
        "doctors_s": [round(s, 3) for s in doctors],
    }
    report("import and doctor", rows, raw)


if __name__ == "__main__":
    main()
