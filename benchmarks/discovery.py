"""How soon one of fifty installed platforms is found: metadata read, one plugin imported."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _measure import Row, report

TARGET = 30.0
PLUGINS = 50
WANTED = "acme7"

_PLUGIN = """
from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import PlatformInfo, Probe

def probe():
    return Probe(True, "it is there")

def create():
    raise RuntimeError("not wanted")

@hookimpl
def piecewise_platforms():
    yield PlatformInfo({name!r}, "cpu", (1, 0), probe, create)
"""

# Whoever has a model has torch, which has loaded importlib.metadata; its import is told apart.
_FIND = """
import json, sys, time
begun = time.perf_counter()
import importlib.metadata
library = time.perf_counter() - begun
from piecewise_core.plugins import all_passes, discover
from piecewise_core.plugins.candidates import announce, examine
begun = time.perf_counter()
(entry,) = [e for e in discover() if e.name == {wanted!r}]
(found,) = map(examine, announce(entry))
seconds = time.perf_counter() - begun
assert found.status == "found", found
all_passes()
passes = time.perf_counter() - begun - seconds
imported = [m for m in sys.modules if m.endswith("_plugin")]
found = {{"seconds": seconds, "passes": passes, "library": library, "imported": imported}}
print(json.dumps(found))
"""


def install(site: Path) -> None:
    """Write fifty distributions, each with a plugin and a README of usual length."""
    for number in range(PLUGINS):
        name = f"acme{number}"
        (site / f"{name}_plugin.py").write_text(_PLUGIN.format(name=name))
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n\n"
        (info / "METADATA").write_text(head + "A line of the README.\n" * 200)
        (info / "entry_points.txt").write_text(f"[piecewise]\n{name} = {name}_plugin\n")


def find(site: Path) -> dict[str, float]:
    """One look-up in a fresh process. Exits when more than one plugin was imported."""
    done = subprocess.run(
        [sys.executable, "-c", _FIND.format(wanted=WANTED)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(site)},
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"discovery: the look-up failed:\n{done.stderr}")
    found = json.loads(done.stdout)
    if found["imported"] != [f"{WANTED}_plugin"]:
        sys.exit(f"discovery: imported {found['imported']}, not only {WANTED}_plugin")
    return {name: found[name] * 1e3 for name in ("seconds", "passes", "library")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="piecewise-") as folder:
        site = Path(folder)
        install(site)
        find(site)  # the files come from disk once, and plugins are compiled to bytecode
        runs = [find(site) for _ in range(5 if quick else 25)]
    selects = [run["seconds"] for run in runs]
    rows: list[Row] = [
        ("select", statistics.median(selects), "ms", TARGET),
        ("select_fastest", min(selects), "ms", None),
        ("passes", statistics.median(run["passes"] for run in runs), "ms", None),
    ]
    rows.append(
        ("importlib_metadata", statistics.median(run["library"] for run in runs), "ms", None)
    )
    raw = {"selects_ms": [round(ms, 2) for ms in selects], "plugins": PLUGINS, "imported": 1}
    report("discovery among fifty plugins", rows, raw)


if __name__ == "__main__":
    main()
