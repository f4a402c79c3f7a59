"""The toy decoder: a captured forward against its floor, eager and torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from _gpu_measure import Contender, Times, take_turns
from _inside import captured_plan, entry_microseconds, floor_of
from _peers import Evidence, overhead, partitioned, settle
from _place import Place
from _targets import Target, print_table, print_targets
from toy_decoder import OPS, Decoder, inputs

__all__ = ["toy"]

NAMES = ("x", "position", "mask")
CONTEXTS = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


_MOST_OFF = 0.25
"""Largest difference to eager that bf16 explains over 32 layers; outputs are of size 1."""


def settings(sizes: tuple[int, ...]) -> dict[str, Any]:
    """What every toy model is compiled with."""
    import piecewise_core as pw

    dim = pw.Dim("batch", min=1, max=max(sizes))
    return {
        "dynamic": {name: {0: dim} for name in NAMES},
        "splitting_ops": OPS,
        "capture_sizes": sizes,
    }


def toy(place: Place, hidden: int) -> dict[str, Any]:
    """32 layers at batch 8."""
    batch, layers = (2, 2) if place.simulated else (8, 32)
    model = place.new(lambda: Decoder(layers, hidden))
    given = inputs(batch, hidden, place.device, place.dtype)
    piecewise = place.compile(model, graph_mode="piecewise", **settings((batch,)))
    full = place.compile(model, graph_mode="full", **settings((batch,)))
    recorded = place.record(model, **settings((batch,)))
    with torch.inference_mode():
        expected = model(*given)
        for module in (piecewise, full, recorded):
            module.warmup(*given, progress=False)
        plan = captured_plan(piecewise, batch)
        (replay,) = captured_plan(full, batch).steps
    contenders = [
        Contender("eager", lambda: model(*given)),
        Contender("recorded", lambda: recorded(*given)),
        Contender("piecewise", lambda: piecewise(*given)),
        Contender("floor", floor_of(plan, given)),
        Contender("full", lambda: full(*given)),
        Contender("one replay", replay),
    ]
    evidence = _peers(place, model, given, contenders) if place.has_peers else []
    with torch.inference_mode():
        errors = {
            c.name: (c.call().float() - expected.float()).abs().max().item()
            for c in contenders
            if c.name not in ("floor", "one replay")
        }
    wrong = {name: off for name, off in errors.items() if not off <= _MOST_OFF}
    if wrong:
        raise SystemExit(f"not measured, since these differ from eager: {wrong}")
    times = take_turns(contenders, place)
    with torch.inference_mode():
        entry = entry_microseconds(piecewise, given, (batch,), 20 if place.simulated else 2000)
    title = f"toy decoder, {layers} layers, hidden {hidden}, batch {batch}; us per forward"
    rows = [(name, t.host, t.wall, f"{errors.get(name, 0):.2g}") for name, t in times.items()]
    print_table(title, ("", "host", "wall", "max error"), [*rows, ("entry", entry, None, None)])
    for each in evidence:
        print(f"{each.name}: {each.problem or f'{each.graphs} graphs, valid'}")
    return {
        "microseconds": {n: {"host": t.host, "wall": t.wall} for n, t in times.items()},
        "entry_us": entry,
        "graphs": len(plan.graphs),
        "steps": len(plan.steps),
        "max_error": errors,
        "peers": [each.to_dict() for each in evidence],
        "targets": print_targets(_targets(times, entry, evidence), simulated=place.simulated),
    }


def _peers(place: Place, model: Any, given: Any, contenders: list[Contender]) -> list[Evidence]:
    """Add torch.compile's two forms, each in both contexts, warmed up."""
    found: list[Evidence] = []
    forms = {
        "reduce-overhead": (overhead(model), 1),
        "partition": (partitioned(model, OPS[0]), 2),
    }
    for form, (compiled, least) in forms.items():
        for context, enter in CONTEXTS.items() if compiled is not None else ():
            name = f"{form}, {context}"
            call = _caller(compiled, given)
            with enter():
                fresh = context == "no_grad"
                found.append(settle(name, call, place, least=least, fresh=fresh))
            contenders.append(Contender(name, call, enter))
    return found


def _caller(compiled: Any, given: Any) -> Any:
    return lambda: compiled(*given)


def _best(form: str, times: dict[str, Times], evidence: list[Evidence]) -> tuple[float | None, str]:
    """The wall time of a peer in its better context; None, and why, when it says nothing."""
    mine = [e for e in evidence if e.name.startswith(form)]
    valid = [times[e.name].wall for e in mine if not e.problem]
    if valid:
        return min(valid), ""
    return None, "; ".join(f"not valid: {e.problem}" for e in mine) or "no such peer here"


def _targets(times: dict[str, Times], entry: float, evidence: list[Evidence]) -> list[Target]:
    ours, floor, full = times["piecewise"], times["floor"], times["full"]
    whole, no_whole = _best("reduce-overhead", times, evidence)
    parts, no_parts = _best("partition", times, evidence)
    return [
        Target("host over the floor, kernels called directly", ours.host / floor.host, 0.85),
        Target("host over the floor", ours.host / floor.host, 1.05),
        Target("wall over the floor's", ours.wall / floor.wall, 1.0),
        Target("entry (call to first step)", entry, 15, "us"),
        Target("full: host over one replay", full.host - times["one replay"].host, 20, "us"),
        Target(
            "full: wall over reduce-overhead",
            full.wall / whole if whole else None,
            1.02,
            note=no_whole,
        ),
        Target(
            "wall over reduce-overhead with graph partition",
            ours.wall / parts if parts else None,
            0.45,
            note=no_parts,
        ),
    ]
