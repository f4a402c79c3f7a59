"""What a bundle holds, in memory: what it was made with, the traces, and the compiled pieces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from piecewise_core.bundle.container import read_container, write_container
from piecewise_core.errors import StoreError
from piecewise_core.graph.saved.traces import SavedTrace
from piecewise_core.store.entry import Entry
from piecewise_core.store.manifest import check_artifact, parse, render
from piecewise_core.store.signing import Signer

__all__ = ["About", "Content", "SavedForm", "read_content", "write_content"]


_NATIVE = "native/"


@dataclass(frozen=True)
class About:
    """What a bundle was made with.

    ``model``: the class, or function, as ``module:name``. ``device``: its device type. ``config``:
    as JSON. ``platform``: by name. ``factors``: everything that code in it depends on besides its
    piece, name -> value. ``made``: Unix time. ``left_out``: pieces without code in it, with the
    reason; they are compiled where the bundle is loaded.
    """

    model: str
    device: str
    config: str
    platform: str
    factors: Mapping[str, str]
    made: int
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class SavedForm:
    """One form of calls. ``structure``, ``held``: as JSON. ``traces``: one a region."""

    structure: Mapping[str, Any]
    held: list[dict[str, Any]]
    traces: tuple[SavedTrace, ...]


@dataclass(frozen=True)
class Content:
    """``entries``: compiled pieces. ``native``: libraries of ours that a C compiler made, file
    name -> content.
    """

    about: About
    forms: tuple[SavedForm, ...]
    entries: tuple[Entry, ...] = field(repr=False)
    native: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def write_content(path: Path, content: Content, signer: Signer | None = None) -> None:
    """Write the file, signed where ``signer`` can. Raises StoreError."""
    forms = [
        {"structure": form.structure, "held": form.held, "regions": len(form.traces)}
        for form in content.forms
    ]
    members = {"model.json": _json({"forms": forms})}
    for place, trace in enumerate(t for form in content.forms for t in form.traces):
        members[f"regions/{place}.json"] = _json(trace.text)
        if trace.constants:
            members[f"regions/{place}.pt"] = trace.constants
    for entry in content.entries:
        folder = f"entries/{entry.manifest.key}"
        members[f"{folder}/manifest.json"] = render(entry.manifest)
        members[f"{folder}/artifact"] = entry.artifact
    members |= {f"{_NATIVE}{name}": data for name, data in content.native.items()}
    write_container(path, asdict(content.about), members, signer)


def read_content(path: Path, signer: Signer | None = None) -> Content:
    """Read the file, every byte of it checked, by ``signer`` first. Raises StoreError."""
    about, members = read_container(path, signer)
    try:
        held = About(**{**about, "left_out": tuple(about["left_out"])})
        model = json.loads(members["model.json"])
        traces = [
            SavedTrace(json.loads(data), members.get(f"{name.removesuffix('.json')}.pt", b""))
            for name, data in _numbered(members, "regions/", ".json")
        ]
        following = iter(traces)
        forms = tuple(
            SavedForm(
                form["structure"],
                list(form["held"]),
                tuple(itertools.islice(following, form["regions"])),
            )
            for form in model["forms"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"the bundle {path} is of another form ({type(error).__name__}: {error}); save it again"
        ) from error
    native = {n.removeprefix(_NATIVE): d for n, d in members.items() if n.startswith(_NATIVE)}
    return Content(held, forms, tuple(_entries(members)), native)


def _numbered(members: Mapping[str, bytes], prefix: str, suffix: str) -> list[tuple[str, bytes]]:
    names = [n for n in members if n.startswith(prefix) and n.endswith(suffix)]
    ordered = sorted(names, key=lambda n: int(n.removeprefix(prefix).removesuffix(suffix)))
    return [(name, members[name]) for name in ordered]


def _entries(members: Mapping[str, bytes]) -> list[Entry]:
    found = []
    for name, data in members.items():
        folder, _, last = name.rpartition("/")
        if folder.startswith("entries/") and last == "manifest.json":
            if f"{folder}/artifact" not in members:
                raise StoreError(f"{folder} has no artifact; save the bundle again")
            found.append(check_artifact(parse(data), members[f"{folder}/artifact"]))
    return found


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
