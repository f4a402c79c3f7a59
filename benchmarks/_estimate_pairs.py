"""Models and capture sizes whose memory is estimated: the benchmark's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from _place import Place
from _toy_case import settings as toy_settings
from toy_decoder import Decoder, inputs

import piecewise_core as pw

__all__ = ["Pair", "Subject", "pairs"]

FEW = (1, 8, 64, 512)
POWERS = (1, 2, 4, 8, 16, 32, 64)
SERVED = (1, 2, 4, *range(8, 257, 8))
"""What engines capture for batches up to 256."""
ROWS = (1, 16, 64, 256, 512, 1024, 1536, 2048, 3072, 4096)
BATCHES = (1, 2, 4, 8, 12, 16, 24)
TEXTS = tuple((batch, length) for batch in (1, 4, 8, 32) for length in (16, 64, 128))
PROMPTS = (16, 32, 64, 128, 192, 256, 384, 512)
PATCHES = (16, 64, 100, 144, 196, 225)


@dataclass(frozen=True)
class Subject:
    """``fast``: compiled or recorded. ``call``: a first call of it, of no size to capture."""

    fast: Any
    call: Callable[[], Any]


@dataclass(frozen=True)
class Pair:
    """``make(place)``: the subject. ``quick``: whether ``--quick`` has it."""

    make: Callable[[Place], Subject]
    quick: bool = False


def pairs() -> dict[str, Pair]:
    """Every pair by name: the model, how it is captured, and how many sizes."""
    found: dict[str, Pair] = {}

    def add(name: str, make: Any, mode: str, sizes: Sequence[Any], quick: bool = False) -> None:
        label = f"{name} {mode}, {len(sizes)} sizes"
        found[label] = Pair(partial(make, mode=mode, sizes=tuple(sizes)), quick)

    for hidden, mode, sizes, quick in (
        (64, "piecewise", POWERS, True),
        (64, "full", POWERS, False),
        (1024, "piecewise", SERVED, True),
        (1024, "full", SERVED, True),
        (1024, "recorded", SERVED, True),
        (2048, "piecewise", POWERS, False),
        (4096, "piecewise", FEW, False),
        (4096, "full", ROWS[:6], False),
    ):
        add(f"toy-{hidden}", partial(_toy, hidden), mode, sizes, quick)
    for width, mode, sizes, quick in (
        (256, "full", ROWS, False),
        (1024, "full", ROWS, True),
        (4096, "full", ROWS, True),
        (4096, "recorded", ROWS, False),
        (8192, "full", FEW, True),
    ):
        add(f"mlp-{width}", partial(_perceptron, width), mode, sizes, quick)
    for name, mode, real, quick in (
        ("bert", "piecewise", TEXTS, False),
        ("bert", "recorded", TEXTS, True),
        ("vit-l-32", "piecewise", BATCHES, False),
        ("dit-2", "recorded", PATCHES, True),
        ("whisper-encoder-8", "full", range(1, 7), False),
        ("dit-2", "piecewise", PATCHES, False),
        ("llama1b-prefill", "recorded", PROMPTS, True),
    ):
        add(name, partial(_real, name), mode, real, quick)
    return found


def _made(model: Any, settings: dict[str, Any], mode: str, place: Place) -> Any:
    """Code of a range serves its captures too: a piece need not be compiled for every size."""
    if mode == "recorded":
        return place.record(model, **settings)
    return place.compile(model, graph_mode=mode, capture_compile="range", **settings)


def _toy(hidden: int, place: Place, mode: str, sizes: tuple[int, ...]) -> Subject:
    layers, hidden = (2, 8) if place.simulated else (8, hidden)
    model = place.new(lambda: Decoder(layers, hidden))
    fast = _made(model, toy_settings(sizes), mode, place)
    return Subject(fast, partial(fast, *inputs(3, hidden, place.device, place.dtype)))


def _perceptron(width: int, place: Place, mode: str, sizes: tuple[int, ...]) -> Subject:
    width = 8 if place.simulated else width

    def build() -> torch.nn.Module:
        up, down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
        return torch.nn.Sequential(up, torch.nn.GELU(), down, torch.nn.LayerNorm(width))

    rows = pw.Dim("rows", 1, max(sizes))
    settings = {"dynamic": {0: {0: rows}}, "capture_sizes": sizes}
    fast = _made(place.new(build), settings, mode, place)
    return Subject(fast, partial(fast, inputs(3, width, place.device, place.dtype)[0]))


def _real(name: str, place: Place, mode: str, sizes: tuple[Any, ...]) -> Subject:
    """A model of models.py with sizes of its own; those that its dims hold."""
    from _real_models import cases

    case = cases()[name](place)
    dims = {d.name: d for named in case.settings["dynamic"].values() for d in named.values()}
    held = [each for each in sizes if _holds(list(dims.values()), each)]
    held = held or [dim.min for dim in dims.values()][:1]  # of a tiny model
    settings = {**case.settings, "capture_sizes": tuple(sorted(held)), "capture_max": False}
    fast = _made(case.model, settings, mode, place)
    return Subject(fast, next(iter(case.calls(fast).values())))


def _holds(dims: Sequence[Any], sizes: Any) -> bool:
    asked = sizes if isinstance(sizes, tuple) else (sizes,)
    return all(d.min <= size <= d.max for d, size in zip(dims, asked, strict=True))
