"""A sweep's results as a table, and as the one line that a script reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["FAMILIES", "summary", "table"]

FAMILIES = Path(__file__).parents[2] / "families" / "transformers.jsonl"
"""The list of model families, a line each."""

Row = dict[str, Any]
KINDS = ("equal", "refused", "refused by torch too", "wrong", "bare", "hung", "skipped")


def table(rows: Sequence[Row]) -> str:
    """Counts per pass, then each wrong, bare or hung case, and what is refused."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row["pass"] not in ("done", "sizes", "torch"):
            counts[row["pass"]][row["kind"]] += 1
    head = f"{'pass':<12}" + "".join(f"{k:>22}" if " " in k else f"{k:>9}" for k in KINDS)
    lines = [head]
    for title, found in counts.items():
        cells = "".join(f"{found[k]:>22}" if " " in k else f"{found[k]:>9}" for k in KINDS)
        lines.append(f"{title:<12}{cells}")
    for row in rows:
        refused = row.get("kind") == "refused" and row["op"].startswith("family:")
        if refused or row.get("kind") in ("wrong", "bare", "hung"):
            lines.append(
                f"{row['kind']}: {row['op']} [{row['pass']}, case {row.get('case')}] {row['why']}"
            )
    lines += [f"refused: {op}: {why}" for op, why in sorted(_refused(rows).items())]
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """How many operators and programs were tried, and how many came to what."""
    kinds = Counter(r["kind"] for r in rows if r["pass"] not in ("done", "sizes", "torch"))
    return {
        "operators": len({r["op"] for r in rows if not r["op"].startswith("family:")}),
        "families": len({r["op"] for r in rows if r["op"].startswith("family:")}),
        "programs": sum(kinds.values()),
        "equal": kinds["equal"],
        "wrong": kinds["wrong"],
        "bare": kinds["bare"],
        "hung": kinds["hung"],
        "refused_operators": len(_refused(rows)),
        "operators_of_fixed_size": len({r["op"] for r in rows if r["pass"] == "sizes"}),
        **_of_families(rows),
    }


def _of_families(rows: Sequence[Row]) -> dict[str, Any]:
    """How many families each way serves, and the shares that are asked for; {} without families.

    Served, of those that torch.compile traces whole at every size; captured and through torch's
    entry point, of those served; recorded, of all.
    """
    ways: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["op"].startswith("family:"):
            ways["all"].add(row["op"])
            if row.get("kind") == "equal":
                ways[row["pass"]].add(row["op"])
    if not ways["all"]:
        return {}
    served, torchs = ways["served"], ways["torch"]
    counts = {way: len(ways[way]) for way in ("torch", "served", "captured", "recorded", "door")}
    return {
        **counts,
        "served_share": _share(served & torchs, torchs),
        "captured_share": _share(ways["captured"] & served, served),
        "recorded_share": _share(ways["recorded"], ways["all"]),
        "door_share": _share(ways["door"] & served, served),
    }


def _share(some: set[str], of: set[str]) -> float:
    return round(len(some) / len(of), 3) if of else 0.0


def _refused(rows: Sequence[Row]) -> dict[str, str]:
    """Operators that torch.compile serves whole and we refuse at every size, and why."""
    found: dict[str, str] = {}
    for row in rows:
        if row["pass"] == "plain" and row["kind"] == "refused":
            found.setdefault(row["op"], row["why"])
    return found
