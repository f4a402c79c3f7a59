"""First calls of models that ask for sizes, over those of the same models without the question.

31 residues, 31 thresholds, and padding to a multiple of 8, before two transformer layers. Each
first call takes one trace; contenders take turns, each model is new, no store is used, and CPU time
of the process counts. ``--compiler eager`` leaves out compiling, which is the same for all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch
from _measure import Row, report

import piecewise_core as pw

KINDS = ("plain", "residues", "thresholds", "padded")
TARGET = 1.3


class Model(torch.nn.Module):
    """``kind``: what is asked of the length before the layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        layers = (torch.nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(2))
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.asked(x, x.shape[1])
        for layer in self.layers:
            x = layer(x)
        return x

    def asked(self, x: torch.Tensor, length: int) -> torch.Tensor:
        if self.kind == "residues":
            for rest in range(31):
                if length % 31 == rest:
                    return x * (rest + 1)
        if self.kind == "thresholds":
            for end in range(16, 512, 16):
                if length <= end:
                    return x * end
        if self.kind == "padded" and length % 8:
            return torch.nn.functional.pad(x, (0, 0, 0, 8 - length % 8))
        return x * 3


def first_call(kind: str, compiler: str, length: int) -> float:
    """CPU seconds of a new model's first call."""
    torch.manual_seed(0)
    model, x = Model(kind).eval(), torch.randn(2, length, 32)
    dims = {"x": {1: pw.Dim("length", max=512)}}
    torch._dynamo.reset()
    begun = time.process_time()
    fast: Any = pw.compile(model, pw.Config(dynamic=dims, compiler=compiler), "cpu")
    result = fast(x)
    spent = time.process_time() - begun
    torch.testing.assert_close(result, model(x), rtol=1e-4, atol=1e-4)
    if fast.stats().graphs != 1:
        raise SystemExit(f"{kind}: {fast.stats().graphs} traces in the first call")
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--compiler", default="eager", help="eager or inductor (eager)")
    asked = parser.parse_args()
    os.environ["PIECEWISE_CACHE_MODE"] = "off"
    torch.set_num_threads(1)
    spent: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with torch.no_grad():
        for turn in range(-1, 3 if asked.quick else 10):  # the first turn warms torch up
            for kind in KINDS:
                seconds = first_call(kind, asked.compiler, 38 + turn)
                if turn >= 0:
                    spent[kind].append(seconds)
    rows: list[Row] = []
    for kind in KINDS[1:]:
        ratios = [a / b for a, b in zip(spent[kind], spent["plain"], strict=True)]
        rows.append((f"{kind}_over_plain", statistics.median(ratios), "", TARGET))
    raw = {f"{kind}_s": round(statistics.median(values), 3) for kind, values in spent.items()}
    report(f"First calls, compiler {asked.compiler}", rows, raw)


if __name__ == "__main__":
    main()
