"""What the demo prints: a table for people, then one JSON line for programs."""

from __future__ import annotations

import datetime
import platform
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Results", "ratios", "show"]

Results = dict[str, dict[str, Any]]
"""Contender -> what was measured: ready, cold, steady, small, facts, off."""

EAGER, TORCH, OURS = "eager", "torch.compile", "piecewise"


def ratios(results: Results, sealed: dict[str, Any]) -> dict[str, Any]:
    """The demo's figures. Ratios are piecewise over the other, medians of paired rounds."""
    cold = {name: found["cold"] for name, found in results.items()}
    ours, theirs = cold[OURS], cold[TORCH]
    off = results[OURS]["off"]
    return {
        "cold_ratio": _share(sum(ours.values()), sum(theirs.values())),
        "steady_ratio": _paired(results, "steady", TORCH),
        "cold_ratio_without_probes": _share(ours["first"], theirs["first"]),
        "eager_ratio": _paired(results, "steady", EAGER),
        "eager_ratio_b1s8": _paired(results, "small", EAGER),
        "max_abs_diff": max(off["tokens"], off["embeddings"]),
        "max_abs_diff_padding": off["padding"],
        **{k: v for k, v in results[OURS]["facts"].items() if k != "graphs"},
        "compiles_after_seal": sealed["compiles"],
        "shapes_run_after_seal": sealed["ran"],
        "shapes_looked_up_after_seal": sealed["looked_up"],
        "seconds": {
            name: {
                "probes": round(cold[name]["probes"], 3),
                "first_pass": round(cold[name]["first"], 3),
                "steady": [round(s, 4) for s in found["steady"]],
                "b1s8": [round(ms / 1e3, 7) for ms in found["small"]],
            }
            for name, found in results.items()
        },
    }


def show(results: Results, figures: dict[str, Any], pairs: list[dict[str, Any]]) -> None:
    """Print the table and the sentences."""
    console = Console(width=None if Console().is_terminal else 110)
    ready = results[EAGER]["ready"]
    table = Table(
        title=f"all-MiniLM-L6-v2, {ready['batches']} batches, {ready['shapes']} shapes, "
        f"{ready['sentences']} sentences; torch {ready['torch']}, {ready['threads']} threads, "
        f"{platform.machine()}, {datetime.date.today()}"
    )
    table.add_column("")
    for heading in (
        "probes\nseconds",
        "first pass\nseconds",
        "steady pass\nseconds",
        "1 x 8 tokens\nms",
        "graphs,\ncompilations",
        "largest difference\nto eager",
    ):
        table.add_column(heading, justify="right")
    for name, found in results.items():
        table.add_row(name, *_row(found))
    console.print(table)
    for line in _sentences(figures):
        console.print(line, highlight=False)
    console.print("nearest sentences, by piecewise:")
    for found in pairs:
        first, second = found["pair"]
        console.print(
            f"  {found['score']:.2f}  {first}\n        {second}", highlight=False, markup=False
        )


def _row(found: dict[str, Any]) -> list[str]:
    cold, facts = found["cold"], found["facts"]
    counts = f"{facts['graphs']}" if facts else "-"
    if "compilations" in facts:
        counts += f", {facts['compilations']}"
    off = found.get("off")
    return [
        f"{cold['probes']:.1f}" if cold["probes"] else "-",
        f"{cold['first']:.1f}",
        f"{statistics.median(found['steady']):.3f}",
        f"{statistics.median(found['small']):.2f}",
        counts,
        f"{max(off['tokens'], off['embeddings']):.1e}" if off else "-",
    ]


def _sentences(figures: dict[str, Any]) -> list[str]:
    return [
        f"cold, probes included: {figures['cold_ratio']} of torch.compile's time "
        f"({figures['cold_ratio_without_probes']} without the probes)",
        f"steady: {figures['steady_ratio']} of torch.compile's time, {figures['eager_ratio']} of "
        f"eager's; one sentence of 8 tokens: {figures['eager_ratio_b1s8']} of eager's",
        f"piecewise: {figures['pieces']} pieces, {figures['compilable_pieces']} compilable, "
        f"{figures['unique_pieces']} distinct, {figures['compilations']} compilations",
        f"after seal(): {figures['compiles_after_seal']} compilations over "
        f"{figures['shapes_run_after_seal']} random shapes run and "
        f"{figures['shapes_looked_up_after_seal']} looked up",
        "differences are over real tokens and sentence embeddings; over padding, which nothing "
        f"reads: {figures['max_abs_diff_padding']:.1e}",
    ]


def _paired(results: Results, what: str, other: str) -> float:
    """The median over rounds of ours to the other's in the same round."""
    pairs = zip(results[OURS][what], results[other][what], strict=True)
    return round(statistics.median(ours / theirs for ours, theirs in pairs), 4)


def _share(ours: float, theirs: float) -> float:
    return round(ours / theirs, 4)
