"""``piecewise bundle``: look into a bundle without running anything in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from piecewise_core.errors import StoreError

__all__ = ["bundle"]


@click.group()
def bundle() -> None:
    """Look into bundles, the files that compiled.save() writes and pw.load() binds to a model."""


@bundle.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(file: Path, as_json: bool) -> None:
    """Say what FILE holds and what it was made with, after checking every byte of it.

    Nothing in it is run. Exits with 1 if it is damaged or no bundle.
    """
    from piecewise_core.bundle.content import read_content

    try:
        content = read_content(file)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    facts = _facts(file, content)
    if as_json:
        click.echo(json.dumps(facts, indent=2, sort_keys=True))
    else:
        _show(facts)


def _facts(file: Path, content: Any) -> dict[str, Any]:
    about = content.about
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "model": about.model,
        "device": about.device,
        "platform": about.platform,
        "made": about.made,
        "config": json.loads(about.config),
        "factors": dict(about.factors),
        "left_out": list(about.left_out),
        "tensors": len({str(held) for form in content.forms for held in form.held}),
        "regions": [_region(trace.text) for form in content.forms for trace in form.traces],
        "pieces": [_piece(entry.manifest) for entry in content.entries],
    }


def _region(text: dict[str, Any]) -> dict[str, Any]:
    held = text["assumptions"]
    return {
        "sizes": text["box"],
        "nodes": len(text["graph"]),
        "assumptions": len(held["facts"]),
        "functions": len(held["code"]),
    }


def _piece(manifest: Any) -> dict[str, Any]:
    serves = manifest.serves
    return {
        "key": manifest.key,
        "piece": manifest.piece,
        "compiler": manifest.adaptor,
        "sizes": [r.plain for r in manifest.box.ranges],
        "serves": None if serves is None else [r.plain for r in serves.ranges],
        "bytes": manifest.size,
        "seconds": manifest.seconds,
    }


# For people ---------------------------------------------------------------------------


def _show(facts: dict[str, Any]) -> None:
    from datetime import datetime, timezone

    from rich.console import Console
    from rich.table import Table

    made = datetime.fromtimestamp(facts["made"], timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    console = Console(highlight=False)
    console.print(f"{facts['file']}: {facts['bytes']} bytes, made {made}", markup=False)
    console.print(
        f"{facts['model']} on {facts['device']}, platform {facts['platform']}, "
        f"{facts['tensors']} tensors read from the model",
        markup=False,
    )
    for place, region in enumerate(facts["regions"]):
        console.print(
            f"region {place}: sizes {_sizes(region['sizes'])}, {region['nodes']} nodes, "
            f"{region['assumptions']} assumptions, {region['functions']} functions",
            markup=False,
        )
    pieces = Table("piece", "sizes", "compiler", "bytes", "compiled in", box=None)
    for piece in facts["pieces"]:
        seconds = f"{piece['seconds']:.1f} s"
        pieces.add_row(
            piece["piece"], _sizes(piece["sizes"]), piece["compiler"], str(piece["bytes"]), seconds
        )
    console.print(pieces)
    for note in facts["left_out"]:
        console.print(f"left out: {note}", markup=False)
    made_with = Table("made with", "", box=None)
    for name, value in sorted(facts["factors"].items()):
        made_with.add_row(name, value)
    console.print(made_with)


def _sizes(ranges: list[list[int]]) -> str:
    return " x ".join(str(a) if a == b else f"[{a}, {b}]" for a, b in ranges) or "any"
