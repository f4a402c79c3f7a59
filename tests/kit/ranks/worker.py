"""One of several processes: a model with collectives, served in a round with faults."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import tempfile
import time
import traceback
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import piecewise_core as pw
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.testing import SimulatedPlatform

WIDTH = 8
SIZES = (4, 8)


class Layer(torch.nn.Module):
    def __init__(self, seed, group=None):
        super().__init__()
        self.group = group
        self.weight = torch.nn.Parameter(
            torch.rand(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed)) / WIDTH
        )

    def forward(self, x):
        made = torch.nn.functional.linear(x, self.weight)
        group = self.group or dist.group.WORLD
        return torch.softmax(functional.all_reduce(made, "sum", group), -1) + x


class Model(torch.nn.Module):
    """``kind``: "usual", or what only one rank has. ``groups``: of its layers, in turn."""

    def __init__(self, kind="usual", groups=(None,)):
        super().__init__()
        count = 3 if kind == "deeper" else 2
        self.layers = torch.nn.ModuleList(Layer(i, groups[i % len(groups)]) for i in range(count))
        self.scale = 1.0
        self.kind = kind

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        if self.kind == "gathers":
            x = x + functional.all_gather_tensor(x, 0, dist.group.WORLD)[: x.shape[0]]
        return x * self.scale


class SlowCompiler(EagerCompiler):
    """Compiles nothing, slowly; or dies of it."""

    def __init__(self, seconds, dies=False):
        super().__init__()
        self.seconds, self.dies = seconds, dies

    def compile(self, *args, **kwargs):
        time.sleep(self.seconds)
        if self.dies:
            os._exit(9)
        return super().compile(*args, **kwargs)


class Trouble:
    """Raises, sleeps or ends the process at one of a driver's methods, the n-th time.

    ``kind``: "memory", "slow" or "death"; ``at``: n, from 1.
    """

    def __init__(self, of, kind, at, seconds=0.0):
        self._of, self._kind, self._at, self._seconds = of, kind, at, seconds

    def __getattr__(self, name):
        return getattr(self._of, name)

    def capture_begin(self, *args, **kwargs):
        self._at -= 1
        if self._at == 0:
            if self._kind == "death":
                os._exit(9)
            if self._kind == "slow":
                time.sleep(self._seconds)
            else:
                raise torch.OutOfMemoryError("out of memory, so it was arranged")
        return self._of.capture_begin(*args, **kwargs)


def inputs(rank, turn, rows):
    made = torch.Generator().manual_seed(1000 * turn + 10 * rows + rank)
    return torch.rand(rows, WIDTH, generator=made)


def teams(kind, world):
    """Who sums with whom, layer by layer: all; or halves, and then one of each half."""
    if kind == "world":
        return [[list(range(world))]]
    half = max(world // 2, 1)
    rows = [list(range(start, min(start + half, world))) for start in range(0, world, half)]
    return [rows, [list(range(start, world, half)) for start in range(half)]]


def grouped(kind, world, rank):
    """This rank's group of each of ``teams``; all ranks make all of them."""
    if kind == "world":
        return (None,)
    made = [[(team, dist.new_group(team)) for team in each] for each in teams(kind, world)]
    return tuple(next(group for team, group in each if rank in team) for each in made)


def expected(model, turn, rows, world, kind):
    """What the model gives every rank, computed alone."""
    xs = [inputs(rank, turn, rows) for rank in range(world)]
    split = teams(kind, world)
    for place, layer in enumerate(model.layers):
        made = [torch.nn.functional.linear(x, layer.weight) for x in xs]
        of = {rank: team for team in split[place % len(split)] for rank in team}
        totals = [sum(made[other] for other in of[rank]) for rank in range(world)]
        xs = [torch.softmax(t, -1) + x for t, x in zip(totals, xs, strict=True)]
    return [x * model.scale for x in xs]


def settings(spec):
    """The Config of a round on one rank."""
    given = {
        "dynamic": {"x": {0: pw.Dim("rows", max=max(SIZES))}},
        "capture_sizes": SIZES,
        "splitting_ops": ("torch.softmax",),
        "ranks_timeout": spec["timeout"],
        **spec.get("config", {}),
    }
    return pw.Config(**given)


