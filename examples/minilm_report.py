"""What the demo prints: a table for people, then one JSON line for programs."""

from __future__ import annotations

import datetime
import platform
import statistics
from typing import Any

from minilm_rounds import Round, kept
from rich.console import Console
from rich.table import Table

__all__ = ["Results", "ratios", "show"]

Results = dict[str, dict[str, Any]]
"""Contender -> what was measured once: ready, cold, facts, off."""

EAGER, TORCH, OURS = "eager", "torch.compile", "piecewise"


def ratios(results: Results, rounds: list[Round], sealed: dict[str, Any]) -> dict[str, Any]:
    """The demo's figures. Ratios are piecewise over the other, medians of paired rounds."""
    cold = {name: found["cold"] for name, found in results.items()}
    ours, theirs = cold[OURS], cold[TORCH]
    off = results[OURS]["off"]
    return {
        "cold_ratio": _share(sum(ours.values()), sum(theirs.values())),
        "steady_ratio": _paired(rounds, "steady", TORCH),
        "cold_ratio_without_probes": _share(ours["first"], theirs["first"]),
        "eager_ratio": _paired(rounds, "steady", EAGER),
        "eager_ratio_b1s8": _paired(rounds, "small", EAGER),
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
                "steady": [round(one.steady[name], 4) for one in rounds],
                "b1s8": [round(one.small[name], 7) for one in rounds],
            }
            for name in results
        },
        "rounds_kept": [one in kept(rounds) for one in rounds],
        "cpu_taken_by_others": [round(one.others, 3) for one in rounds],
    }


def show(
    results: Results,
    rounds: list[Round],
    figures: dict[str, Any],
    pairs: list[dict[str, Any]],
) -> None:
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
        table.add_row(name, *_row(name, found, kept(rounds)))
    console.print(table)
    for line in _sentences(figures):
        console.print(line, highlight=False)
    console.print("nearest sentences, by piecewise:")
    for found in pairs:
        first, second = found["pair"]
        console.print(
            f"  {found['score']:.2f}  {first}\n        {second}", highlight=False, markup=False
        )


def _row(name: str, found: dict[str, Any], rounds: list[Round]) -> list[str]:
    cold, facts = found["cold"], found["facts"]
    counts = f"{facts['graphs']}" if facts else "-"
    if "compilations" in facts:
        counts += f", {facts['compilations']}"
    off = found.get("off")
    return [
        f"{cold['probes']:.1f}" if cold["probes"] else "-",
        f"{cold['first']:.1f}",
        f"{statistics.median(one.steady[name] for one in rounds):.3f}",
        f"{statistics.median(one.small[name] for one in rounds) * 1e3:.2f}",
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
        f"medians of {sum(figures['rounds_kept'])} rounds of {len(figures['rounds_kept'])}: those "
        "that other processes disturbed least",
        "differences are over real tokens and sentence embeddings; over padding, which nothing "
        f"reads: {figures['max_abs_diff_padding']:.1e}",
    ]


def _paired(rounds: list[Round], what: str, other: str) -> float:
    """The median over the rounds kept of ours to the other's in the same round."""
    measured = [getattr(one, what) for one in kept(rounds)]
    return round(statistics.median(one[OURS] / one[other] for one in measured), 4)


def _share(ours: float, theirs: float) -> float:
    return round(ours / theirs, 4)
