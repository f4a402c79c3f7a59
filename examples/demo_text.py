"""Real English sentences in batches whose sizes vary at every call.

The text lies in ``examples/data`` (public domain, see SOURCES.md there). Needs no tokeniser and
no network::

    from demo_text import batches

    for sentences in batches():
        tokens = tokenizer(sentences, padding=True, return_tensors="pt")

With the tokeniser of all-MiniLM-L6-v2, ``batches()`` makes 38 distinct (batch, sequence) shapes.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

__all__ = ["BATCHES", "batches", "sentences"]

BATCHES = 40
"""How many batches one run has."""

_SIZES = (2, 3, 5, 8, 12, 16, 20, 24, 28, 30, 32)

_DATA = Path(__file__).parent / "data"
_END = re.compile(r"""(?<=[.!?])(["')]*)\s+(?=["'(]*[A-Z])""")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Dr|[A-HJ-Z])\.$")


def sentences() -> list[str]:
    """Every distinct sentence of the text, in reading order."""
    found: dict[str, None] = {}
    for path in sorted(_DATA.glob("*.txt")):
        for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
            found.update(dict.fromkeys(_split(" ".join(paragraph.split()))))
    return list(found)


def batches(seed: int = 0) -> list[list[str]]:
    """Deal every sentence out once, to 40 batches of 1 to 32.

    ``seed``: same seed, same batches. A batch holds sentences of roughly similar length, as a
    server that sorts its queue would make it; exactly one batch is a single sentence.
    """
    rng = random.Random(seed)
    queue = sorted(sentences(), key=lambda s: len(s.split()) * rng.uniform(0.35, 1.65))
    dealt, at = [], 0
    for size in _sizes(len(queue), rng):
        dealt.append(queue[at : at + size])
        at += size
    rng.shuffle(dealt)
    return dealt


def _split(paragraph: str) -> list[str]:
    """Cut a paragraph after each full stop, question or exclamation mark that ends a sentence."""
    parts, start = [], 0
    for end in _END.finditer(paragraph):
        if _ABBREVIATION.search(paragraph[start : end.start()]):
            continue
        parts.append(paragraph[start : end.end(1)])
        start = end.end()
    parts.append(paragraph[start:])
    return [part for part in parts if part]


def _sizes(total: int, rng: random.Random) -> list[int]:
    """Batch sizes that sum to ``total``: one of 1, the others drawn until the sum is right."""
    sizes = rng.choices(_SIZES, k=BATCHES - 1)
    while sum(sizes) != total - 1:
        sizes[rng.randrange(len(sizes))] = rng.choice(_SIZES)
    sizes.insert(rng.randrange(BATCHES), 1)
    return sizes
