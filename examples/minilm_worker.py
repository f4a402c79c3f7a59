"""One contender of the demo, in a process of its own: obeys JSON lines, answers JSON lines.

Started by ``minilm.py`` as ``python minilm_worker.py NAME OPTIONS``. Each command is one method of
`Worker`; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import minilm_contenders
import torch
from demo_text import batches

SMALL = minilm_contenders.SHORTEST
"""Batch and sequence of the single small call that is timed by itself."""


_WORDS = 5
"""Words of a sentence that is worth comparing: short ones are all alike."""


class Worker:
    """A contender, the batches, and what is asked about them."""

    def __init__(self, name: str, compiler: str, quick: bool) -> None:
        begun = time.perf_counter()
        self.model, tokenizer = minilm_contenders.load()
        self.texts = _few(batches()) if quick else batches()
        self.inputs = [dict(tokenizer(t, padding=True, return_tensors="pt")) for t in self.texts]
        self.contender: minilm_contenders.Contender = minilm_contenders.make(
            name, self.model, compiler
        )
        self.run: Callable[..., Any] = self.model
        self._outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._setup = time.perf_counter() - begun

    def ready(self) -> dict[str, Any]:
        """What was loaded."""
        shapes = [tuple(i["input_ids"].shape) for i in self.inputs]
        return {
            "seconds": self._setup,
            "batches": len(shapes),
            "shapes": len(set(shapes)),
            "sentences": sum(b for b, _ in shapes),
            "positions": sum(b * s for b, s in shapes),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def cold(self) -> dict[str, float]:
        """Everything from the bare model to the end of the first pass; probes apart."""
        begun = time.perf_counter()
        probes = self.contender.probe()
        self.run = self.contender.compile()
        self._pass()
        return {"probes": probes, "first": time.perf_counter() - begun - probes}

    def steady(self) -> dict[str, float]:
        """One pass over all batches."""
        begun, used = time.perf_counter(), time.process_time()
        self._pass()
        return {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - used}

    def small(self, calls: int) -> dict[str, float]:
        """Seconds of a call with one short sentence."""
        inputs = _inputs(*SMALL)
        begun, used = time.perf_counter(), time.process_time()
        for _ in range(calls):
            self.run(**inputs)
        seconds = (time.perf_counter() - begun) / calls
        return {"seconds": seconds, "cpu": time.process_time() - used}

    def facts(self) -> dict[str, Any]:
        """Graphs and compilations so far."""
        return self.contender.facts()

    def save(self, path: str) -> dict[str, Any]:
        """Run every batch and keep what came out for another process to compare with."""
        torch.save(self._results(), path)
        return {}

    def compare(self, path: str) -> dict[str, float]:
        """Largest absolute differences to what ``save`` kept.

        ``tokens``: hidden states of real tokens. ``embeddings``: of sentences. ``padding``: hidden
        states of padding, which nothing reads.
        """
        largest = {"tokens": 0.0, "embeddings": 0.0, "padding": 0.0}
        pairs = zip(torch.load(path), self._results(), self.inputs, strict=True)
        for (hidden, embedding), (own_hidden, own_embedding), inputs in pairs:
            off = (hidden - own_hidden).abs().amax(-1)
            real = inputs["attention_mask"].bool()
            found = {
                "tokens": off[real],
                "embeddings": (embedding - own_embedding).abs(),
                "padding": off[~real],
            }
            for name, values in found.items():
                if values.numel():
                    largest[name] = max(largest[name], float(values.max()))
        return largest

    def nearest(self, count: int) -> dict[str, Any]:
        """The pairs of sentences that mean nearly the same, by the model."""
        texts = [text for batch in self.texts for text in batch]
        embeddings = torch.cat([embedding for _, embedding in self._results()])
        long = [i for i, text in enumerate(texts) if len(text.split()) >= _WORDS]
        likeness = (embeddings[long] @ embeddings[long].T).triu(diagonal=1)
        order = likeness.flatten().argsort(descending=True)
        pairs: list[dict[str, Any]] = []
        used: set[int] = set()
        for place in order.tolist():
            a, b = divmod(place, len(long))
            if a >= b or a in used or b in used:
                continue
            used |= {a, b}
            score = round(float(likeness[a, b]), 3)
            pairs.append({"score": score, "pair": [texts[long[a]], texts[long[b]]]})
            if len(pairs) == count:
                break
        return {"pairs": pairs}

    def sealed(self, shapes: int, seconds: float, extremes: bool) -> dict[str, Any]:
        """Seal, then take random shapes: run what time allows, look the others up.

        Shapes are drawn evenly on a logarithmic scale. The ``extremes`` of the bounds run first,
        then the smallest, until ``seconds`` are over; a look-up asks the dispatcher for the
        shape's target and that target for its compiled pieces, as a call does, without running.
        """
        self.contender.seal()
        before = self.contender.compiled()
        drawn = _draw(random.Random(0), shapes)
        queue = _extremes() if extremes else []
        queue += sorted(drawn, key=lambda shape: shape[0] * shape[1])
        deadline = time.perf_counter() + seconds
        ran = refused = 0
        while ran < len(queue) and time.perf_counter() < deadline:
            refused += not self._fits(*queue[ran])
            ran += 1
        refused += sum(not self.contender.has_code(shape) for shape in queue[ran:])
        return {
            "ran": ran,
            "looked_up": len(queue) - ran,
            "compiles": self.contender.compiled() - before + refused,
        }

    def _fits(self, batch: int, sequence: int) -> bool:
        """Whether a call with this shape runs on what is compiled."""
        try:
            self.run(**_inputs(batch, sequence))
        except minilm_contenders.Sealed:
            return False
        return True

    def _pass(self) -> None:
        for inputs in self.inputs:
            self.run(**inputs)

    def _results(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Hidden states and sentence embeddings of every batch, computed once."""
        if not self._outputs:
            for inputs in self.inputs:
                hidden = self.run(**inputs).last_hidden_state
                self._outputs.append((hidden, _pool(hidden, inputs["attention_mask"])))
        return self._outputs


def _pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens, of length 1: what this model was trained for."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(mean, dim=1)


def _few(all_batches: list[list[str]]) -> list[list[str]]:
    """The batch of one sentence and the seven with the fewest words."""
    return sorted(all_batches, key=lambda b: (len(b) != 1, sum(map(len, b))))[:8]


def _inputs(batch: int, sequence: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 20_000, (batch, sequence))
    return {
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "attention_mask": torch.ones_like(ids),
    }


def _extremes() -> list[tuple[int, int]]:
    batch, sequence = minilm_contenders.BOUNDS
    return [(b, s) for b in batch for s in sequence]


def _draw(rng: random.Random, count: int) -> Iterator[tuple[int, int]]:
    for _ in range(count):
        sizes = [int(lo * ((hi + 1) / lo) ** rng.random()) for lo, hi in minilm_contenders.BOUNDS]
        yield sizes[0], sizes[1]


def main() -> None:
    """Serve commands from stdin until it closes."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker(sys.argv[1], sys.argv[2], sys.argv[3] == "quick")
    with torch.inference_mode():
        for line in sys.stdin:
            command = json.loads(line)
            answer = getattr(worker, command.pop("do"))(**command)
            print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    main()
