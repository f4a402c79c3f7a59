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
    *("combinations", "div.trunc_rounding", "fft.fft2", "linalg.svdvals", "logcumsumexp"),
    *("masked.logsumexp", "meshgrid.variadic_tensors", "native_dropout_backward", "new_full"),
    *("nn.functional.embedding", "nn.functional.upsample_nearest", "rand_like", "reshape"),
    *("sparse.sampled_addmm", "split", "std_mean.unbiased"),
)
"""Drawn from all at random, of each kind some: several tensors and results, another dtype, views,
factories, random numbers, reductions, a library's code, sizes that a program asks for."""

MORE_OPERATORS = (
    *("__rmul__", "floor", "i0", "linalg.vander", "linalg.vecdot", "logdet", "maximum", "neg"),
    *("nn.functional.silu", "nn.functional.triplet_margin_with_distance_loss", "prod", "take"),
    *("tril_indices", "trunc"),
)
"""The others that were drawn, like some of the former."""

FAMILIES = "bert mpnet fnet gpt2 bloom llama gemma2 mixtral t5 bart beit clip_text_model"
"""One of each structure: encoders by places, by distances and without attention; decoders by
places, slopes and rotations, with windows, with experts; both halves; images."""

MORE_FAMILIES = (
    "albert bert-generation biogpt camembert codegen cohere cohere2 "
    "clip_vision_model data2vec-vision deit dinov2 dinov3_vit siglip_vision_model vit_msn "
    "electra distilbert esm roberta xlm-roberta gpt_neox gptj opt "
    "gemma mistral olmo phi qwen2 qwen3 starcoder2"
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


@pytest.mark.parametrize(
    "operators",
    [
        pytest.param(OPERATORS, id="of each kind"),
        pytest.param(MORE_OPERATORS, id="more", marks=pytest.mark.slow),
    ],
)
def test_a_sample_of_operators_gives_what_eager_gives_in_every_pass(operators, tmp_path):
    line, said = swept("--only", *operators, "--cases", "1", "--passes", *PASSES, into=tmp_path)
    kinds = ("operators", "wrong", "bare", "hung")
    assert [line[k] for k in kinds] == [len(operators), 0, 0, 0], said
    # A sweep that refuses everything, or tries nothing, is right as well.
    assert line["equal"] > 0.8 * line["programs"] > 0.6 * len(operators) * len(PASSES), said
    assert line["refused_operators"] <= 1, said


@pytest.mark.parametrize("name", ["vit", pytest.param("deberta-v2", marks=pytest.mark.slow)])
def test_a_model_family_gives_what_eager_gives_in_every_way(name, tmp_path):
    pytest.importorskip("transformers")
    ways = ("served", "captured", "recorded", "door")
    line, said = swept("--families", name, "--passes", *ways, into=tmp_path)
    kinds = ("families", "programs", "equal", "wrong", "bare", "hung")
    assert [line[k] for k in kinds] == [1, 4, 4, 0, 0, 0], said
    assert [line[w] for w in ways] == [1] * 4, said


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(FAMILIES, id="of each structure"),
        pytest.param(MORE_FAMILIES, id="more", marks=pytest.mark.slow),
    ],
)
def test_more_families_give_what_eager_gives_recorded(names, tmp_path):
    """Traces take many times as long for each of them: `make sweep` tries those ways too."""
    pytest.importorskip("transformers")
    count = len(names.split())
    line, said = swept("--families", *names.split(), "--passes", "recorded", into=tmp_path)
    kinds = ("families", "recorded", "equal", "wrong", "bare", "hung")
    assert [line[k] for k in kinds] == [count, count, count, 0, 0, 0], said
