"""What a look-up in the compile store costs, with few entries and with many.

    python benchmarks/store.py [--entries 10000] [--size 20000]

The last line is JSON: seconds per hit and per miss as medians, and the worst hit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from piecewise_core.ranges import Box, Range
from piecewise_core.store.entry import Entry, make_entry, make_ticket
from piecewise_core.store.files import FileStore
from piecewise_core.store.keys import Keys, new_key
from piecewise_core.store.manifest import render
from piecewise_core.store.pruning import prune
from piecewise_core.store.signing import Signer

BOX = Box((Range(1, 512),))


def entry(number: int, size: int) -> Entry:
    """Entry ``number``, with as many factors as a real one."""
    factors = {f"factor.{n}": f"value {n} of a compiler or platform" for n in range(40)}
    ticket = make_ticket({**factors, "piece.form": str(number)}, BOX, f"region 0 piece {number}")
    artifact = random.Random(number).randbytes(size)
    return make_entry(ticket, artifact, serves=BOX, adaptor="benchmark", seconds=1.0)


def fill(store: FileStore, count: int, size: int) -> list[str]:
    """Put ``count`` entries there without waiting for the disk; returns their keys."""
    keys = []
    for number in range(count):
        made = entry(number, size)
        path = store.path(made.manifest.key)
        path.mkdir(parents=True, mode=0o700)
        (path / "manifest.json").write_bytes(render(made.manifest))
        (path / "artifact").write_bytes(made.artifact)
        keys.append(made.manifest.key)
    return keys


def timed(store: FileStore, keys: list[str], there: bool) -> list[float]:
    found = []
    for key in keys:
        begun = time.perf_counter()
        hit = store.get(key)
        found.append(time.perf_counter() - begun)
        if (hit is not None) != there:
            raise SystemExit(f"entry {key} is {'not ' if there else ''}there")
    return found


def measure(count: int, size: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(Path(folder) / "store")
        keys = fill(store, count, size)
        chosen = random.Random(0).choices(keys, k=500)
        absent = [make_ticket({"absent": str(n)}, BOX).key for n in range(500)]
        hits, misses = timed(store, chosen, True), timed(store, absent, False)
        begun = time.perf_counter()
        put = entry(-1, size)
        store.put(put)
        written = time.perf_counter() - begun
        begun = time.perf_counter()
        prune(store, 1 << 40)
        scanned = time.perf_counter() - begun
    return {
        "hit_s": statistics.median(hits),
        "worst_hit_s": max(hits),
        "miss_s": statistics.median(misses),
        "put_s": written,
        "scan_s": scanned,
    }


def signed(algorithm: str, size: int, rounds: int = 40) -> dict[str, float]:
    """Seconds of a hit where signatures are asked for, and where they are not, in turn."""
    key = new_key("benchmark", algorithm, None, 0)
    with tempfile.TemporaryDirectory() as folder:
        signer = Signer(Keys({key.id: key}, key.id))
        asking = FileStore(Path(folder) / "signed", signer=signer)
        trusting = FileStore(Path(folder) / "unsigned")
        made = [entry(number, size) for number in range(20)]
        for one in made:
            asking.put(one)
            trusting.put(one)
        keys = [one.manifest.key for one in made]
        times: dict[str, list[float]] = {"signed": [], "unsigned": []}
        for _ in range(rounds):
            times["signed"] += timed(asking, keys, True)
            times["unsigned"] += timed(trusting, keys, True)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=20_000, help="bytes of an artifact")
    options = parser.parse_args()
    few, many = measure(10, options.size), measure(options.entries, options.size)
    for name, values in (("10 entries", few), (f"{options.entries} entries", many)):
        print(f"{name}: " + ", ".join(f"{k} {v * 1000:.3f} ms" for k, v in values.items()))
    ratios = {}
    for algorithm in ("hmac-sha256", "ed25519"):
        hits = signed(algorithm, options.size)
        ratios[f"signed_ratio_{algorithm}"] = hits["signed"] / hits["unsigned"]
        print(f"{algorithm}: " + ", ".join(f"{k} {v * 1000:.3f} ms" for k, v in hits.items()))
    result = {"entries": options.entries, "bytes": options.size, "cpus": os.cpu_count(), **many}
    print(json.dumps({**result, "ratio_to_few": many["hit_s"] / few["hit_s"], **ratios}))


if __name__ == "__main__":
    main()
