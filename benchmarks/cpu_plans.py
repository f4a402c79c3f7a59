"""Static plans of the CPU platform: a captured size against the same compiled code, uncaptured.

all-MiniLM-L6-v2 with Inductor, cut at attention, at batch 1, sequence 8 and larger. Needs the
``demo`` extra.

--weights bfloat16 has the model in that dtype, int8 its linear layers as torchao makes them: int8
weights, activations rounded to int8 in every call. Nothing of ours knows: the same pieces run what
torch has for the processor (AMX, VNNI, or neither). A result counts where it is as close to the
model in float32 as eager's of the same weights.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import Row, in_turn, report

import piecewise_core as pw

SHAPES = ((1, 8), (1, 32), (4, 16))
TARGET = 0.95
WEIGHTS = ("float32", "bfloat16", "int8")


def calls(shapes: tuple[tuple[int, int], ...], weights: str) -> dict[str, Callable[[], Any]]:
    """For each shape: eager, compiled, captured."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import minilm_contenders

    exact, _ = minilm_contenders.load()
    model = _with(weights, copy.deepcopy(exact))
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
            wanted, mine = exact(**given).last_hidden_state, run(**given).last_hidden_state
            off, own = _error(mine, wanted), _error(model(**given).last_hidden_state, wanted)
            most = float((mine - wanted).abs().max())
            if weights == WEIGHTS[0] and most > 1e-4:
                raise SystemExit(f"{name}_{kind} differs from eager by {most}")
            if off > 1.5 * own + 1e-5:
                raise SystemExit(f"{name}_{kind} is off by {off} where eager is by {own}")
    return runs


def _with(weights: str, model: torch.nn.Module) -> torch.nn.Module:
    """``model`` with other weights, in place."""
    if weights == "int8":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        return model
    return model.to(getattr(torch, weights))


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    return float((found.float() - wanted).norm() / wanted.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--weights", choices=WEIGHTS, default=WEIGHTS[0])
    options = parser.parse_args()
    rounds, each = (9, 5) if options.quick else (60, 10)
    with torch.inference_mode():
        found = in_turn(calls(SHAPES, options.weights), rounds=rounds, calls=each)
    rows: list[Row] = []
    for batch, sequence in SHAPES:
        name = f"batch_{batch}_sequence_{sequence}"
        for kind in ("compiled", "eager"):
            pairs = zip(found[f"{name}_captured"], found[f"{name}_{kind}"], strict=True)
            ratios = sorted(captured / other for captured, other in pairs)
            asked = (batch, sequence, kind, options.weights) == (*SHAPES[0], "compiled", WEIGHTS[0])
            target = TARGET if asked else None
            rows.append((f"{name}_captured_over_{kind}", ratios[len(ratios) // 2], "", target))
    raw = {f"{n}_ms": [round(s * 1e3, 4) for s in values] for n, values in found.items()}
    report(f"static plans on the CPU, {options.weights}", rows, raw)


if __name__ == "__main__":
    main()
