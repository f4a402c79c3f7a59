"""Data-parallel ranks, each an engine process of vLLM's own: what they answer, and report.

python ranks.py MODEL RANKS
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tiny import PROMPTS


async def serve(model: str, ranks: int) -> dict[str, Any]:
    """Tokens of all prompts, spread over the ranks, and the report of each rank."""
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

    import piecewise_vllm

    settings = {"max_model_len": 256, "max_num_batched_tokens": 256, "max_num_seqs": 4}
    made = AsyncEngineArgs(model, dtype="float32", data_parallel_size=ranks, **settings)
    engine = AsyncLLM.from_engine_args(made)
    sampling = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)

    async def answer(index: int) -> list[int]:
        async for said in engine.generate(PROMPTS[index], sampling, f"prompt {index}"):
            last = said
        return list(last.outputs[0].token_ids)

    try:
        tokens = await asyncio.gather(*[answer(i) for i in range(len(PROMPTS))])
        asked = "collective_rpc", piecewise_vllm.report, None, (), None
        reports = await engine.engine_core.call_utility_all_async(*asked)
    finally:
        engine.shutdown()
    return {"tokens": tokens, "reports": [report for (report,) in reports]}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(serve(sys.argv[1], int(sys.argv[2])))), flush=True)
