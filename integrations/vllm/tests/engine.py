"""One engine in a process of its own: starts, answers, and says what it took. JSON line last.

python engine.py MODEL '{"tokens": 64, "compilation": {...}, "llm": {...}, "models": 1}'
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

from tiny import PROMPTS

__all__ = ["serve"]

_BEGIN, _END = "Warming up model for the compilation", "Warming up done"
"""What vLLM's CPU runner logs before and after it traces, compiles and runs the model once."""


class _Log(logging.Handler):
    """Notes when what was said, and all warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[str, float] = {}
        self.used: dict[str, float] = {}
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        for mark in (_BEGIN, _END):
            if said.startswith(mark):
                self.at[mark] = record.created
                self.used[mark] = sum(os.times()[:4])  # compilers that were waited for, too
        if record.levelno >= logging.WARNING:
            self.warnings.append(said)

    def note(self, record: logging.LogRecord) -> bool:
        """As a filter, which lets everything pass."""
        self.emit(record)
        return True


def _between(marks: dict[str, float]) -> float | None:
    return marks[_END] - marks[_BEGIN] if len(marks) == 2 else None


def serve(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """Tokens and figures of one engine."""
    log, begun = _Log(), time.perf_counter()
    from vllm import LLM, SamplingParams
    from vllm.compilation.counter import compilation_counter

    # As it starts, vLLM sets its loggers up anew, and takes away handlers; filters stay.
    for name in ("vllm.v1.worker.cpu_model_runner", "vllm.piecewise"):
        logging.getLogger(name).addFilter(log.note)
    logging.getLogger("piecewise_core").addHandler(log)

    import piecewise_core as pw
    import piecewise_vllm

    settings = {"max_model_len": 256, "max_num_batched_tokens": 256, "max_num_seqs": 4}
    given = {**settings, **options.get("llm", {})}
    given["compilation_config"] = options.get("compilation", {})
    llms = [LLM(model, dtype="float32", **given) for _ in range(options.get("models", 1))]
    llm = llms[-1]
    started = time.perf_counter()
    count = int(options.get("tokens", 64))
    sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    answers = llm.generate(PROMPTS, sampling, use_tqdm=False)
    config, stats = llm.llm_engine.vllm_config.compilation_config, pw.counters.stats()
    return {
        "tokens": [list(a.outputs[0].token_ids) for a in answers],
        "mode": str(config.mode),
        "backend": config.backend,
        "compile_seconds": _between(log.at),
        "compile_cpu_seconds": _between(log.used),
        "start_seconds": started - begun,
        "generate_seconds": time.perf_counter() - started,
        "asked": compilation_counter.num_backend_compilations,
        "stats": stats.to_dict(),
        "graphs": [str(graph) for graph in pw.dynamo_graphs()],
        "report": piecewise_vllm.report(),
        "through_the_engine": llm.collective_rpc(piecewise_vllm.report),
        "warnings": log.warnings,
    }


if __name__ == "__main__":
    print(json.dumps(serve(sys.argv[1], json.loads((sys.argv[2:] or ["{}"])[0]))), flush=True)
