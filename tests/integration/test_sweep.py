"""A fixed sample of the sweep that ``make sweep`` runs whole: operators and model families."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps.families import WAYS, families
from sweeps.judging import judge

OPERATORS = [
    "T",
    "__rsub__",
    "addmm.decomposed",
    "argsort",
    "bucketize",
    "cat",
    "clamp_max",
    "combinations",
    "cumprod",
    "cumulative_trapezoid",
    "diagonal_scatter",
    "dist",
    "erfc",
    "expand",
    "fft.hfft",
    "gather",
    "index_put",
    "isclose",
    "kthvalue",
    "linalg.eigvalsh",
    "linalg.pinv",
    "logaddexp",
    "logical_not",
    "masked.mean",
    "masked_scatter",
    "mm",
    "narrow",
    "nn.functional.batch_norm",
    "nn.functional.conv1d",
    "nn.functional.cosine_similarity",
    "nn.functional.embedding",
    "nn.functional.interpolate.bilinear",
    "nn.functional.layer_norm",
    "nn.functional.max_pool2d",
    "nn.functional.multi_margin_loss",
    "nn.functional.pad.reflect",
    "nn.functional.scaled_dot_product_attention",
    "nn.functional.softmin",
    "norm.fro",
    "polar",
    "rand_like",
    "repeat_interleave",
    "roll",
    "scatter_reduce.amax",
    "searchsorted",
    "sort",
    "squeeze",
    "squeeze.multiple",
    "stft",
    "sum_to_size",
    "take_along_dim",
    "tensor_split",
    "topk",
    "unbind",
    "unflatten",
    "view_as",
    "where",
]
FAMILIES = ["bart", "bert", "clip_vision_model", "deberta-v2", "gpt2", "llama", "t5", "vit"]


@functools.cache
def database() -> dict[str, Any]:
    """Torch's operators by name; read once, and only where a test asks."""
    from sweeps.cases import label, operators

    return {label(op): op for op in operators()}


@pytest.mark.filterwarnings("ignore")  # torch's own, of its operators' deprecated forms
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_gives_what_eager_gives_in_every_pass(name: str, tmp_path: Path) -> None:
    from sweeps.cases import cases_of
    from sweeps.passes import PASSES

    if name not in database():
        pytest.skip(f"torch {torch.__version__} has no samples of {name}")
    with torch.inference_mode():
        for case in cases_of(database()[name], 1):
            for title, run in PASSES.items():
                if title == "inductor":
                    continue  # seconds for each; the whole sweep has it
                torch._dynamo.reset()
                outcome = judge(lambda: run(case, tmp_path))  # noqa: B023
                assert outcome.kind in ("equal", "refused"), (
                    f"{title}: {outcome.kind}: {outcome.why}"
                )


@pytest.mark.filterwarnings("ignore")  # torch's and transformers' own
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FAMILIES)
def test_an_unmodified_family_gives_what_eager_gives(name: str, way: str) -> None:
    pytest.importorskip("transformers")
    torch._dynamo.reset()
    with torch.inference_mode():
        outcome = judge(lambda: WAYS[way](families()[name]))
    assert outcome.kind in ("equal", "refused"), f"{outcome.kind}: {outcome.why}"
