"""MiniLM on the CPU against what a CPU user would pick: ONNX Runtime and OpenVINO, in float32.

One process, contenders in turn: one sentence of 8 tokens (captured by piecewise), then passes over
the demo's 40 batches. By the clock and in seconds of processors, which other programs change less.
Every result must be eager's within 1e-4. A peer that is not installed is left out with a word; the
versions are those of examples/vendors/requirements.txt. Needs the ``demo`` extra.

``--profile`` adds what one replay of the captured sentence consists of, step by step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from _measure import Row, report

Run = Callable[[dict[str, torch.Tensor]], torch.Tensor]
Seconds = tuple[float, float]
"""By the clock, and of processors."""

PEERS = ("onnxruntime", "openvino")
TARGETS = {"sentence": 1.0, "batches": 1.0}


def contenders(threads: int) -> tuple[dict[str, Run], Any]:
    """Who there is, each as a function of the inputs, and the compiled model."""
    import minilm_contenders
    import serve

    model, _ = minilm_contenders.load()
    compiled: Any = minilm_contenders.make("piecewise", model, "inductor").compile()
    example = sentence()
    found: dict[str, Run] = {
        "eager": lambda given: model(**given).last_hidden_state,
        "piecewise": lambda given: compiled(**given).last_hidden_state,
    }
    for name in PEERS:
        if find_spec(name) is None:
            print(f"{name} is not installed: left out", file=sys.stderr)
            continue
        own = serve.OWN[name](model, example, threads)
        found[name] = lambda given, own=own: own(**given)
    return found, compiled


def sentence() -> dict[str, torch.Tensor]:
    """One of 8 tokens."""
    ids = torch.randint(1000, 2000, (1, 8), generator=torch.Generator().manual_seed(0))
    mask, kinds = torch.ones_like(ids), torch.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    """The demo's."""
    import demo_text
    import minilm_contenders

    _, tokenizer = minilm_contenders.load()
    texts = demo_text.batches()[:count]
    return [dict(tokenizer(text, padding=True, return_tensors="pt")) for text in texts]


def off(run: Run, right: Run, inputs: list[dict[str, torch.Tensor]]) -> float:
    """The largest difference over real tokens."""
    return max(
        float((run(one) - right(one)).abs()[one["attention_mask"].bool()].max()) for one in inputs
    )


def timed(
    runs: dict[str, Callable[[], Any]], rounds: int, *, warm: bool = False
) -> dict[str, list[Seconds]]:
    """What a call of each takes, in turn: what disturbs a round disturbs all of it.

    ``warm``: behind a call that is not timed, when the threads of the others are asleep again.
    """
    found: dict[str, list[Seconds]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if warm:
                run()
            begun = time.perf_counter(), time.process_time()
            run()
            found[name].append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    return found


def ratios(case: str, found: dict[str, list[Seconds]]) -> Iterator[Row]:
    """Ours over each other contender and over the faster peer; medians over rounds."""
    for place, kind in enumerate(("clock", "processors")):
        middle = {n: statistics.median(s[place] for s in all_) for n, all_ in found.items()}
        for name, seconds in middle.items():
            yield f"{case}_{name}_{kind}", seconds * 1e3, "ms", None
        for name in (n for n in middle if n != "piecewise"):
            yield f"{case}_over_{name}_{kind}", middle["piecewise"] / middle[name], "", None
        peers = [middle[name] for name in PEERS if name in middle]
        if peers:
            ratio = middle["piecewise"] / min(peers)
            yield f"{case}_over_faster_peer_{kind}", ratio, "", TARGETS[case]


def profile(compiled: Any, calls: int) -> Iterator[Row]:
    """Microseconds of each kind of step of the captured sentence, one by one; largest first."""
    form = next(iter(compiled._pw_session.forms))
    steps = [one for step in form.capturing.plans.get((1, 8)).direct for one in _inside(step)]
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(calls):
        for step, times in zip(steps, taken, strict=True):
            begun = time.perf_counter()
            step()
            times.append(time.perf_counter() - begun)
    total: Counter[str] = Counter()
    for step, times in zip(steps, taken, strict=True):
        total[_kind(step)] += statistics.median(times) * 1e6  # type: ignore[assignment]
    for kind, microseconds in total.most_common():
        yield f"step {kind}", microseconds, "us", None


def _inside(step: Any) -> list[Any]:
    """The calls that a step of a plan consists of."""
    graph = getattr(step, "__self__", step)
    inner = getattr(graph, "steps", None) or getattr(graph, "_steps", None)
    if not inner:
        return [step]
    return [one for part in inner for one in _inside(part)]


def _kind(step: Any) -> str:
    function = getattr(getattr(step, "call", step), "func", step)
    name = getattr(getattr(function, "__self__", None), "__name__", None)
    return f"{name or getattr(function, '__qualname__', type(function).__name__)}"[-50:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="passes; a hundredfold of sentences")
    parser.add_argument("--batches", type=int, default=40, help="of the demo's; 0: no passes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="step by step")
    options = parser.parse_args()
    examples = Path(__file__).parents[1] / "examples"
    sys.path[:0] = [str(examples / "vendors"), str(examples)]
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        runs, compiled = contenders(options.threads)
        given, inputs = sentence(), batches(options.batches)
        rows: list[Row] = []
        for name, run in runs.items():
            if name != "eager":
                worst = off(run, runs["eager"], [given, *inputs])
                rows.append((f"off_{name}", worst, "", 1e-4))
        one = {name: lambda run=run: run(given) for name, run in runs.items()}
        rows += ratios("sentence", timed(one, 100 * options.rounds, warm=True))
        if inputs:
            passes = {
                name: lambda run=run: [run(each) for each in inputs] for name, run in runs.items()
            }
            rows += ratios("batches", timed(passes, options.rounds))
        if options.profile:
            rows += profile(compiled, 100)
    there = {name: version(name) for name in PEERS if find_spec(name)}
    report("MiniLM on the CPU and its peers", rows, {"threads": options.threads, **there})


if __name__ == "__main__":
    main()
