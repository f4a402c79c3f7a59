"""Many processes on one store, killed at random; prints what came of it as one JSON line.

    python store_chaos.py CACHE_DIR --processes 16 --rounds 20 --kill

Each round has a model of its own with pieces that earlier rounds had and pieces that they had
not. Processes are forked off one that has torch loaded, so that a round is short.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from source_platform import SourcePlatform
from torch import nn

import piecewise_core as pw
from piecewise_core.store.files import FileStore
from piecewise_core.store.sources import core_digest

DISTINCT = 6
"""Pieces of a round's model, times ranges."""


LONGEST = 3.0
"""Seconds after a round's begin in which processes are killed, at most."""


class Layers(nn.Module):
    """Layers cut at softmax; the last piece is the round's own."""

    def __init__(self, number: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.number = float(number)

    def forward(self, x):
        x = x * self.number
        for layer in self.layers:
            x = nn.functional.softmax(layer(x).relu(), -1)
        return x + self.number


def one_process(number: int) -> None:
    """Warm up, and compare with the model itself. Raises what is wrong."""
    model = Layers(number)
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 64)}},
        splitting_ops=("torch.nn.functional.softmax",),
        compile_ranges_endpoints=(8,),
    )
    fast = pw.compile(model, config, SourcePlatform())
    with torch.inference_mode():
        fast.warmup(torch.randn(3, 8), progress=False)
        for rows in (1, 8, 9, 64):
            x = torch.randn(rows, 8)
            torch.testing.assert_close(fast(x), model(x))
    stats = fast.stats()
    if stats.compilations + stats.cache_hits != DISTINCT:
        raise AssertionError(f"{stats.compilations} compiled, {stats.cache_hits} from the store")


def fork(number: int, ready: int, go: int) -> int:
    """A child that does one_process once the parent closes ``go``; its exit code tells of it."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.close(go)
        os.read(ready, 1)
        one_process(number)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def compiled(log: Path) -> list[list[str]]:
    """Key and process of each compilation that was begun."""
    return [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []


def compiling(log: Path, alive: set[int], span: float) -> int | None:
    """The process of ``alive`` that begins to compile next, within ``span`` seconds."""
    known, until = len(compiled(log)), time.monotonic() + span
    while time.monotonic() < until:
        for _, process in compiled(log)[known:]:
            if int(process) in alive:
                return int(process)
        time.sleep(0.002)
    return None


def one_round(
    number: int, processes: int, chaos: random.Random | None, span: float, log: Path
) -> tuple[int, int, int]:
    """Killed, finished well, failed. ``span``: seconds over which processes are killed."""
    ready, go = os.pipe()
    children = {fork(number, ready, go) for _ in range(processes)}
    os.close(ready)
    os.close(go)
    killed: set[int] = set()
    while chaos is not None and len(killed) < processes // 2:
        # In turn: somebody at some time, and whoever compiles.
        victim = chaos.choice(sorted(children - killed))
        if len(killed) % 2:
            victim = compiling(log, children - killed, span)
        else:
            time.sleep(chaos.random() * 2 * span / processes)
        if victim is None:
            break
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)
    died = good = failed = 0
    for child in children:
        _, status = os.waitpid(child, 0)
        if child in killed and os.WIFSIGNALED(status):
            died += 1
        elif status == 0:
            good += 1
        else:
            failed += 1
    return died, good, failed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cache_dir", type=Path)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    log = options.cache_dir / "log"
    options.cache_dir.mkdir(exist_ok=True)
    os.environ["PIECEWISE_CACHE_MODE"] = "off"
    one_process(-1)  # what is imported on the way need not be imported again
    core_digest()  # read once: sources that are being edited must not look like another version
    os.environ["PIECEWISE_CACHE_MODE"] = "readwrite"
    os.environ["PIECEWISE_CACHE_DIR"] = str(options.cache_dir)
    os.environ["SOURCE_LOG"] = str(log)
    os.environ["SOURCE_SECONDS"] = "0.03"
    chaos = random.Random(options.seed) if options.kill else None
    rounds, span = [], 1.0
    for number in range(options.rounds):
        begun = time.monotonic()
        rounds.append(one_round(number, options.processes, chaos, span, log))
        span = min(time.monotonic() - begun, LONGEST)
    store = FileStore(options.cache_dir / "store")
    keys = list(store.all_keys())
    pieces = [m for m in store.manifests() if m.adaptor == "source"]
    keys_compiled = [key for key, _ in compiled(log)]
    killed, finished, failed = (sum(part) for part in zip(*rounds, strict=True))
    quarantine = store.root / "quarantine"
    print(
        json.dumps(
            {
                "rounds": options.rounds,
                "processes": options.processes,
                "killed": killed,
                "finished": finished,
                "failed": failed,
                "entries": len(keys),
                "pieces": len(pieces),
                "damaged": [key for key in keys if store.check(key)],
                "quarantined": len(os.listdir(quarantine)) if quarantine.exists() else 0,
                "compilations": len(keys_compiled),
                "distinct": len(set(keys_compiled)),
            }
        )
    )


if __name__ == "__main__":
    main()
