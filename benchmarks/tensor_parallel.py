"""A decoder split over several processes: piecewise and full graphs over reduce-overhead.

    torchrun --nproc-per-node 2 benchmarks/tensor_parallel.py --minutes 5
    python benchmarks/tensor_parallel.py --processes 2

Each process has a GPU (NCCL), or all share the CPU (gloo: a rehearsal, whose times say nothing).
Under torchrun the first process starts the others by itself. Every case has processes of its own
and a time limit: all-reduces by themselves, which are the floor, by size and way; then the decoder
with 1, 8 and 64 rows, where all ways take turns; then a Llama as transformers' tp_plan splits it.
The last line is one JSON line, with what was found when the time was over. Code that one case
compiled is there for the next.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from _gpu_measure import Contender, take_turns
from _measure import Row, report
from _place import Place
from _processes import supervise, tell
from _split_models import decoder, llama

import piecewise_core as pw

SPLIT = ("torch.nn.functional.scaled_dot_product_attention",)
TARGETS = {"piecewise": 0.97, "full": 0.88}
LIBRARY = " by library"
SHARED = 0.96
"""Of our own time by the library, with symmetric memory, at one row."""

LEAST = 20
"""Seconds below which no case begins."""


def ways(model: torch.nn.Module, rows: int, place: Place) -> dict[str, Any]:
    """What takes turns: torch's own, and piecewise with graphs in pieces and of the whole.

    Each of ours twice where all-reduces may go by symmetric memory: with it, and by the library.
    """
    dims = {"x": {0: pw.Dim("rows", max=64)}}
    own = {"mode": "reduce-overhead"} if place.has_peers else {"backend": "eager"}
    found: dict[str, Any] = {"eager": model}
    found["reduce-overhead"] = torch.compile(model, dynamic=False, fullgraph=True, **own)
    for mode in TARGETS:
        for name, off in ((mode, ()), (mode + LIBRARY, ("small_all_reduces",))):
            found[name] = place.compile(
                model,
                dynamic=dims,
                splitting_ops=SPLIT,
                capture_sizes=(rows,),
                capture_max=False,
                graph_mode=mode,
                rewrites_off=off,
                ranks_timeout=30,
            )
    return found


def reduces(
    count: int, x: torch.Tensor, place: Place, once: Callable[..., Any]
) -> Callable[[], Any]:
    """``count`` all-reduces of ``x`` by themselves, in one graph where there is a GPU."""

    def run() -> None:
        for _ in range(count):
            once(x)

    if place.simulated:
        return run
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def sums(asked: argparse.Namespace, place: Place) -> None:
    """Microseconds of one all-reduce in a graph of 32, by its way and bytes."""
    count, found = 2 if place.simulated else 32, {}
    memory, name = place.platform.capabilities.symmetric_memory, dist.group.WORLD.group_name
    share = None
    if memory is not None:
        try:
            share = memory.allocate(10 * 2**20)
            memory.connect(share, name)
        except Exception as error:
            found["symmetric memory"] = f"{type(error).__name__}: {error}"[:200]
            share = None
    for kib in (8, 64, 256, 512, 4096):
        x = torch.zeros(kib * 2**10 // 2, device=place.device, dtype=torch.bfloat16)
        by = {"library": dist.all_reduce}
        if share is not None:
            by["one-shot"] = lambda x: memory.total(share, x, name, one_shot=True)
            by["two-shot"] = lambda x: memory.total(share, x, name, one_shot=False)
        runs = [Contender(way, reduces(count, x, place, call)) for way, call in by.items()]
        took = {way: t.wall / count for way, t in take_turns(runs, place, repeats=20).items()}
        found |= {f"{kib} KiB": took}
        said(found)


def measured(
    asked: argparse.Namespace, place: Place, build: Callable[..., Any], log: TextIO
) -> None:
    """Ratios over reduce-overhead at one number of rows, and the times they are of.

    ``log``: gets whose turn it is, and so tells where ranks that wait for each other are apart.
    """

    def turn(name: str) -> None:
        print(f"{time.monotonic() - began:.2f} s: {name}", file=log, flush=True)

    rows, began = asked.rows[0], time.monotonic()
    model, x = build(asked, place)
    found: dict[str, Any] = {"rows": rows}
    with torch.inference_mode():
        served = ways(model, rows, place)
        found["off"] = {}
        for name, call in list(served.items()):
            turn(f"first {name}")
            try:
                found["off"][name] = apart(call, model, x)
            except Exception as error:  # the others may do, and ranks fail alike
                found[f"{name} failed"] = f"{type(error).__name__}: {error}"[:500]
                del served[name]
            found["seconds to the first results"] = time.monotonic() - began
            said(found)
        ours = {name: one for name, one in served.items() if name.startswith(tuple(TARGETS))}
        off = {n: r.off for n, one in ours.items() for r in one.explain().rewrites if r.off}
        found["rewrites off"] = off
        floor = reduces(2 * asked.layers, torch.zeros_like(x), place, dist.all_reduce)
        calls = {name: partial(call, x) for name, call in served.items()}
        contenders = [
            Contender(name, call, before=partial(turn, name))
            for name, call in {**calls, "all-reduces": floor}.items()
        ]
        wall = {name: t.wall for name, t in take_turns(contenders, place).items()}
        found["us"] = wall
        found["replayed"] = {name: one.stats().calls["replayed"] for name, one in ours.items()}
        said(found)


def apart(call: Callable[..., Any], model: torch.nn.Module, x: torch.Tensor) -> float:
    """How far from eager, once graphs were made, over the largest number."""
    for _ in range(4):
        call(x)
    got, want = call(x).float(), model(x).float()
    return float((got - want).abs().max() / want.abs().max())


def said(found: dict[str, Any]) -> None:
    """Tell what is known so far; of ranks the first."""
    if dist.get_rank() == 0:
        tell(found)


def work(rank: int, asked: argparse.Namespace, port: int) -> None:
    """One process of a case."""
    # Whatever it hangs in: nothing handles this signal.
    began = time.time()
    signal.alarm(max(1, int(asked.limit)))
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC")]:
        del os.environ[name]
    gpus = torch.cuda.is_available()
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(asked.processes)}
    os.environ |= {"PIECEWISE_CACHE_DIR": f"{asked.folder}/{rank}"}
    where = {"device_id": torch.device(f"cuda:{rank}")} if gpus else {}
    if gpus:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if gpus else "gloo",
        init_method=f"tcp://localhost:{port}",
        rank=rank,
        world_size=asked.processes,
        **where,
    )
    place = Place(simulated=not gpus, quick=asked.quick)
    with (
        contextlib.redirect_stdout(sys.stdout if rank == 0 else sys.stderr),
        Path(asked.folder, f"turns of rank {rank}").open("w") as log,
    ):
        faulthandler.dump_traceback_later(max(0.5, began + asked.limit - 2 - time.time()), file=log)
        if asked.case == "sums":
            sums(asked, place)
        else:
            measured(asked, place, llama if asked.case == "llama" else decoder, log)
        faulthandler.cancel_dump_traceback_later()
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # NCCL waits for graphs that it is in; these go with the process


def drive(asked: argparse.Namespace, given: list[str]) -> None:
    """Every case in turn while there is time, then the table and one JSON line."""
    end = time.monotonic() + 60 * asked.minutes
    found: dict[str, Any] = {}
    cases = ["sums", *(f"decoder {rows}" for rows in asked.rows), "llama"]
    with tempfile.TemporaryDirectory(prefix="piecewise-bench-") as folder:
        for name in [case for case in cases if not asked.only or case.startswith(asked.only)]:
            left = end - time.monotonic()
            if left < LEAST:
                found[name] = {"crashed": "not begun: the time was over"}
                continue
            case, _, rows = name.partition(" ")
            limit = min(asked.limit, left)
            how = ["--case", case, "--folder", folder, "--limit", str(limit)]
            how += ["--rows", rows or str(asked.rows[0])]
            print(f"{name}: at most {limit:.0f} s", flush=True)
            found[name] = supervise(name, [__file__, *given, *how], limit + 5)
            if "crashed" in found[name]:
                found[name]["turns"] = last_turns(folder)
    title = f"{asked.processes} processes, {asked.layers} layers of hidden {asked.hidden}"
    report(title, ratios(found), {"processes": asked.processes, "cases": found})


def last_turns(folder: str) -> dict[str, list[str]]:
    """Where each rank was when the time was over: its last turns, and its stack."""
    found = {}
    for path in sorted(Path(folder).glob("turns of rank *")):
        found[path.name] = path.read_text().splitlines()[-25:]
        print(path.name, *found[path.name], sep="\n  ", flush=True)
    return found


def ratios(found: dict[str, Any]) -> list[Row]:
    """What the targets are of, as far as it was measured."""
    rows: list[Row] = []
    for name, case in found.items():
        us = case.get("us", {})
        for mode, target in TARGETS.items():
            title, one = (
                f"{name.replace(' ', '_')}_{mode}",
                SHARED if case.get("rows") == 1 else None,
            )
            for over, base, aim in (
                ("", "reduce-overhead", target),
                ("_over_library", mode + LIBRARY, one),
            ):
                if mode in us and base in us:
                    rows.append((title + over, us[mode] / us[base], "x", aim))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Drive, or be a case."""
    given = sys.argv[1:] if arguments is None else arguments
    asked = _arguments(given)
    if asked.case:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        torch.multiprocessing.spawn(work, (asked, port), nprocs=asked.processes)
    elif os.environ.get("RANK", "0") == "0":  # of torchrun's the first is enough
        drive(asked, [*given, "--processes", str(asked.processes)])


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    several = int(os.environ.get("WORLD_SIZE", 2))
    parser.add_argument("--processes", type=int, default=several, help="shares, one GPU each (2)")
    parser.add_argument(
        "--minutes", type=float, default=10, help="no case goes on after these (10)"
    )
    parser.add_argument("--limit", type=float, default=200, help="seconds of one case (200)")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", default="", help="cases that begin so: sums, decoder, llama")
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.heads % asked.processes or asked.hidden % asked.heads:
        parser.error("--heads must divide among --processes, and --hidden among --heads")
    if torch.cuda.is_available() and torch.cuda.device_count() < asked.processes:
        parser.error(f"{asked.processes} processes need as many GPUs")
    return asked


if __name__ == "__main__":
    main()
