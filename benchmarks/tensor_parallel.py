"""A decoder split over several processes: piecewise and full graphs over reduce-overhead.

    python benchmarks/tensor_parallel.py --processes 2

Each process has a GPU (NCCL), or all share the CPU (gloo: a rehearsal of this script, whose times
say nothing). All ways take turns in one run. The floor is what the decoder's all-reduces take by
themselves, in one graph. The last line is one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from _gpu_measure import Contender, take_turns
from _measure import Row, report
from _place import Place
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

import piecewise_core as pw

SPLIT = ("torch.nn.functional.scaled_dot_product_attention",)
TARGETS = {"piecewise": 0.97, "full": 0.88}


class Layer(torch.nn.Module):
    """Attention and a gated MLP, a share of the heads and of the columns in each process."""

    def __init__(self, hidden: int, heads: int, world: int) -> None:
        super().__init__()
        made = {"bias": False}
        self.heads = heads // world
        self.qkv = torch.nn.Linear(hidden, 3 * hidden // world, **made)
        self.out = torch.nn.Linear(hidden // world, hidden, **made)
        self.gate_up = torch.nn.Linear(hidden, 8 * hidden // world, **made)
        self.down = torch.nn.Linear(4 * hidden // world, hidden, **made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``: [rows, hidden], the same in every process, as is the result."""
        made = self.qkv(rms_norm(x, x.shape[-1:])).view(1, x.shape[0], 3 * self.heads, -1)
        q, k, v = made.transpose(1, 2).chunk(3, 1)
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], -1)
        x = x + reduced(self.out(y))
        gate, up = self.gate_up(rms_norm(x, x.shape[-1:])).chunk(2, -1)
        return x + reduced(self.down(silu(gate) * up))


def reduced(x: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    return functional.all_reduce(x, "sum", dist.group.WORLD)


def ways(model: torch.nn.Module, rows: tuple[int, ...], place: Place) -> dict[str, Any]:
    """What takes turns: torch's own, and piecewise with graphs in pieces and of the whole."""
    dims = {"x": {0: pw.Dim("rows", max=max(rows))}}
    own = {"mode": "reduce-overhead"} if place.has_peers else {"backend": "eager"}
    found: dict[str, Any] = {"eager": model}
    found["reduce-overhead"] = torch.compile(model, dynamic=False, fullgraph=True, **own)
    for mode in TARGETS:
        found[mode] = place.compile(
            model, dynamic=dims, splitting_ops=SPLIT, capture_sizes=rows, graph_mode=mode
        )
    return found


def reduces(count: int, x: torch.Tensor, place: Place) -> Callable[[], Any]:
    """``count`` all-reduces of ``x`` by themselves, in one graph where there is a GPU."""

    def run() -> None:
        for _ in range(count):
            dist.all_reduce(x)

    if place.simulated:
        return run
    x.zero_()
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def work(rank: int, asked: argparse.Namespace, port: int, folder: str) -> None:
    """One process: every way at every number of rows, in the same order as the others."""
    gpus = torch.cuda.is_available()
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"PIECEWISE_CACHE_DIR": f"{folder}/{rank}"}
    where = {"device_id": torch.device(f"cuda:{rank}")} if gpus else {}
    if gpus:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if gpus else "gloo", rank=rank, world_size=asked.processes, **where
    )
    place = Place(simulated=not gpus, quick=asked.quick)
    with contextlib.redirect_stdout(sys.stdout if rank == 0 else sys.stderr):
        found, raw = measured(asked, place)
        if rank == 0:
            title = f"{asked.processes} processes, {asked.layers} layers of hidden {asked.hidden}"
            report(title, found, raw)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # NCCL waits for graphs that it is in; these go with the process


def measured(asked: argparse.Namespace, place: Place) -> tuple[list[Row], dict[str, Any]]:
    """Ratios over reduce-overhead, and the times they are of."""
    torch.manual_seed(dist.get_rank())
    shape = (asked.hidden, asked.heads, asked.processes)
    with torch.device(place.device):
        layers = [Layer(*shape).to(place.dtype) for _ in range(asked.layers)]
    model = Whole(torch.nn.Sequential(*layers)).eval().requires_grad_(False)
    found: list[Row] = []
    raw: dict[str, Any] = {"processes": asked.processes, "rows": asked.rows}
    with torch.inference_mode():
        served = ways(model, tuple(asked.rows), place)
        for rows in asked.rows:
            x = torch.randn(rows, asked.hidden, generator=torch.Generator().manual_seed(rows))
            x = x.to(place.device, place.dtype)
            off = {name: apart(call, model, x) for name, call in served.items()}
            contenders = [Contender(name, partial(call, x)) for name, call in served.items()]
            floor = reduces(2 * asked.layers, torch.zeros_like(x), place)
            contenders.append(Contender("all-reduces", floor))
            wall = {name: t.wall for name, t in take_turns(contenders, place).items()}
            base = wall["reduce-overhead"]
            for name in TARGETS:
                found.append((f"{name}_{rows}_rows", wall[name] / base, "x", TARGETS[name]))
            raw |= {f"us_{rows}_rows": wall, f"off_{rows}_rows": off}
        raw["replayed"] = {n: served[n].stats().calls["replayed"] for n in TARGETS}
    return found, raw


def apart(call: Callable[..., Any], model: torch.nn.Module, x: torch.Tensor) -> float:
    """How far from eager, once graphs were made, over the largest number."""
    for _ in range(4):
        call(x)
    got, want = call(x).float(), model(x).float()
    return float((got - want).abs().max() / want.abs().max())


class Whole(torch.nn.Module):
    """Layers behind one argument with a name."""

    def __init__(self, layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``: [rows, hidden]."""
        result: torch.Tensor = self.layers(x)
        return result


def main(arguments: list[str] | None = None) -> None:
    """Start a process for each share."""
    asked = _arguments(arguments)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="piecewise-bench-") as folder:
        given = (asked, port, folder)
        torch.multiprocessing.spawn(work, given, nprocs=asked.processes)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="shares, one GPU each (2)")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    asked = parser.parse_args(arguments)
    if asked.heads % asked.processes or asked.hidden % asked.heads:
        parser.error("--heads must divide among --processes, and --hidden among --heads")
    if torch.cuda.is_available() and torch.cuda.device_count() < asked.processes:
        parser.error(f"{asked.processes} processes need as many GPUs")
    return asked


if __name__ == "__main__":
    main()
