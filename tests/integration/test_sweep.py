"""A fixed sample of what ``make sweep`` runs whole; in a process of its own, as there.

Torch's operator database changes settings of the process that imports it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

KIT = Path(__file__).parents[1] / "kit"
PASSES = (
    *("plain", "cut", "views", "in_place", "out"),
    *("simulated", "padded", "recorded", "stored"),  # Inductor takes seconds for each
)

OPERATORS = (
    *("__rmul__", "combinations", "div.trunc_rounding", "fft.fft2", "floor", "i0"),
    *("linalg.svdvals", "linalg.vander", "linalg.vecdot", "logcumsumexp", "logdet"),
    *("masked.logsumexp", "maximum", "meshgrid.variadic_tensors", "native_dropout_backward"),
    *("neg", "new_full", "nn.functional.embedding", "nn.functional.silu"),
    *("nn.functional.triplet_margin_with_distance_loss", "nn.functional.upsample_nearest"),
    *("prod", "rand_like", "reshape", "sparse.sampled_addmm", "split", "std_mean.unbiased"),
    *("take", "tril_indices", "trunc"),
)
"""Drawn from all at random."""

FAMILIES = (
    "albert bert bert-generation biogpt bloom camembert clip_text_model codegen cohere cohere2 "
    "beit clip_vision_model data2vec-vision deit dinov2 dinov3_vit siglip_vision_model vit_msn t5 "
    "bart "
    "electra distilbert esm fnet mpnet roberta xlm-roberta gpt2 gpt_neox gptj opt "
    "gemma gemma2 llama mistral mixtral olmo phi qwen2 qwen3 starcoder2"
)


def swept(*arguments: str, into: Path) -> tuple[dict[str, int], str]:
    """The line that a sweep ends with, and all that it said."""
    paths = [str(KIT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sweeps", "--workers", "1", "--out", str(into), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip(), done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_a_sample_of_operators_gives_what_eager_gives_in_every_pass(tmp_path):
    line, said = swept("--only", *OPERATORS, "--cases", "1", "--passes", *PASSES, into=tmp_path)
    kinds = ("operators", "wrong", "bare", "hung")
    assert [line[k] for k in kinds] == [30, 0, 0, 0], said
    # A sweep that refuses everything, or tries nothing, is right as well.
    assert line["equal"] > 0.8 * line["programs"] > 0.6 * 30 * len(PASSES), said
    assert line["refused_operators"] <= 3, said


def test_a_sample_of_model_families_gives_what_eager_gives_in_every_way(tmp_path):
    pytest.importorskip("transformers")
    names, ways = ("deberta-v2", "vit"), ("served", "captured", "recorded", "door")
    line, said = swept("--families", *names, "--passes", *ways, into=tmp_path)
    kinds = ("families", "programs", "equal", "wrong", "bare", "hung")
    assert [line[k] for k in kinds] == [2, 8, 8, 0, 0, 0], said
    assert [line[w] for w in ways] == [2] * 4, said


def test_more_families_give_what_eager_gives_recorded(tmp_path):
    """Traces take most of a minute for each of them: `make sweep` tries those ways too."""
    pytest.importorskip("transformers")
    line, said = swept("--families", *FAMILIES.split(), "--passes", "recorded", into=tmp_path)
    kinds = ("families", "recorded", "equal", "wrong", "bare", "hung")
    assert [line[k] for k in kinds] == [41, 41, 41, 0, 0, 0], said
