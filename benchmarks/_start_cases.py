"""The models that starts are measured with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import toy_decoder

import piecewise_core as pw

__all__ = ["CASES", "Case", "Ready"]

EXAMPLES = Path(__file__).parents[1] / "examples"
HIDDEN = 64


@dataclass(frozen=True)
class Ready:
    """A model on its device, and how it is compiled and called."""

    model: torch.nn.Module
    config: pw.Config
    inputs: dict[str, torch.Tensor]
    output: Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """``title``: for the table. ``load``: from a device's name to what is measured."""

    title: str
    load: Callable[[str], Ready]
    bundle_seconds: float | None = None


def _minilm(device: str) -> Ready:
    sys.path.insert(0, str(EXAMPLES))
    import minilm_contenders
    import minilm_worker

    model, _ = minilm_contenders.load()
    model = model.to(device)
    inputs = {name: t.to(device) for name, t in minilm_worker._inputs(3, 17).items()}
    config = minilm_contenders.Piecewise(model, "inductor").config
    return Ready(model, config, inputs, lambda result: result.last_hidden_state)


def _decoder(device: str) -> Ready:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = toy_decoder.Decoder(32, HIDDEN).eval().requires_grad_(False).to(device, dtype)
    x, position, mask = toy_decoder.inputs(8, HIDDEN, device, dtype)
    rows = pw.Dim("rows", min=1, max=256)
    config = pw.Config(
        dynamic={name: {0: rows} for name in ("x", "position", "mask")},
        splitting_ops=toy_decoder.OPS,
    )
    inputs = {"x": x, "position": position, "mask": mask}
    return Ready(model, config, inputs, lambda result: result)


CASES = {
    "minilm": Case("MiniLM, 2 dims, cut at attention", _minilm),
    "decoder": Case("toy decoder of 32 layers, cut at attention", _decoder, bundle_seconds=0.9),
}