def made(spec, fault, groups):
    """The model of one rank, served as the round says."""
    platform = SimulatedPlatform()
    if fault in ("memory", "slow", "death") and spec["where"] == "capture":
        platform.graphs = Trouble(platform.graphs, fault, spec["at"], spec["seconds"])
    dies = fault == "death" and spec["where"] == "compiled"
    if fault == "cold" or dies:
        platform.compiler = SlowCompiler(spec["seconds"], dies)
    config = settings(spec)
    if fault == "config":
        config = config.replace(capture_sizes=(4,), capture_max=False)
    model = Model(spec["kind"] if fault == "model" else "usual", groups).eval()
    serve = pw.record if spec["front"] == "record" else pw.compile
    return model, serve(model, config, platform)


def lone(fault, model, fast):
    """What one rank does to its model alone."""
    if fault == "state":
        model.scale = 2.0
    elif fault == "weight":
        model.layers[0].weight = torch.nn.Parameter(model.layers[0].weight.detach().clone())
    elif fault == "release":
        fast.release()
    elif fault == "restore":
        fast.restore()


def ends(fault):
    """What all ranks do to torch.distributed: end it, or have another one, of one process each."""
    if fault in ("ended", "anew"):
        dist.destroy_process_group()
    if fault == "anew":
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def served(rank, world, spec, found):
    """One round: ``found`` gets what happened on this rank, as plain data."""
    fault = spec["fault"] if rank == spec["rank"] else ""
    where = spec["where"]

    def maybe(place):
        if fault == "slow" and where == place:
            time.sleep(spec["seconds"])
        if fault == "death" and where == place:
            os._exit(9)

    teamed = spec.get("groups", "world")
    groups = grouped(teamed, world, rank)  # torch waits for one that dies before, and for long
    maybe("start")
    model, fast = made(spec, fault, groups)
    found["ranks"] = fast._ranks if spec["front"] == "record" else fast._pw_session.shared.ranks
    reference = Model().eval()
    if spec["warm"]:
        fast.warmup(inputs(rank, 0, 4), progress=False)
        maybe("warm")
    wrong = []
    for turn, rows in enumerate(spec["rows"]):
        if turn == 2:
            maybe("call")
            lone(fault, model, fast)
            if spec["fault"] in ("ended", "anew") and found["ranks"].meeting is None:
                break  # nothing was captured: from now on it is the model as written
            ends(spec["fault"])
        if turn == 3 and where == "released":
            maybe("released")
            fast.release()
        got = fast(inputs(rank, turn, rows))
        want = expected(reference, turn, rows, world, teamed)[rank] * model.scale
        if not torch.allclose(got, want, atol=1e-5):
            wrong.append(f"turn {turn}, {rows} rows: apart by {(got - want).abs().max():.3g}")
    recorded = spec["front"] == "record"
    forms = fast._forms if recorded else fast._pw_session.forms
    plans = [form.recordings.replays.plans if recorded else form.capturing.plans for form in forms]
    calls = fast.stats().calls
    found["wrong"] = wrong
    found["captured"] = sorted(list(sizes) for each in plans for sizes in each.captured)
    found["replayed"] = calls["replayed"]


def round_of(rank, world, store, spec):
    """One round in a world of its own; plain data."""
    begun = time.monotonic()
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    begun_up = time.monotonic()
    faulthandler.dump_traceback_later(25)
    found = {"outcome": "agreed"}
    try:
        with torch.inference_mode():
            served(rank, world, spec, found)
    except pw.errors.RanksDisagree as error:
        found |= {"outcome": "RanksDisagree", "rank": error.rank, "text": str(error)}
    except Exception as error:
        found |= {"outcome": type(error).__name__, "text": f"{error}"[:300]}
        found["trace"] = traceback.format_exc()[-3000:]
    meeting = found.pop("ranks").meeting if "ranks" in found else None
    found["held up"] = 0.0 if meeting is None else meeting.longest
    faulthandler.cancel_dump_traceback_later()
    found["seconds"] = time.monotonic() - begun_up
    found["set up"] = begun_up - begun
    with contextlib.suppress(Exception):
        dist.destroy_process_group()
    return found


def work(rank, world, port, pipe):
    """A process: rounds as the parent sends them, until it sends None."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ["PIECEWISE_CACHE_DIR"] = tempfile.mkdtemp(prefix="ranks-")
    meeting = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=10))
    for serve in (pw.compile, pw.record):  # imports all there is
        config = pw.Config(dynamic={0: {0: pw.Dim("rows", max=4)}}, capture_sizes=(4,))
        with torch.inference_mode():
            serve(torch.nn.Linear(2, 2).eval(), config, SimulatedPlatform())(torch.ones(4, 2))
    pipe.send("ready")
    while (sent := pipe.recv()) is not None:
        number, spec = sent
        store = dist.PrefixStore(f"round {number}", meeting)
        pipe.send(round_of(rank, world, store, spec))
        gc.collect()
