"""Static plans of the CPU platform: a captured size against the same compiled code, uncaptured.

all-MiniLM-L6-v2 with Inductor, cut at attention, at batch 1, sequence 8 and larger. Needs the
``demo`` extra.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import Row, in_turn, report

import piecewise_core as pw

SHAPES = ((1, 8), (1, 32), (4, 16))
TARGET = 0.95


def calls(shapes: tuple[tuple[int, int], ...]) -> dict[str, Callable[[], Any]]:
    """For each shape: eager, compiled, captured."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import minilm_contenders

    model, _ = minilm_contenders.load()
    contender: Any = minilm_contenders.make("piecewise", model, "inductor")
    config = contender.config.replace(capture_sizes=())  # the demo's own has the shortest
    plain: Any = pw.compile(model, config, platform=contender.platform)
    captured = pw.compile(
        model, config.replace(capture_sizes=shapes, capture_max=False), platform=contender.platform
    )
    runs: dict[str, Callable[[], Any]] = {}
    for batch, sequence in shapes:
        ids = torch.randint(1000, 2000, (batch, sequence))
        given = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
        }
        name = f"batch_{batch}_sequence_{sequence}"
        for kind, run in (("eager", model), ("compiled", plain), ("captured", captured)):
            # A call's first run compiles or captures.
            runs[f"{name}_{kind}"] = lambda run=run, given=given: run(**given)
            off = run(**given).last_hidden_state - model(**given).last_hidden_state
            if float(off.abs().max()) > 1e-4:
                raise SystemExit(f"{name}_{kind} differs from eager by {float(off.abs().max())}")
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    with torch.inference_mode():
        found = in_turn(calls(SHAPES), rounds=9 if quick else 60, calls=5 if quick else 10)
    rows: list[Row] = []
    for batch, sequence in SHAPES:
        name = f"batch_{batch}_sequence_{sequence}"
        for kind in ("compiled", "eager"):
            pairs = zip(found[f"{name}_captured"], found[f"{name}_{kind}"], strict=True)
            ratios = sorted(captured / other for captured, other in pairs)
            small = (batch, sequence, kind) == (*SHAPES[0], "compiled")
            target = TARGET if small else None
            rows.append((f"{name}_captured_over_{kind}", ratios[len(ratios) // 2], "", target))
    raw = {f"{n}_ms": [round(s * 1e3, 4) for s in values] for n, values in found.items()}
    report("static plans on the CPU", rows, raw)


if __name__ == "__main__":
    main()
