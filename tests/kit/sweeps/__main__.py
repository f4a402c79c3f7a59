"""``python -m sweeps``: run the operators' passes in worker processes, resume, print one JSON line.

Results go to a file as they come, so that a sweep that was stopped goes on where it was. A worker
that dies or hangs costs its operator, which is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sweeps.table import FAMILIES, summary, table


def main() -> int:
    """Run what is not done yet; 1 when anything is wrong, bare or hung."""
    asked = _arguments()
    home = asked.out
    home.mkdir(parents=True, exist_ok=True)
    results = home / "operators.jsonl"
    if asked.fresh:
        results.unlink(missing_ok=True)
    names = _names(asked)
    done = {row["op"] for row in _rows(results) if row["pass"] == "done"}
    left = [n for n in names if n not in done]
    print(f"{len(names)} operators, {len(done & set(names))} done before; results in {results}")
    _work(left, results, asked)
    rows = [r for r in _rows(results) if r["op"] in set(names)]
    print(table(rows))
    line = summary(rows)
    print(json.dumps(line))
    return int(bool(line["wrong"] or line["bare"] or line["hung"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sweeps", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/sweep"), help="where results lie")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--families", nargs="*", metavar="NAME", help="families alone, or these")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these operators alone")
    parser.add_argument("--passes", nargs="*", metavar="PASS", help="these passes, or ways, alone")
    parser.add_argument("--cases", type=int, default=3, help="samples of each operator (3)")
    parser.add_argument("--hang", type=int, default=240, help="seconds for one of them (240)")
    parser.add_argument("--device", default="", help="of families, in place of the CPU: cuda")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    return parser.parse_args()


def _names(asked: argparse.Namespace) -> list[str]:
    kinds = [f"family:{json.loads(line)['family']}" for line in FAMILIES.read_text().splitlines()]
    if asked.families is not None:
        return [n for n in kinds if not asked.families or n[7:] in asked.families]
    if asked.only:
        return list(asked.only)

    from sweeps.cases import label, operators  # seconds of imports, which families do without

    names = list(dict.fromkeys(label(op) for op in operators()))
    return names + kinds


def _rows(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines() if line.endswith("}")]


def _work(names: list[str], results: Path, asked: argparse.Namespace) -> None:
    """Give the operators to workers, one at a time, and see to those that die."""
    left: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        left.put(name)
    said = _Progress(len(names))
    threads = [
        threading.Thread(target=_serve, args=(left, results, asked, said))
        for _ in range(min(asked.workers, len(names)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _Progress:
    """Prints a line for each operator that has ended."""

    def __init__(self, count: int) -> None:
        self._count, self._done, self._begun = count, 0, time.monotonic()

    def __call__(self, op: str, what: str) -> None:
        self._done += 1
        seconds = time.monotonic() - self._begun
        print(f"[{self._done}/{self._count}] {seconds:.0f} s  {op}: {what}", flush=True)


def _serve(
    left: queue.SimpleQueue[str], results: Path, asked: argparse.Namespace, said: _Progress
) -> None:
    """Run operators in a process, and in another where that one died."""
    worker: subprocess.Popen[str] | None = None
    while not left.empty():
        try:
            op = left.get_nowait()
        except queue.Empty:
            break
        worker = worker or _started(results, asked)
        watchdog = threading.Timer(asked.hang, worker.kill)
        watchdog.start()
        print(op, file=worker.stdin, flush=True)
        answer = worker.stdout.readline() if worker.stdout else ""
        watchdog.cancel()
        if not answer:
            worker.wait()
            worker, answer = None, "its process died, or said nothing for too long"
            for row in ({"pass": "worker", "kind": "hung", "why": answer}, {"pass": "done"}):
                with results.open("a") as file:
                    print(json.dumps({"op": op, **row}), file=file)
        said(op, answer.strip())
    if worker is not None:
        worker.communicate()


def _started(results: Path, asked: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sweeps.worker", str(results), str(asked.cases)]
    return subprocess.Popen(
        [*command, *(asked.passes or ())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Inductor's own pool has a process a core: workers times cores start torch, and hang.
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "PIECEWISE_SWEEP_DEVICE": asked.device,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
